# SPDX-License-Identifier: GPL-2.0-or-later
"""xtest's output, as it should be and as it should not."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.guests import xtest_parser
from framework.guests.xtest_parser import (
    Case,
    CaseDone,
    CaseStarted,
    ErrorSeen,
    Subtest,
    SubtestDone,
    SubtestStarted,
    XtestParser,
)

HEAD = """\
Test ID: regression_1001
Run test suite with level=0

TEE test application started over default TEE instance
######################################################
#
# regression
#
######################################################
 
"""  # noqa: W293 - as xtest prints it

ONE_GOOD = """\
* regression_1001 Core self tests
o regression_1001.1 Core self tests
  regression_1001.1 OK
o regression_1001.3 Core transfer list self tests
Transfer List tests not supported, skipping
  regression_1001.3 OK
  regression_1001 OK
"""

ONE_BAD = """\
* regression_1004 Test User Crypt TA
o regression_1004.1 AES encrypt
/usr/src/host/xtest/regression_1000.c:512: TEEC_OpenSession(&c) has an unexpected value: 0xffff000f = X
regression_1000.c:513: second
  regression_1004.1 FAILED
o regression_1004.2 AES decrypt
  regression_1004.2 OK
  regression_1004 FAILED
"""

RULE = "+-----------------------------------------------------\n"


CHECKS, CASES = "9 subtests of which 2 failed", "2 test cases of which 1 failed"


def summary(listed: str, checks: str = CHECKS, cases: str = CASES):
    return (
        f'{RULE}Result of testsuite regression filtered by "regression_1001":\n{listed}{RULE}'
        f"{checks}\n{cases}\n110 test cases were skipped\nTEE test application done!\n"
    )


LISTED = (
    "regression_1001 OK\nregression_1004.1 FAILED first error at /usr/src/regression_1000.c:512\n"
    "regression_1004 FAILED\n"
)


def parse(text: str, step: float = 1.0):
    parser, events = XtestParser(), []
    for number, line in enumerate(text.splitlines(keepends=True)):
        events += parser.feed(line.encode(), number * step)
    return parser, events


def test_a_run_becomes_cases_with_subtests_results_errors_and_durations():
    parser, _ = parse(HEAD + ONE_GOOD + " \n" + ONE_BAD + summary(LISTED))
    good, bad = parser.cases
    assert (good.id, good.title) == ("regression_1001", "Core self tests")
    assert (good.status, good.seconds) == ("ok", 6.0)
    assert [(sub.id, sub.status, sub.seconds) for sub in good.subtests] == [
        ("regression_1001.1", "ok", 1.0),
        ("regression_1001.3", "skipped", 2.0),
    ]
    first = "regression_1000.c:512: TEEC_OpenSession(&c) has an unexpected value: 0xffff000f = X"
    assert (bad.status, bad.error) == ("failed", first)
    assert [(sub.status, sub.error) for sub in bad.subtests] == [("failed", first), ("ok", None)]
    totals = parser.totals
    assert (totals.checks, totals.checks_failed, totals.cases, totals.cases_failed) == (9, 2, 2, 1)
    assert (totals.cases_skipped, totals.done, totals.aborted) == (110, True, False)
    assert (parser.problems, parser.disagreements(), parser.running) == ([], [], None)


def test_events_come_with_the_lines_that_cause_them():
    parser = XtestParser()
    assert parser.feed(b"* regression_1004 Test User Crypt TA\n", 1) == [
        CaseStarted("regression_1004", "Test User Crypt TA")
    ]
    assert parser.feed(b"o regression_1004.1 AES\n", 2) == [SubtestStarted("regression_1004.1", "AES")]
    assert parser.running == "regression_1004.1"
    assert parser.feed(b"a.c:1: wrong\n", 2) == [ErrorSeen("regression_1004.1", "a.c:1: wrong")]
    part = Subtest("regression_1004.1", "failed", "a.c:1: wrong", "AES", 1.0)
    assert parser.feed(b"  regression_1004.1 FAILED\n", 3) == [SubtestDone(part)]
    case = Case("regression_1004", "Test User Crypt TA", "failed", 3.0, (part,), "a.c:1: wrong")
    assert parser.feed(b"  regression_1004 FAILED\r\n", 4) == [CaseDone(case)]


def test_subtests_of_subtests_keep_the_order_in_which_they_began():
    parser, _ = parse(
        "* regression_1013 C\no regression_1013.1 a\no regression_1013.1.1 b\n  regression_1013.1.1 OK\n"
        "o regression_1013.1.2 c\n  regression_1013.1.2 OK\n  regression_1013.1 OK\n  regression_1013 OK\n"
    )
    assert [sub.id.partition(".")[2] for sub in parser.cases[0].subtests] == ["1", "1.1", "1.2"]
    assert parser.problems == []


def test_a_run_that_stops_leaves_everything_open_crashed_and_says_where_it_was():
    parser, _ = parse("* regression_1013 C\no regression_1013.1 a\no regression_1013.1.1 b\nhalf a li")
    assert parser.running == "regression_1013.1.1"
    done = parser.finish(10.0)
    assert [type(event) for event in done] == [SubtestDone, SubtestDone, CaseDone]
    (case,) = parser.cases
    assert case.status == "crashed"
    assert {sub.status for sub in case.subtests} == {"crashed"}
    assert case.error == "began and never ended"
    assert parser.finish(11.0) == []


def test_a_case_that_begins_inside_another_one_ends_it_as_crashed():
    cut = "* regression_1001 A\no regression_1001.1 a\n"
    parser, _ = parse(f"{cut}* regression_1002 B\n  regression_1002 OK\n")
    assert [(case.id, case.status) for case in parser.cases] == [
        ("regression_1001", "crashed"),
        ("regression_1002", "ok"),
    ]
    assert "regression_1002 began before regression_1001 ended" in parser.problems


def test_ends_without_beginnings_are_problems_and_nothing_else():
    parser, events = parse("  regression_1001 OK\no regression_1002.1 x\n  regression_1002.1 OK\n")
    assert (events, parser.cases, len(parser.problems)) == ([], [], 3)


def test_an_outer_end_closes_what_is_inside():
    parser, _ = parse("* regression_1001 A\no regression_1001.1 a\n  regression_1001 OK\n")
    assert [(sub.id, sub.status) for sub in parser.cases[0].subtests] == [("regression_1001.1", "crashed")]
    assert parser.problems


def test_text_without_line_end_before_a_result_does_not_hide_it():
    parser, _ = parse("* regression_1001 A\nworking...  regression_1001 OK\n")
    assert [(case.id, case.status) for case in parser.cases] == [("regression_1001", "ok")]


def test_a_case_that_says_it_skips_is_not_ok():
    said = " - 1020 -   skip test, feature not implemented\n"
    parser, _ = parse(f"* regression_1020 lockdep\n{said}  regression_1020 OK\n")
    assert parser.cases[0].status == "skipped"


def test_a_failure_is_a_failure_even_if_something_was_skipped():
    parser, _ = parse("* regression_1020 lockdep\nskip test\na.c:1: no\n  regression_1020 FAILED\n")
    assert parser.cases[0].status == "failed"


def test_a_missing_tee_is_told_apart():
    parser, _ = parse("Run test suite with level=0\nFailed to open TEE context: 0xffff0008\n")
    assert parser.fatal == "Failed to open TEE context: 0xffff0008"


def test_totals_that_disagree_are_found():
    text = HEAD + ONE_GOOD + ONE_BAD
    wrong = {
        "3 test cases": summary(LISTED, cases="3 test cases of which 1 failed"),
        "2 failed test cases": summary(LISTED, cases="2 test cases of which 2 failed"),
        "0 failed checks": summary(LISTED, checks="9 subtests of which 0 failed"),
        "regression_1001 FAILED": summary(LISTED.replace("1001 OK", "1001 FAILED")),
        "does not list it": summary(LISTED.replace("regression_1004.1 FAILED first error at ", "x ")),
        "regression_1009 OK": summary("regression_1009 OK\n" + LISTED),
    }
    for words, end in wrong.items():
        parser, _ = parse(text + end)
        assert any(words in said for said in parser.disagreements()), words


def test_a_summary_in_the_middle_of_a_case_is_a_crash_of_that_case():
    end = summary("regression_1001 OK\n", cases="1 test case of which 0 failed")
    parser, _ = parse("* regression_1001 A\n" + end)
    assert parser.cases[0].status == "crashed"
    assert parser.disagreements()


def test_absurd_numbers_and_depths_do_no_harm():
    digits = "9" * 3000
    deep = "".join(f"o regression_1{'.1' * depth} x\n" for depth in range(1, 500))
    parser, _ = parse(f"* regression_1 A\n{deep}{RULE}{digits} subtests of which {digits} failed\n")
    assert parser.cases[0].status == "crashed"
    assert len(parser.problems) <= 51
    assert parser.totals.checks == 10**18 - 1


def test_a_line_of_any_length_is_looked_at_from_its_beginning_only():
    parser = XtestParser()
    parser.feed(b"* regression_1 " + b"x" * 50_000_000, 0.0)
    assert parser.running == "regression_1"
    assert len(parser.last_line) <= 400


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("Ignore test due to TA does not exist", "skipped"),
        ("  TEEC_ERROR_OUT_OF_MEMORY - ignored", "skipped"),
        ("OpenSSL not available, skipping certificate verification", "ok"),
        (" - 1020 -   skip test, feature not implemented", "skipped"),
        ("Transfer List tests not supported, skipping", "skipped"),
        ("PTA not found, skip this subtest", "skipped"),
        ("skipped: no such device", "skipped"),
        ("Skip test due to missing PTA", "skipped"),
        ("Skip subcase 2 in this test", "skipped"),
        ("skipping the slow half in this test", "ok"),
        ("not supported", "skipped"),
        ("skipper of the ship", "ok"),
    ],
)
def test_what_did_not_run_is_skipped_and_what_ran_in_part_is_not(said, status):
    parser, _ = parse(f"* regression_8002 A\n{said}\n  regression_8002 OK\n")
    assert [case.status for case in parser.cases] == [status]


def test_a_case_all_of_whose_parts_are_skipped_did_not_run():
    part = "o regression_1.{0} x\nskip test\n  regression_1.{0} OK\n"
    parser, _ = parse(f"* regression_1 A\n{part.format(1)}{part.format(2)}  regression_1 OK\n")
    assert parser.cases[0].status == "skipped"
    parser, _ = parse(f"* regression_1 A\n{part.format(1)}o regression_1.3 y\n  regression_1.3 OK\n  regression_1 OK\n")
    assert parser.cases[0].status == "ok"


def test_an_error_that_does_not_begin_its_line_is_found():
    said = "a.c:7: res has an unexpected value: 0x1, expected 0x0"
    for line in (f"progress 12 {said}", f"/home/me/my sources/{said}", f"\t{said}", f"[1.0] x:{said}"):
        parser, _ = parse(f"* regression_1034 A\n{line}\n  regression_1034 FAILED\n")
        assert parser.cases[0].error == said, line
    parser, _ = parse("* regression_1 A\nsee the text of a.c:7: it says nothing\n  regression_1 OK\n")
    assert parser.cases[0].error is None


def test_the_summary_names_the_place_of_an_error_that_was_not_seen():
    failed = "* regression_1034 A\nglued text\n  regression_1034 FAILED\n"
    counts = {"checks": "1 subtest of which 1 failed", "cases": "1 test case of which 1 failed"}
    for place in ("a.c:7", "/usr/src/a.c:7", "/my own sources/host xtest/a.c:7"):
        parser, _ = parse(failed + summary(f"regression_1034 FAILED first error at {place}\n", **counts))
        assert parser.cases[0].error == "first error at a.c:7"
        assert (parser.problems, parser.disagreements()) == ([], [])


def test_cases_and_subtests_have_limits_and_the_parser_says_so(monkeypatch):
    monkeypatch.setattr(xtest_parser, "MOST_CASES", 10)
    parser, _ = parse("".join(f"* regression_{number} A\n" for number in range(1000)))
    parser.finish(0.0)
    assert len(parser.cases) == 10
    assert parser.limits == ["more than 10 cases began; the rest of the output was not parsed"]
    monkeypatch.setattr(xtest_parser, "MOST_PARTS", 10)
    parser, _ = parse("* regression_1 A\n" + "o regression_1.1 x\n  regression_1.1 OK\n" * 100)
    parser.finish(0.0)
    assert len(parser.cases[0].subtests) == 10
    assert "more than 10 subtests" in parser.limits[0]


def test_the_longest_titles_and_errors_are_cut():
    long = "x" * 8000
    parser, _ = parse(f"* regression_1 {long}\no regression_1.1 {long}\na.c:1: {long}\nmedcheck: {long}\n")
    parser.finish(0.0)
    assert len(repr(parser.cases)) < 3000
    assert len(parser.fatal) == 400


@pytest.mark.parametrize("piece", [".c.c", "a.c:1: ", "/a.c:1", "  a_b OK", "  regression_1.1", "skip ", "+--", "* a_"])
def test_no_line_takes_long(piece):
    parser = XtestParser()
    parser.feed(b"* regression_1 A\n", 0.0)
    line = (piece * 8192)[:8192].encode()
    begin = time.thread_time()
    for _ in range(20):
        parser.feed(line, 0.0)
    assert time.thread_time() - begin < 1.0


_TOKENS = st.sampled_from(
    [b"* ", b"o ", b"  ", b"regression_1", b"regression_1.1", b"regression_1.1.2", b"regression_2", b" OK",
     b" FAILED", b" title", b"a.c:1: bad", b"+------------------------------", b"1 subtest of which 1 failed",
     b"\xff\xfe", b"\x00", b"\r", b"2 test cases of which 1 failed", b" first error at a.c:1",
     b"Result of testsuite x:", b"skip test"]
)  # fmt: skip
_LINES = st.one_of(st.binary(max_size=80), st.lists(_TOKENS, max_size=5).map(b"".join))


@settings(max_examples=150, deadline=None)
@given(st.lists(_LINES, max_size=60))
def test_no_output_breaks_the_parser_and_every_beginning_has_one_end(lines):
    parser, events = XtestParser(), []
    for now, line in enumerate(lines):
        events += parser.feed(line, float(now))
    events += parser.finish(float(len(lines)))
    parser.disagreements()
    assert parser.running is None
    began = [event for event in events if isinstance(event, CaseStarted)]
    ended = [event for event in events if isinstance(event, CaseDone)]
    assert [event.case for event in ended] == parser.cases
    assert [event.id for event in began] == [case.id for case in parser.cases]
    parts = sum(isinstance(event, SubtestStarted) for event in events)
    assert parts == sum(isinstance(event, SubtestDone) for event in events)
    assert parts == sum(len(case.subtests) for case in parser.cases)
    assert {case.status for case in parser.cases} <= {"ok", "failed", "skipped", "crashed"}
    assert all(case.seconds >= 0 for case in parser.cases)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_a_long_random_output_is_parsed_in_time(seed):
    random.seed(seed)
    pieces = [b"* ", b"o ", b"  ", b"regression_1", b".1", b" OK\n", b" FAILED\n", b" title\n", b"a.c:1: bad", b"\n",
              b"+------------------------------\n", b"\xff", b"skip ", b" first error at ", b"9" * 40]  # fmt: skip
    parser = XtestParser()
    begin = time.thread_time()
    for line in b"".join(random.choice(pieces) for _ in range(200_000)).split(b"\n"):
        parser.feed(line, 0.0)
    parser.finish(0.0)
    parser.disagreements()
    assert time.thread_time() - begin < 20

# SPDX-License-Identifier: GPL-2.0-or-later
"""One result over several traces, the conclusion drawn of it, and baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from framework.common.errors import ConfigError
from framework.conformance.baseline import Baseline, Waiver, load_baseline
from framework.conformance.conclusion import Kind, conclude
from framework.conformance.merge import merge
from framework.conformance.policy import FailOn
from framework.conformance.result import (
    DEVIATION,
    FAIL,
    NOT_CHECKED,
    NOT_EXERCISED,
    NOT_SEEN,
    PASS,
    SEEN,
    ConformanceResult,
    DeviationSeen,
    Nonconformance,
    RuleResult,
)
from mediator_ref import RULES


def result(events: int = 10, incomplete: bool = False, **verdicts: str) -> ConformanceResult:
    """A result in which the rules named (``STD_1="fail"``) have these verdicts and no other was exercised."""
    named = {name.replace("_", "-"): verdict for name, verdict in verdicts.items()}
    rules = []
    for id_, rule in RULES.items():
        verdict = named.pop(id_, NOT_EXERCISED)
        rules.append(
            RuleResult(
                id_, rule.title, rule.severity.value, verdict,
                passed=int(verdict == PASS), failed=int(verdict == FAIL), deviations=int(verdict == DEVIATION),
                not_checked=int(verdict == NOT_CHECKED), reasons={"why": 1} if verdict == NOT_CHECKED else {},
            )
        )  # fmt: skip
    assert not named
    found = [Nonconformance(r.id, 1, 1, "event", "this", "that", "story") for r in rules if r.failed]
    return ConformanceResult(events, tuple(rules), tuple(found), incomplete=incomplete)


def deviating(id_: str, status: str = SEEN, isolation: bool = False) -> ConformanceResult:
    seen = DeviationSeen(id_, "STD-3", status, "evidence", 2, isolation)
    return replace(result(STD_3=DEVIATION if status == SEEN else PASS), deviations=(seen,))


@pytest.mark.parametrize(
    ("one", "other", "whole"),
    [
        (PASS, FAIL, FAIL),
        (DEVIATION, FAIL, FAIL),
        (PASS, DEVIATION, DEVIATION),
        (NOT_CHECKED, PASS, PASS),
        (NOT_EXERCISED, NOT_CHECKED, NOT_CHECKED),
        (NOT_EXERCISED, NOT_EXERCISED, NOT_EXERCISED),
    ],
)
def test_a_rule_is_as_bad_as_at_its_worst_and_checked_where_it_was_checked(one: str, other: str, whole: str) -> None:
    for parts in ({"run": one, "abi": other}, {"run": other, "abi": one}):
        merged = merge({name: result(STD_3=verdict) for name, verdict in parts.items()})
        assert merged.rule("STD-3").verdict == whole
        expected = () if whole == NOT_EXERCISED else tuple(name for name, verdict in parts.items() if verdict == whole)
        assert merged.rule("STD-3").carried_by == expected


def test_counts_add_up_and_each_reason_is_counted() -> None:
    merged = merge({"a": result(3, STD_1=NOT_CHECKED), "b": result(4, STD_1=NOT_CHECKED), "c": result(5, STD_1=PASS)})
    rule = merged.rule("STD-1")
    assert (merged.events_checked, rule.passed, rule.not_checked, rule.reasons) == (12, 1, 2, {"why": 2})
    assert rule.not_checked_reasons == ("why (2x)",)


def test_a_nonconformance_names_the_trace_that_shows_it() -> None:
    merged = merge({"run": result(STD_1=PASS), "abi/test_x": result(STD_1=FAIL)})
    assert [(found.rule, found.where) for found in merged.nonconformances] == [("STD-1", "abi/test_x")]


def test_one_part_that_is_incomplete_or_checked_nothing_makes_the_whole_incomplete() -> None:
    good = result(STD_1=PASS)
    assert not merge({"a": good, "b": good}).incomplete
    for bad in (replace(good, incomplete=True), result(5), result(0)):
        assert conclude(merge({"a": good, "b": bad})).kind is Kind.INCOMPLETE


def test_a_deviation_is_seen_where_one_trace_saw_it() -> None:
    merged = merge({"a": deviating("D8", NOT_SEEN), "b": deviating("D8"), "c": deviating("D8")})
    assert [(d.id, d.status, d.count, d.carried_by) for d in merged.deviations] == [("D8", SEEN, 4, ("b", "c"))]
    assert merge({"a": deviating("D8", NOT_SEEN)}).deviations[0].status == NOT_SEEN


def test_a_result_survives_json() -> None:
    whole = merge({"a": deviating("D8"), "b": result(STD_1=FAIL, STD_2=NOT_CHECKED)})
    assert ConformanceResult.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize(
    ("found", "kind", "sentence"),
    [
        (result(STD_1=PASS), Kind.CONFORMS, "conforms"),
        (deviating("D8"), Kind.DEVIATES, "conforms but for 1 known deviation"),
        (deviating("D1", isolation=True), Kind.DEVIATES, "conforms but for 1 known deviation, 1 of them isolation"),
        (result(STD_1=FAIL, STD_2=PASS), Kind.NONCONFORMING, "does not conform: STD-1 broken"),
        (result(STD_1=FAIL, incomplete=True), Kind.NONCONFORMING, "does not conform: STD-1 broken"),
        (result(STD_1=PASS, incomplete=True), Kind.INCOMPLETE, "incomplete: a trace holds nothing to check"),
        (result(STD_1=NOT_CHECKED), Kind.INCOMPLETE, "incomplete: nothing could be checked"),
    ],
)
def test_the_conclusion_is_one_sentence(found: ConformanceResult, kind: Kind, sentence: str) -> None:
    drawn = conclude(found)
    assert (drawn.kind, drawn.sentence) == (kind, sentence)
    assert drawn.failed == (kind is Kind.NONCONFORMING)


@pytest.mark.parametrize(
    ("fail_on", "isolation", "failed"),
    [
        (FailOn.NONCONFORMANCE, True, False),
        (FailOn.ISOLATION, True, True),
        (FailOn.ISOLATION, False, False),
        (FailOn.ANY_DEVIATION, False, True),
    ],
)
def test_the_policy_decides_about_known_deviations(fail_on: FailOn, isolation: bool, failed: bool) -> None:
    assert conclude(deviating("D1", isolation=isolation), fail_on).failed == failed


def test_a_deviation_that_the_baseline_does_not_have_is_a_failure_and_a_vanished_one_is_named() -> None:
    baseline = Baseline({"D8": Waiver("D8", "known", (), date(2030, 1, 1))})
    assert not conclude(deviating("D8"), baseline=baseline).failed
    other = conclude(deviating("D9"), baseline=baseline)
    assert (other.failed, other.unexpected) == (True, ("D9",))
    gone = conclude(deviating("D8", NOT_SEEN), baseline=baseline)
    assert (gone.failed, gone.vanished) == (False, ("D8",))


def test_a_waiver_of_other_versions_does_not_count() -> None:
    baseline = Baseline({"D8": Waiver("D8", "known", ("4.17",), date(2030, 1, 1))})
    assert not conclude(deviating("D8"), baseline=baseline, version="4.17.5 debug").failed
    for version in ("4.18.0", None):
        assert conclude(deviating("D8"), baseline=baseline, version=version).failed


def write(folder: Path, text: str) -> Path:
    path = folder / "baseline.yaml"
    path.write_text(text)
    return path


_GOOD = "deviations:\n  - {id: D8, reason: known, versions: ['4.17'], expires: 2027-06-30}\n"


def test_a_baseline_is_read(tmp_path: Path) -> None:
    baseline = load_baseline(write(tmp_path, _GOOD), date(2027, 6, 30))
    assert baseline.waivers == {"D8": Waiver("D8", "known", ("4.17",), date(2027, 6, 30))}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("D8", "D99", "no known deviation D99"),
        ("D8", "8", "expected the id of a known deviation"),
        ("reason: known, ", "", "the key 'reason' is missing"),
        ("known", "' '", "expected a reason in words"),
        ("2027-06-30", "2027-01-31", "expired on 2027-01-31"),
        ("2027-06-30", "soon", "expected a date such as 2027-06-30"),
        ("2027-06-30", "2027-13-45", "expected a date such as 2027-06-30"),
        ("2027-06-30", "2027-06-30 12:00:00", "expected a date such as 2027-06-30"),
        (", expires: 2027-06-30", "", "the key 'expires' is missing"),
        ("['4.17']", "4.17", "expected a list"),
        ("['4.17']", "[4.17]", "expected the beginning of a version"),
        ("deviations", "waivers", "unknown key"),
    ],
)
def test_a_wrong_baseline_is_an_error_at_its_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = write(tmp_path, _GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=complaint) as error:
        load_baseline(path, date(2027, 6, 1))
    assert str(error.value.where).startswith(f"{path}:")


def test_a_deviation_stands_in_a_baseline_once(tmp_path: Path) -> None:
    path = write(tmp_path, _GOOD + _GOOD.splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match="D8 stands here twice"):
        load_baseline(path, date(2027, 6, 1))

# SPDX-License-Identifier: GPL-2.0-or-later
"""What failed runs again: failed, flaky with its rate, or a hang; and what is not run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import ExitCode, GuestCrash, GuestError
from framework.common.progress import Silent
from framework.guests.xtest import XtestResult
from framework.jobs import reruns, run_report
from framework.jobs.reruns import judged, rerun_cases, rerun_stimuli
from framework.jobs.run_report import Found, verdict_of
from framework.report.model import BoardTestReport, Case, XtestTotals
from testcases.unit.conformance.test_merge import result as trace_result

HANG = GuestCrash("vm1: hangs", hang=True)
PANIC = GuestCrash("vm1: linux-panic")


def ran(name: str, crash: GuestCrash | None = None, /, **cases: str) -> XtestResult:
    """xtest's result in a guest; cases by the number in their id (``c1004="failed"``)."""
    found = tuple(Case(f"regression_{id_[1:]}", "", status, 1.0) for id_, status in cases.items())
    failed = sum(case.status != "ok" for case in found)
    totals = XtestTotals(len(found), failed, len(found), failed)
    return XtestResult(found, totals, None if crash else failed, (), name, 1.0, crash)


class Clones:
    """Boards on which xtest gives prepared answers: a status, or an error that ends the whole run, for each clone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str | BaseException) -> None:
        self.answers = iter(answers)
        self.made: list[str] = []
        self.asked: list[dict[str, Sequence[str]]] = []
        self.dom0_became_client = 0
        monkeypatch.setattr(reruns, "run_xtest_in_all", self.run)

    @contextmanager
    def __call__(self, name: str) -> Iterator[Any]:
        self.made.append(name)
        guests = {guest: SimpleNamespace(name=guest) for guest in ("vm1", "vm2")}
        dom0 = SimpleNamespace(name="dom0", become_client=self.count)
        yield SimpleNamespace(dom0=dom0, guests=guests, trace=None, check_alive=lambda: None)

    def count(self) -> None:
        self.dom0_became_client += 1

    def run(self, guests: Sequence[Any], *, own: Mapping[str, Sequence[str]], **_: object) -> dict[str, XtestResult]:
        self.asked.append({guest.name: own[guest.name] for guest in guests})
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        return {
            guest.name: ran(guest.name, **{f"c{id_.rpartition('_')[2]}": answer for id_ in own[guest.name]})
            for guest in guests
        }


def again(clones: Clones, *results: XtestResult, count: int = 3) -> dict[str, XtestResult]:
    return rerun_cases({r.guest: r for r in results}, ["regression_1", "regression_2"], clones, count, Silent()).xtest


def verdict(xtest: Mapping[str, XtestResult], tests: tuple[BoardTestReport, ...] = ()) -> tuple[str, str]:
    word, reason = verdict_of(Found(xtest, {}, tests, None), None)
    return word, reason or ""


def test_a_case_that_passes_on_a_fresh_clone_is_flaky_and_its_rate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clones = Clones(monkeypatch, "ok", "failed", "ok")
    done = again(clones, ran("vm1", c1="ok", c2="failed"), ran("vm2", c1="ok", c2="ok"))
    assert len(set(clones.made)) == 3
    assert clones.asked == [{"vm1": ["regression_2"], "vm2": ["regression_2"]}] * 3, "in all domUs, as it was"
    assert [case.status for case in done["vm1"].cases] == ["ok", "flaky"]
    assert done["vm1"].cases[1].reruns == ("ok", "failed", "ok")
    assert done["vm2"].cases[1].reruns == ()
    word, reason = verdict(done)
    assert (word, run_report.CODES["flaky"]) == ("flaky", ExitCode.GOOD)
    assert reason == "regression_2 in vm1 failed 2 of 4 times, and passed on fresh boards"


def test_a_case_that_fails_each_time_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clones = Clones(monkeypatch, "failed", "hang", GuestError("the clone died"))
    done = again(clones, ran("vm1", c1="failed", c2="ok"))
    assert done["vm1"].cases[0].status == "failed"
    assert done["vm1"].cases[0].reruns == ("failed", "hang", "lost")
    assert verdict(done)[0] == "fail"


def test_a_hang_that_hangs_again_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    done = again(Clones(monkeypatch, "hang", "hang", "hang"), ran("vm1", HANG, c1="hang"))
    assert done["vm1"].cases[0].status == "hang"
    assert verdict(done) == ("fail", "xtest in vm1: vm1: hangs")


def test_a_guest_that_hung_by_chance_still_runs_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clones = Clones(monkeypatch, "ok", "ok", "ok", "ok")
    done = again(clones, ran("vm1", HANG, c1="hang"), ran("vm2", c1="ok", c2="ok"))
    assert clones.asked[3] == {"vm1": ["regression_2"]}
    assert [(case.id, case.status) for case in done["vm1"].cases] == [
        ("regression_1", "flaky"), ("regression_2", "ok")
    ]  # fmt: skip
    assert verdict(done)[0] == "flaky"


def test_cases_that_a_guest_never_came_to_are_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    done = again(Clones(monkeypatch, "ok", "ok", "ok", GuestError("died")), ran("vm1", HANG, c1="hang"))
    assert verdict(done)[0] == "fail"


def test_a_death_is_no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    done = again(Clones(monkeypatch, "ok", "ok", "ok"), ran("vm1", PANIC, c1="crashed"))
    assert done["vm1"].cases[0].status == "crashed"
    assert done["vm1"].cases[0].reruns == ("ok", "ok", "ok")
    assert verdict(done)[0] == "fail"


def test_dom0s_case_runs_again_in_dom0(monkeypatch: pytest.MonkeyPatch) -> None:
    clones = Clones(monkeypatch, "ok", "ok", "ok")
    done = again(clones, ran("dom0", c1="failed"), ran("vm1", c1="ok", c2="ok"))
    assert clones.asked[0] == {"dom0": ["regression_1"], "vm1": ["regression_1"]}
    assert clones.dom0_became_client == 3
    assert done["dom0"].cases[0].status == "flaky"


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_runs_again_without_a_failure_or_where_much_fails(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    clones = Clones(monkeypatch)
    again(clones, ran("vm1", c1="ok", c2="skipped"), count=count)
    many = ran("vm1", **{f"c{number}": "failed" for number in range(reruns.MOST + 1)})
    assert again(clones, many, count=count)["vm1"] == many
    assert clones.made == []
    if count == 0:
        again(clones, ran("vm1", c1="failed"), count=count)
        assert clones.made == []


def test_a_stimulus_runs_again_unless_its_trace_proves_a_broken_rule() -> None:
    tests = [
        BoardTestReport("a::good", "passed", 1.0),
        BoardTestReport("a::odd", "failed", 1.0, "no answer"),
        BoardTestReport("a::still", "hang", 1.0, "no byte"),
        BoardTestReport("a::broken", "failed", 1.0, "STD-1 broken"),
    ]
    asked: list[tuple[Sequence[str], int]] = []

    def run(ids: Sequence[str], number: int) -> Sequence[BoardTestReport]:
        asked.append((ids, number))
        status = "passed" if number == 2 else "failed"
        return [BoardTestReport("a::odd", status, 1.0), BoardTestReport("a::still", "hang", 1.0)]

    done = rerun_stimuli(tests, {"a::broken": trace_result(STD_1="fail")}, run, 3)
    assert asked == [(["a::odd", "a::still"], number) for number in (1, 2, 3)]
    assert [test.status for test in done] == ["passed", "flaky", "hang", "failed"]
    assert done[1].reruns == ("failed", "passed", "failed")
    assert verdict({}, (done[0], done[1])) == ("flaky", "a::odd failed 3 of 4 times, and passed on fresh boards")
    assert verdict({}, done)[1] == "2 of 4 tests failed, first a::still"


def test_a_rerun_that_is_skipped_proves_nothing() -> None:
    assert judged(Case("a", "", "failed", 1.0), ["skipped", "skipped"]).status == "failed"

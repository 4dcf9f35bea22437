# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of a campaign's runs, what follows from them, and that it goes on where it was."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from framework.common.errors import InfrastructureError
from framework.mutants.campaign import Campaign, RunLog, choose, drive
from framework.mutants.mutation import Place
from framework.mutants.outcome import Status, judge
from framework.mutants.worker import Run
from framework.mutants.xen import Mutant, MutantXen

_GOOD = Run(True, (), (), False, "", False, (), (), 1.0)
_BAD = replace(_GOOD, passed=False)
_KILL = replace(_BAD, failures=(("teardown", "Failed", "does not conform"),), broken=("STD-3",))
_LATE = replace(_BAD, failures=(("call", "BoardError", "no answer within 20 s"),), expired=True)


def _mutant(number: int, function: str = "f") -> Mutant:
    return Mutant(number, f"m{number}", function, "delete", Place(number, 1, number, 2), "x;", "", "x;  ->  (deleted)")


XEN = MutantXen(Path("/x"), {n: _mutant(n) for n in range(1, 6)}, 0, 0, 0, 6, ())


class _Suite:
    """A worker with a table of answers: ``reach`` by test, ``answers`` by test and mutant."""

    def __init__(self, reach: Mapping[str, tuple[int, ...]], answers: Mapping[tuple[str, int], Run]) -> None:
        self.tests = tuple(reach)
        self.reach = reach
        self.answers = answers
        self.asked: list[tuple[str, int]] = []

    def __enter__(self) -> _Suite:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def run(self, test: str, number: int, limit: float, *, met: bool = False) -> Run:
        assert limit > 0
        assert met == (number == 0)
        self.asked.append((test, number))
        usual = replace(_GOOD, met=self.reach[test], boot=(5,)) if number == 0 else _GOOD
        return self.answers.get((test, number), usual)


def _drive(campaign: Campaign, suite: Any, workers: int = 1) -> None:
    drive(campaign, lambda _number: suite, workers, 0, lambda _job, _run: None)


REACH = {"a": (1, 2, 3), "b": (2, 3), "c": ()}


def test_a_campaign_to_its_end(tmp_path: Path) -> None:
    suite = _Suite(REACH, {("a", 1): _KILL, ("b", 3): _KILL})
    campaign = Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1, 2, 3, 4, 5])
    _drive(campaign, suite)
    found = {number: verdict.status for number, verdict in campaign.verdicts().items()}
    assert found == {
        1: Status.NONCONFORMANCE, 2: Status.SURVIVED, 3: Status.NONCONFORMANCE, 4: Status.NOT_MET, 5: Status.NOT_MET
    }  # fmt: skip
    assert campaign.verdicts()[1].evidence == ("STD-3",)
    assert campaign.verdicts()[5].evidence == ("reached while Xen boots",)
    assert campaign.left() == 0
    # Reach first, and only tests that reach a mutant run with it.
    assert suite.asked[:3] == [("a", 0), ("b", 0), ("c", 0)]
    assert not any(test == "c" for test, number in suite.asked if number)


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = _Suite(REACH, {("a", 1): _KILL}), _Suite(REACH, {})
    _drive(Campaign(XEN, RunLog(tmp_path / "runs"), first.tests, [1, 2]), first)
    again = Campaign(XEN, RunLog(tmp_path / "runs"), second.tests, [1, 2, 3])
    _drive(again, second)
    assert {number for _, number in second.asked} == {3}
    assert again.verdicts()[1].status is Status.NONCONFORMANCE


def test_the_better_killer_comes_first(tmp_path: Path) -> None:
    reach = {"slow": (1, 2, 3), "fast": (1, 2, 3), "other": (1, 2, 3)}
    answers = {(test, 0): replace(_GOOD, met=(1, 2, 3), seconds=9.0 if test == "slow" else 1.0) for test in reach}
    answers |= {("other", 1): _KILL, ("other", 2): _KILL, ("slow", 3): _KILL}
    suite = _Suite(reach, answers)
    _drive(Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [3, 2, 1]), suite)
    assert suite.asked[3:6] == [("fast", 3), ("fast", 2), ("fast", 1)], "one test for each, the quickest"
    assert suite.asked[6:] == [("other", 3), ("other", 2), ("other", 1), ("slow", 3)]


def test_a_test_that_is_about_the_fault_comes_first(tmp_path: Path) -> None:
    suite = _Suite({"a": (1, 2), "b": (1, 2)}, {})
    about = {2: {"b"}}
    _drive(Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1, 2], about=about), suite)
    assert suite.asked[2:4] == [("a", 1), ("b", 2)]


def test_two_tests_out_of_time_are_enough(tmp_path: Path) -> None:
    reach = {"a": (1,), "b": (1,), "c": (1,)}
    suite = _Suite(reach, {(test, 1): _LATE for test in reach})
    campaign = Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1])
    _drive(campaign, suite)
    assert campaign.verdicts()[1].status is Status.TIMEOUT
    assert len([number for _, number in suite.asked if number]) == 2


def test_a_test_that_fails_anyway_kills_nothing(tmp_path: Path) -> None:
    suite = _Suite({"a": (1,)}, {("a", 0): _BAD, ("a", 1): _KILL})
    campaign = Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1])
    _drive(campaign, suite)
    assert campaign.unfit == ["a"]
    assert campaign.verdicts()[1].status is Status.NOT_MET


def test_a_bound_on_tests(tmp_path: Path) -> None:
    reach = dict.fromkeys("abcd", (1,))
    suite = _Suite(reach, {})
    campaign = Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1], most=2)
    _drive(campaign, suite)
    assert campaign.verdicts()[1].evidence == ("2 of 4 tests",)


def test_one_of_a_family_of_tests_comes_first(tmp_path: Path) -> None:
    suite = _Suite({"a[1]": (), "a[2]": (), "b": ()}, {})
    _drive(Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1]), suite)
    assert [test for test, _ in suite.asked] == ["a[1]", "b", "a[2]"]


class _Slow(_Suite):
    """Answers that come in another order than they were asked for."""

    def run(self, test: str, number: int, limit: float, *, met: bool = False) -> Run:
        time.sleep(0.001 * random.random())
        return super().run(test, number, limit, met=met)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_table_whatever_the_workers(tmp_path: Path, workers: int) -> None:
    """Several tests kill a mutant, each in its way: which one it is depends on what was learnt before."""
    draw = random.Random(5)
    xen = replace(XEN, mutants={n: _mutant(n, "fg"[n % 2]) for n in range(1, 31)})
    reach = {f"t{i}": tuple(sorted(draw.sample(range(1, 31), 20))) for i in range(6)}
    kinds = [_GOOD, _GOOD, _KILL, replace(_KILL, broken=("MEM-1",)), replace(_BAD, dead=True)]
    answers = {(test, n): draw.choice(kinds) for test, met in reach.items() for n in met}
    answers |= {(test, 0): replace(_GOOD, met=met, seconds=draw.random()) for test, met in reach.items()}

    def table(folder: str, workers: int, most: int = 0) -> str:
        suite = _Slow(reach, answers)

        def told(*_: object) -> None:
            if most and len(suite.asked) >= most:
                raise InfrastructureError("stopped")

        campaign = Campaign(xen, RunLog(tmp_path / folder), suite.tests, list(xen.mutants))
        drive(campaign, lambda _: suite, workers, 0, told)  # type: ignore[arg-type, return-value]
        return json.dumps({number: asdict(verdict) for number, verdict in campaign.verdicts().items()})

    due = table("one", 1)
    assert table("straight", workers) == due
    with pytest.raises(InfrastructureError, match="stopped"):
        table("interrupted", workers, most=40)
    assert table("interrupted", workers) == due


def test_a_worker_that_ends_ends_the_campaign(tmp_path: Path) -> None:
    class Broken(_Suite):
        def run(self, test: str, number: int, limit: float, *, met: bool = False) -> Run:
            if number:
                raise InfrastructureError("gone")
            return super().run(test, number, limit, met=met)

    suite = Broken(REACH, {})
    campaign = Campaign(XEN, RunLog(tmp_path / "runs"), suite.tests, [1])
    with pytest.raises(InfrastructureError, match="gone"):
        _drive(campaign, suite, 2)
    assert len(RunLog(tmp_path / "runs").runs) == 3


def test_a_sample_is_the_same_each_time() -> None:
    assert choose(XEN.mutants.values(), 3, 7) == choose(XEN.mutants.values(), 3, 7)
    assert sorted(choose(XEN.mutants.values(), 0, 7)) == [1, 2, 3, 4, 5]
    assert len(choose(XEN.mutants.values(), 3, 7)) == 3


def test_runs_come_back_from_the_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs")
    run = replace(_KILL, met=(1, 2), stuck="x")
    log.add("a", 1, run)
    log.add("b", 0, _BAD)
    # What fails without a mutant is tried again next time.
    assert RunLog(tmp_path / "runs").runs == {("a", 1): run}


def test_a_changed_test_costs_no_other_its_runs(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs", {"a": "1", "b": "1"})
    for test in "ab":
        log.add(test, 1, _KILL)
    again = RunLog(tmp_path / "runs", {"a": "1", "b": "2", "c": "1"})
    assert set(again.runs) == {("a", 1)}


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (_GOOD, Status.SURVIVED),
        (replace(_GOOD, dead=True), Status.SURVIVED),
        (_KILL, Status.NONCONFORMANCE),
        (replace(_KILL, dead=True), Status.NONCONFORMANCE),
        (replace(_BAD, broken=("LIFE-7",)), Status.CRASH),
        (replace(_BAD, dead=True), Status.CRASH),
        (replace(_LATE, stuck="_spin_lock+0x10 in Xen (EL2), 5 times in a row"), Status.CRASH),
        (replace(_BAD, failures=(("call", "GuestCrash", "panic"),)), Status.CRASH),
        (replace(_BAD, failures=(("call", "AssertionError", "assert 1 == 2"),)), Status.ASSERTION),
        (_LATE, Status.TIMEOUT),
        (replace(_BAD, failures=(("setup", "GuestError", "xl create ended with 3"),)), Status.ERROR),
    ],
)
def test_what_a_run_says(run: Run, status: Status) -> None:
    assert judge(run)[0] is status

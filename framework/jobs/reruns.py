# SPDX-License-Identifier: GPL-2.0-or-later
"""Reruns of what failed, each on a fresh clone: what passes there is flaky, and what hangs there hangs.

Chance must not look like a defect of the mediator under test, nor a defect like chance. A trace that shows a broken
rule is proof, which no rerun could take back; and where much fails at once, that is no chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from framework.common.errors import MedcheckError
from framework.common.progress import Progress
from framework.conformance.checker import check_file
from framework.conformance.result import ConformanceResult
from framework.guests.xtest import XtestGuest, XtestResult, run_xtest_in_all
from framework.report.model import BoardTestReport, Case, outcome
from framework.target.liveness import Hypervisor, hypervisor_of
from framework.target.target import Target

DEFAULT = 3
"""Reruns of each case and stimulus that failed."""

MOST = 10
"""Different cases, or stimuli, that are run again; where more fail, they all count as failed."""

_LOST = "lost"
"""Status of a rerun that brought no result."""

Failed = TypeVar("Failed", Case, BoardTestReport)
Clone = Callable[[str], AbstractContextManager[Target]]
"""Makes a running clone with all guests up, its logs in a folder of this name."""


@dataclass
class Rerun:
    """Results of xtest by guest after all reruns, and the result of each rerun's trace by a name of it."""

    xtest: dict[str, XtestResult]
    traces: dict[str, ConformanceResult] = field(default_factory=dict)


def judged(failed: Failed, reruns: Sequence[str]) -> Failed:
    """Return a failed case or stimulus with the statuses of its reruns, and with the verdict over all of them:
    ``flaky`` if it passed in one.

    A case whose guest died stays one: a death is no chance, even if it comes once only.
    """
    passed = any(outcome(status) == "pass" for status in reruns)
    status = "flaky" if passed and failed.status != "crashed" else failed.status
    return replace(failed, status=status, reruns=tuple(reruns))


def rerun_cases(
    results: Mapping[str, XtestResult], wanted: Sequence[str] | None, clone: Clone, count: int, progress: Progress
) -> Rerun:
    """Run each failed case ``count`` times again, each time on a fresh clone and in all domUs at once, as it was; then
    what a hung guest had not come to. ``wanted`` are the domUs' cases, None for all.

    Raises the error of a clone that cannot be made. A clone that dies is a rerun that did not pass.
    """
    done = Rerun(dict(results))
    failed = {case.id: None for result in results.values() for case in result.cases if _failed(case)}
    if not count or not failed or len(failed) > MOST:
        return done
    statuses: dict[tuple[str, str], list[str]] = {}
    with progress.task("running again what failed", total=len(failed) * count, unit="runs") as task:
        for id_ in failed:
            for number in range(1, count + 1):
                again = _run_once(done, f"{id_}-{number}", {name: [id_] for name in results}, clone)
                for name in results:
                    statuses.setdefault((name, id_), []).append(_status(again.get(name), id_))
                task.advance()
    for name, result in results.items():
        cases = [judged(case, statuses[name, case.id]) if _failed(case) else case for case in result.cases]
        done.xtest[name] = replace(result, cases=tuple(cases))
    _finish_hung(done, wanted, clone)
    return done


def rerun_stimuli(
    tests: Sequence[BoardTestReport],
    proven: Mapping[str, ConformanceResult],
    run: Callable[[Sequence[str], int], Sequence[BoardTestReport]],
    count: int,
) -> tuple[BoardTestReport, ...]:
    """Run each failed stimulus ``count`` times again. ``run`` does so with the stimuli of these ids, the number of the
    rerun given. Those whose trace (in ``proven``, by id) shows a broken rule are not run again."""
    failed = [test.id for test in tests if outcome(test.status) in ("fail", "lost")]
    failed = [id_ for id_ in failed if id_ not in proven or not proven[id_].failed]
    if not failed or len(failed) > MOST:
        return tuple(tests)
    statuses: dict[str, list[str]] = {id_: [] for id_ in failed}
    for number in range(1, count + 1):
        again = {test.id: test.status for test in run(failed, number)}
        for id_ in failed:
            statuses[id_].append(again.get(id_, _LOST))
    return tuple(judged(test, statuses[test.id]) if test.id in statuses else test for test in tests)


def _finish_hung(done: Rerun, wanted: Sequence[str] | None, clone: Clone) -> None:
    """Run the cases that guests had not come to when one of them hung that turned out flaky."""
    known = wanted or [case.id for result in done.xtest.values() for case in result.cases]
    left = {}
    for name, result in done.xtest.items():
        if result.crash is not None and result.crash.hang and outcome(result.cases[-1].status) == "flaky":
            ran = {case.id for case in result.cases}
            left[name] = [id_ for id_ in dict.fromkeys(known) if id_ not in ran]
    if not left:
        return
    again = _run_once(done, "rest", left, clone)
    for name in left:
        rest = again.get(name)
        if rest is not None and rest.good:
            result = done.xtest[name]
            done.xtest[name] = replace(result, cases=(*result.cases, *rest.cases), crash=None)


def _run_once(done: Rerun, name: str, cases: Mapping[str, Sequence[str]], clone: Clone) -> Mapping[str, XtestResult]:
    """Run ``cases`` by guest on a clone, and have its trace checked; no results if the clone died."""
    hypervisor = Hypervisor(None)
    with clone(name) as target:
        everyone: list[XtestGuest] = [target.dom0, *target.guests.values()]
        guests = [guest for guest in everyone if cases.get(guest.name)]
        try:
            if cases.get(target.dom0.name):
                target.dom0.become_client()
            results = run_xtest_in_all(guests, own=cases, alive=target.check_alive)
        except MedcheckError:
            results = {}
        if target.trace is not None:
            hypervisor = hypervisor_of(target)
    if target.trace is not None and target.trace.exists():
        seen = check_file(target.trace, board_alive=hypervisor.alive, memory_free=hypervisor.memory_free)
        done.traces[f"rerun {name}"] = seen
    return results


def _failed(case: Case) -> bool:
    return outcome(case.status) in ("fail", "lost")


def _status(result: XtestResult | None, id_: str) -> str:
    found = (case.status for case in (() if result is None else result.cases) if case.id == id_)
    return next(found, _LOST)

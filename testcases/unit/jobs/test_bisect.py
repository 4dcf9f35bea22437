# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run means to ``git bisect run``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import BoardError, BuildError, ExitCode, MedcheckError, UsageError
from framework.conformance.result import ConformanceResult
from framework.jobs.bisect import Bisection, Step, bisect_step
from framework.jobs.run import RunResult
from testcases.unit.conformance.test_merge import deviating, result


def ended(
    conformance: ConformanceResult | None, code: ExitCode = ExitCode.GOOD, failure: BaseException | None = None
) -> RunResult:
    report: Any = SimpleNamespace(conformance=conformance, reason="its reason")
    return RunResult(report, {}, Path(), code, failure)


HELD, BROKEN = result(STD_1="pass"), result(STD_1="fail")


@pytest.mark.parametrize(
    ("run", "step"),
    [
        (ended(HELD), Step.GOOD),
        (ended(BROKEN, ExitCode.FAILED), Step.BAD),
        # Another rule, or xtest, is not what this bisection is about.
        (ended(result(STD_1="pass", STD_2="fail"), ExitCode.FAILED), Step.GOOD),
        # What was broken before the board died was broken; what was not is unknown.
        (ended(BROKEN, ExitCode.FAILED, BoardError("died")), Step.BAD),
        (ended(HELD, ExitCode.INFRASTRUCTURE, BoardError("died")), Step.SKIP),
        (ended(replace(HELD, incomplete=True), ExitCode.INFRASTRUCTURE), Step.SKIP),
        (ended(result(STD_2="pass")), Step.SKIP),
        (ended(None, ExitCode.INFRASTRUCTURE), Step.SKIP),
    ],
)
def test_a_rule_decides_where_it_was_checked(run: RunResult, step: Step) -> None:
    assert Bisection("STD-1").step(run)[0] is step


def test_a_known_deviation_may_be_what_is_looked_for() -> None:
    assert Bisection("D8").step(ended(deviating("D8")))[0] is Step.BAD
    assert Bisection("D8").step(ended(deviating("D8", "not seen")))[0] is Step.GOOD
    assert Bisection("D8").step(ended(HELD))[0] is Step.SKIP


@pytest.mark.parametrize(
    ("code", "step"),
    [(ExitCode.GOOD, Step.GOOD), (ExitCode.FAILED, Step.BAD), (ExitCode.INFRASTRUCTURE, Step.SKIP)],
)
def test_without_a_rule_the_run_decides(code: ExitCode, step: Step) -> None:
    assert Bisection().step(ended(HELD, code))[0] is step


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no rule STD-99"):
        Bisection("STD-99")


@pytest.mark.parametrize("error", [BuildError("optee.c:4: error"), UsageError("the patch does not apply")])
def test_what_breaks_on_one_commit_skips_it(error: MedcheckError) -> None:
    def run() -> RunResult:
        raise error

    said: list[str] = []
    assert bisect_step(Bisection("STD-1"), run, said.append) == (Step.SKIP, None)
    assert error.what in said[0]


def test_an_interruption_ends_the_bisection() -> None:
    run = ended(HELD, ExitCode.INFRASTRUCTURE, KeyboardInterrupt())
    assert bisect_step(Bisection("STD-1"), lambda: run, lambda _text: None)[0] is Step.ABORT


def test_git_knows_the_numbers() -> None:
    assert [int(step) for step in (Step.GOOD, Step.BAD, Step.SKIP)] == [0, 1, 125]
    assert Step.ABORT > 127

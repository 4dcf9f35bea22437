# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as one step of ``git bisect run``: what it found, in the three words that git understands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from framework.common.errors import ExitCode, MedcheckError, UsageError
from framework.conformance.result import DEVIATION, FAIL, PASS, SEEN, ConformanceResult
from framework.jobs.run import RunResult
from mediator_ref import DEVIATIONS, RULES


class Step(IntEnum):
    """What git makes of an exit code (git-bisect(1)); ``ABORT`` ends the bisection."""

    GOOD = 0
    BAD = 1
    SKIP = 125
    ABORT = 128


@dataclass(frozen=True)
class Bisection:
    """The question to each commit: is the rule (or known deviation) ``expect`` broken there? None: does it fail?"""

    expect: str | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that does not exist: every commit would be called good."""
        if self.expect is not None and self.expect not in RULES and self.expect not in DEVIATIONS:
            raise UsageError(f"--expect: there is no rule {self.expect}", hint="`medcheck explain` lists them")

    def step(self, result: RunResult) -> tuple[Step, str]:
        """The answer of a run, and in a sentence why.

        A rule that was broken was broken, however the run ended. That it was not can be said only where it was
        checked: a commit on which the board does not even boot is skipped.
        """
        if self.expect is None:
            words = {ExitCode.GOOD: Step.GOOD, ExitCode.FAILED: Step.BAD}
            return words.get(result.code, Step.SKIP), result.report.reason or "the run is good"
        found = result.report.conformance
        if found is not None and _broken(self.expect, found):
            return Step.BAD, f"{self.expect} is broken"
        if found is None or not _checked(self.expect, found):
            return Step.SKIP, f"{self.expect} was never checked: {result.report.reason or 'nothing exercised it'}"
        if result.failure is not None or found.incomplete:
            return Step.SKIP, f"{self.expect} held as far as the run came: {result.report.reason}"
        return Step.GOOD, f"{self.expect} holds"


def _broken(name: str, found: ConformanceResult) -> bool:
    if name in RULES:
        return found.rule(name).verdict == FAIL
    return any(deviation.id == name and deviation.status == SEEN for deviation in found.deviations)


def _checked(name: str, found: ConformanceResult) -> bool:
    if name in RULES:
        return found.rule(name).verdict in (PASS, DEVIATION)
    return any(deviation.id == name for deviation in found.deviations)


def bisect_step(
    bisection: Bisection, run: Callable[[], RunResult], say: Callable[[str], None]
) -> tuple[Step, RunResult | None]:
    """Run one commit and answer for it. What breaks on this commit only (a compiler's error, a patch that does not
    apply, a board that does not boot) skips it; a signal ends the bisection."""
    try:
        result = run()
    except MedcheckError as error:
        say(f"bisect: skipped: {error}")
        return Step.SKIP, None
    if isinstance(result.failure, KeyboardInterrupt):
        say("bisect: interrupted; the bisection ends here")
        return Step.ABORT, result
    step, why = bisection.step(result)
    say(f"bisect: {step.name.lower()}: {why}")
    return step, result

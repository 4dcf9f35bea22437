# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of a report: plain frozen dataclasses that a job fills with its results.

Times are in seconds; times "since power-on" share the clock of the console logs. Status words are kept as the
source printed them, but for what was run again; :func:`outcome` sorts them into the kinds that a report tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from framework.conformance.conclusion import Conclusion
from framework.conformance.result import ConformanceResult

Verdict = Literal["pass", "flaky", "fail", "infrastructure"]
Outcome = Literal["pass", "fail", "skip", "flaky", "lost"]

_OUTCOMES: Mapping[str, Outcome] = {
    "ok": "pass", "pass": "pass", "passed": "pass",
    "fail": "fail", "failed": "fail",
    "skip": "skip", "skipped": "skip",
    "flaky": "flaky",
}  # fmt: skip


def outcome(status: str) -> Outcome:
    """Sort a status word; ``lost`` is what never reached an end (a crash, a hang, a cut stream), and any new word."""
    return _OUTCOMES.get(status.strip().lower(), "lost")


@dataclass(frozen=True)
class Subtest:
    """One xtest subtest, e.g. ``regression_1004.3``; ``error`` is its first error line."""

    id: str
    status: str
    error: str | None = None
    title: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One xtest case; ``seconds`` None if it never ended. ``error``: the first error line of all of it. ``reruns``: the
    statuses of its reruns on fresh clones, if it failed; one that passed there is ``flaky``."""

    id: str
    title: str
    status: str
    seconds: float | None
    subtests: tuple[Subtest, ...] = ()
    error: str | None = None
    reruns: tuple[str, ...] = ()


@dataclass(frozen=True)
class XtestTotals:
    """xtest's own sums in one guest; None where it did not come so far.

    What xtest's summary calls subtests are single checks, many more than the named subtests of the cases.
    ``skipped`` counts cases. ``agree``: the summary, the exit code and the stream say the same.
    """

    cases: int | None
    cases_failed: int | None
    subtests: int | None
    subtests_failed: int | None
    skipped: int | None = 0
    agree: bool = True


@dataclass(frozen=True)
class XtestReport:
    """Run of xtest in one guest; ``exit_code`` None if it never ended.

    ``problems``: sentences about the run as a whole, such as a summary that does not fit the stream.
    """

    cases: tuple[Case, ...]
    totals: XtestTotals
    exit_code: int | None
    problems: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether something ran, all of it passed or was skipped, and xtest itself says so too."""
        return (
            bool(self.cases)
            and self.exit_code == 0
            and self.totals.agree
            and not self.problems
            and self.totals.cases_failed == 0
            and self.totals.subtests_failed == 0
            and all(outcome(case.status) in ("pass", "skip") for case in self.cases)
        )

    @property
    def flaky(self) -> bool:
        """Whether the only fault is that cases failed which passed when they ran again."""
        kinds = {outcome(case.status) for case in self.cases}
        return "flaky" in kinds and kinds <= {"pass", "skip", "flaky"} and not self.problems


@dataclass(frozen=True)
class GuestReport:
    """One guest of the board. ``slowdown``: its xtest time over that of a guest alone, if measured; the largest one
    that a test of the run measured, say beside an attacking neighbour."""

    name: str
    domid: int | None = None
    xtest: XtestReport | None = None
    slowdown: float | None = None


@dataclass(frozen=True)
class ComponentReport:
    """One part of the stack under test; ``origin`` is ``pinned``, ``built`` or ``user``."""

    name: str
    version: str
    sha256: str
    origin: str


@dataclass(frozen=True)
class ConsoleReport:
    """One console and its log: lines that begin with ``[%10.3f] ``, seconds since power-on."""

    name: str
    path: Path


@dataclass(frozen=True)
class Timing:
    """A phase of the run and when it ended, in seconds since power-on."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A panic, assertion or stall on a console: the line's text, when (since power-on), and its number."""

    kind: str
    console: str
    text: str
    at: float | None = None
    line: int | None = None


@dataclass(frozen=True)
class BoardTestReport:
    """One test of ``testcases/`` on a board of its own. ``status`` is passed, failed, error, hang, skipped or flaky
    (failed, and passed in one of its ``reruns``); ``error`` its first line; ``rules`` the rules that its trace
    exercised, with their verdicts (``STD-3=pass``); ``deviations`` what it or the checker saw of the list;
    ``slowdowns`` a guest's xtest time over that of it alone, by guest."""

    id: str
    status: str
    seconds: float
    error: str | None = None
    rules: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    reruns: tuple[str, ...] = ()


def rate(item: Mapping[str, Any]) -> str:
    """Say how often a case or stimulus of a ``report.json`` document failed, reruns included: ``failed 1 of 4 times``;
    empty if it ran once only."""
    if not item.get("reruns"):
        return ""
    failed = 1 + sum(outcome(status) != "pass" for status in item["reruns"])
    return f"failed {failed} of {1 + len(item['reruns'])} times"


@dataclass(frozen=True)
class CoverageReport:
    """How much of one source file of the mediator a run saw. ``branches`` counts the ways that conditional branches of
    the binary may go; ``not_seen`` names lines that did not run, such as ``171-176, 203``."""

    file: str
    lines: int
    lines_seen: int
    branches: int
    branches_seen: int
    functions: int
    functions_seen: int
    not_seen: str = ""


@dataclass(frozen=True)
class RunReport:
    """Report of one run. ``reason`` says in a sentence why the verdict is not ``pass``; ``conformance`` adds up
    all traces of the run, and ``conclusion`` is drawn from it.

    ``started`` is an ISO 8601 time; ``host`` describes the machine without naming it; ``artifacts`` are files
    of the report's folder worth naming; ``reproduce`` is the command line. ``coverage``: by source file of the
    mediator, over all boards of the run; empty when it was not measured.
    """

    verdict: Verdict
    profile: str
    started: str
    seconds: float
    stack: tuple[ComponentReport, ...]
    guests: tuple[GuestReport, ...]
    reproduce: str
    reason: str | None = None
    host: Mapping[str, object] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    problems: tuple[Problem, ...] = ()
    consoles: tuple[ConsoleReport, ...] = ()
    artifacts: tuple[Path, ...] = ()
    conformance: ConformanceResult | None = None
    conclusion: Conclusion | None = None
    tests: tuple[BoardTestReport, ...] = ()
    coverage: tuple[CoverageReport, ...] = ()

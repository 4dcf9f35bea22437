# SPDX-License-Identifier: GPL-2.0-or-later
"""Builder of a run's report and verdict from its findings."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from framework.artifacts.cache import BuildCache
from framework.artifacts.stack import Stack
from framework.common.errors import ExitCode, GuestCrash, TraceError, redacted
from framework.common.paths import cache_root
from framework.conformance.baseline import Baseline
from framework.conformance.conclusion import Conclusion, Kind, conclude
from framework.conformance.merge import merge
from framework.conformance.policy import FailOn
from framework.conformance.result import ConformanceResult
from framework.guests.xtest import XtestResult
from framework.report import model
from framework.report.coverage import cobertura, lcov, source_files
from framework.target.target import Target
from framework.trace.build import xen_layout
from framework.trace.coverage import SUFFIX, merged

COVERAGE_INFO, COVERAGE_XML = "coverage.info", "coverage.xml"
"""The files in the report's folder with the coverage of every line: lcov, Cobertura."""


@dataclass(frozen=True)
class Covered:
    """Coverage over all boards of a run: by source file, the files for the report's folder, what is missing."""

    files: tuple[model.CoverageReport, ...] = ()
    extra: Mapping[str, bytes] = field(default_factory=dict)
    missing: str = ""


def covered(folder: Path, stack: Stack, started: datetime) -> Covered:
    """Add up what the boards of a run left in its ``folder``."""
    if stack.xen_syms is None:
        return Covered()
    try:
        total = merged(sorted(folder.rglob(f"*{SUFFIX}")))
    except TraceError as error:
        return Covered(missing=str(error))
    if total is None:
        return Covered()
    code = xen_layout(BuildCache(cache_root()), stack.xen_syms).code
    if code.ranges != total.ranges:
        return Covered(missing="the coverage in the report's folder is that of another Xen")
    files = source_files(code, total)
    extra = {COVERAGE_INFO: lcov(files), COVERAGE_XML: cobertura(files, round(started.timestamp()))}
    return Covered(tuple(file.report() for file in files), extra)


CODES: Mapping[model.Verdict, ExitCode] = {
    "pass": ExitCode.GOOD,
    # What the trace of a flaky run shows of the mediator conforms.
    "flaky": ExitCode.GOOD,
    "fail": ExitCode.FAILED,
    "infrastructure": ExitCode.INFRASTRUCTURE,
}
"""What each verdict means to whatever started the program."""


@dataclass(frozen=True)
class Found:
    """Findings of a run: xtest's results by guest, the result of each trace (``run``, and the stimuli by id), the
    stimuli, and what ended the run early."""

    xtest: Mapping[str, XtestResult]
    traces: Mapping[str, ConformanceResult]
    tests: tuple[model.BoardTestReport, ...]
    failure: BaseException | None


def report_of(
    found: Found,
    target: Target,
    fail_on: FailOn,
    baseline: Baseline | None,
    profile: str,
    command: Sequence[str],
    started: datetime,
    seconds: float,
    coverage: tuple[model.CoverageReport, ...] = (),
) -> tuple[model.RunReport, ExitCode]:
    """The report, and the exit code that its verdict means."""
    conformance = merge(found.traces) if found.traces else None
    conclusion = None
    if conformance is not None:
        conclusion = conclude(conformance, fail_on, baseline, version_of(target.stack))
    verdict, reason = verdict_of(found, conclusion)
    problems = (model.Problem(p.kind, p.console, p.line, p.at) for p in target.board.problem_log.shown())
    report = model.RunReport(
        verdict=verdict,
        reason=reason,
        profile=profile,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        host=host_facts(),
        stack=tuple(model.ComponentReport(c.name, c.version, c.sha256, c.origin) for c in target.stack.components),
        guests=(*_dom0(found), *(_guest(guest.name, target, found) for guest in target.spec.guests)),
        timings=tuple(model.Timing(phase.name, phase.end) for phase in target.phases),
        problems=tuple(problems),
        consoles=tuple(model.ConsoleReport(name, console.log) for name, console in target.board.consoles.items()),
        artifacts=(target.trace,) if target.trace is not None and target.trace.exists() else (),
        conformance=conformance,
        conclusion=conclusion,
        tests=found.tests,
        coverage=coverage,
        reproduce=redacted(shlex.join(["./medcheck", *command])),
    )
    return report, CODES[verdict]


def version_of(stack: Stack) -> str | None:
    """The version of the mediator under test, as far as the stack knows it: Xen's."""
    return next((component.version for component in stack.components if component.name.startswith("Xen")), None)


def verdict_of(found: Found, conclusion: Conclusion | None) -> tuple[model.Verdict, str | None]:
    """The verdict of a run, and in a sentence why it is not ``pass``.

    What the traces prove comes first, whatever ended the run; then what ended it, then what failed, then what is
    missing.
    """
    failure = found.failure
    reasons = []
    if conclusion is not None and conclusion.failed:
        policy = "" if conclusion.kind is Kind.NONCONFORMING else f" (--fail-on {conclusion.fail_on})"
        reasons.append(f"the mediator {conclusion.sentence}{policy}")
    if failure is not None:
        said = "interrupted" if isinstance(failure, KeyboardInterrupt) else str(failure)
        if not reasons and not isinstance(failure, GuestCrash):
            return "infrastructure", said
        reasons.append(said)
    for name, result in found.xtest.items():
        if not result.good and not result.flaky:
            reasons.append(f"xtest in {name}: {result.reason}")
    bad = [test.id for test in found.tests if test.status not in ("passed", "skipped", "flaky")]
    if bad:
        reasons.append(f"{len(bad)} of {len(found.tests)} tests failed, first {bad[0]}")
    if reasons:
        return "fail", "; ".join(reasons)
    if conclusion is not None and conclusion.kind is Kind.INCOMPLETE:
        return "infrastructure", f"the evidence is {conclusion.sentence}"
    if flaky := _flaky(found):
        kept = "" if conclusion is None else f"; the mediator {conclusion.sentence}"
        return "flaky", f"{', '.join(flaky)}, and passed on fresh boards{kept}"
    return "pass", None


def _flaky(found: Found) -> list[str]:
    """What failed and passed when it ran again, with its rate."""
    cases = [
        f"{case.id} in {name} {model.rate(asdict(case))}"
        for name, result in found.xtest.items()
        for case in result.cases
        if case.status == "flaky"
    ]
    return cases + [f"{test.id} {model.rate(asdict(test))}" for test in found.tests if test.status == "flaky"]


def slowdown_of(guest: str, tests: Sequence[model.BoardTestReport]) -> float | None:
    """The largest slowdown that a test measured of a guest of this name; None: it was not measured."""
    return max((test.slowdowns[guest] for test in tests if guest in test.slowdowns), default=None)


def _dom0(found: Found) -> tuple[model.GuestReport, ...]:
    """dom0, if it was a client."""
    return (model.GuestReport("dom0", 0, found.xtest["dom0"]),) if "dom0" in found.xtest else ()


def _guest(name: str, target: Target, found: Found) -> model.GuestReport:
    guest = target.guests.get(name)
    domid = guest.domid if guest else None
    return model.GuestReport(name, domid, found.xtest.get(name), slowdown_of(name, found.tests))


def host_facts() -> dict[str, object]:
    """What a report tells of the machine: never its name."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }

"""The main job: boot the board, run xtest in every guest at once, write the report."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psutil
import yaml

from framework.artifacts.stack import Overrides, Stack
from framework.board.spec import BoardSpec
from framework.common.errors import ExitCode, GuestCrash, MedcheckError, UsageError
from framework.common.paths import IMAGES
from framework.common.progress import Progress
from framework.common.safe_files import make_own
from framework.common.yaml_source import Source
from framework.conformance.checker import check_file
from framework.conformance.result import INCOMPLETE, ConformanceResult
from framework.guests.xtest import XtestResult, case_ids, run_xtest_in_all
from framework.jobs.testsuite import run_stimuli
from framework.report import model
from framework.report.write import point_latest, write_report
from framework.target.stack import open_store, prepare_stack, with_guests
from framework.target.target import Target


@dataclass(frozen=True)
class Profile:
    """What one run exercises; ``images/profiles.yaml``. ``cases`` None means the whole suite; ``tests`` are
    pytest's arguments that choose from ``testcases/``, none for no tests."""

    name: str
    cases: tuple[str, ...] | None
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunOptions:
    """The choices of ``medcheck run``."""

    profile: str = "standard"
    board: str = "default"
    domus: int | None = None
    xtest: tuple[str, ...] | None = None
    report: Path | None = None
    overrides: Overrides = field(default_factory=Overrides)
    offline: bool = False
    mirrors: str | None = None
    trace: bool = True
    tests: bool = True
    command: Sequence[str] = ()


def profiles(path: Path | None = None) -> dict[str, Profile]:
    """All profiles of ``images/profiles.yaml``, or of ``path``. Raises ConfigError, whatever is wrong with it."""
    source = Source(path or IMAGES / "profiles.yaml")
    result = {}
    for name, node in source.mapping(source.root(), "the profiles").items():
        entry = source.record(node, f"profile {name}", ("cases",), ("tests",))
        everything = isinstance(entry["cases"], yaml.ScalarNode) and entry["cases"].value == "all"
        cases = None if everything else _words(source, entry["cases"], f"profile {name}: cases")
        tests = _words(source, entry["tests"], f"profile {name}: tests") if "tests" in entry else ()
        result[name] = Profile(name, cases, tests)
    return result


def _words(source: Source, node: yaml.Node, what: str) -> tuple[str, ...]:
    return tuple(source.text(item, what) for item in source.items(node, what))


def run(options: RunOptions, progress: Progress) -> tuple[ExitCode, Path]:
    """Do the main job; returns the exit code and the report's folder.

    A usage error is raised before anything is fetched or boots, a download or build that fails before there is a
    board; whatever goes wrong afterwards ends up in a report.
    """
    known = profiles()
    if options.profile not in known:
        raise UsageError(f"no profile {options.profile}", hint=f"one of {', '.join(known)}")
    cases = known[options.profile].cases if options.xtest is None else options.xtest
    if not case_ids(cases) and options.xtest is not None:
        raise UsageError("--xtest names no case", hint="such as --xtest 1004,6001")
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    if options.report is not None:
        _make_folder(options.report)
    stack = prepare_stack(options.overrides, open_store(options.offline, options.mirrors, progress), progress)
    started = datetime.now(UTC)
    folder = options.report or Path("reports") / started.strftime("%Y%m%d-%H%M%S")
    _make_folder(folder)
    begin = time.monotonic()
    target = Target(spec, stack, folder, trace=options.trace)
    results: Mapping[str, XtestResult] = {}
    conformance: ConformanceResult | None = None
    tests: tuple[model.BoardTestReport, ...] = ()
    failure: BaseException | None = None
    try:
        with target:
            target.boot(progress)
            results = _exercise(target, cases, progress)
            alive = target.board.alive
        if target.trace is not None:
            conformance = check_file(target.trace, progress, board_alive=alive)
        if options.tests and options.xtest is None and known[options.profile].tests:
            chosen = known[options.profile].tests
            tests = run_stimuli(chosen, options.overrides, options.board, options.domus, folder, progress)
    except (MedcheckError, OSError, KeyboardInterrupt) as error:
        failure = error
    seconds = time.monotonic() - begin
    report = _report(options, spec, stack, target, results, conformance, tests, failure, started, seconds)
    write_report(report, folder)
    if options.report is None:
        point_latest(folder.parent, folder)
    if failure is not None:
        raise failure
    return (ExitCode.GOOD if report.verdict == "pass" else ExitCode.FAILED), folder


def _make_folder(folder: Path) -> None:
    try:
        make_own(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"no report can be written there: {error.strerror}",
            where=str(folder),
            hint="name another folder: --report DIR",
        ) from error


def _exercise(target: Target, cases: Sequence[str] | None, progress: Progress) -> Mapping[str, XtestResult]:
    guests = list(target.guests.values())
    total = None if cases is None else len(cases) * len(guests)
    with progress.task(f"xtest in {len(guests)} guests", total=total, unit="cases") as task:
        return run_xtest_in_all(guests, cases, on_case=lambda _guest, _case: task.advance(), alive=target.check_alive)


def _report(
    options: RunOptions, spec: BoardSpec, stack: Stack, target: Target, results: Mapping[str, XtestResult],
    conformance: ConformanceResult | None, tests: tuple[model.BoardTestReport, ...],
    failure: BaseException | None, started: datetime, seconds: float,
) -> model.RunReport:  # fmt: skip
    guests = tuple(
        _guest(name, target, results.get(name), slowdown_of(name, tests)) for name in (g.name for g in spec.guests)
    )
    problems = [model.Problem(p.kind, p.console, p.line, p.at) for p in target.board.problems]
    verdict, reason = _verdict(results, conformance, tests, failure)
    return model.RunReport(
        verdict=verdict,
        reason=reason,
        profile=options.profile,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        host=_host(),
        stack=tuple(model.ComponentReport(c.name, c.version, c.sha256, c.origin) for c in stack.components),
        guests=guests,
        timings=tuple(model.Timing(phase.name, phase.end) for phase in target.phases),
        problems=tuple(problems),
        consoles=tuple(model.ConsoleReport(name, console.log) for name, console in target.board.consoles.items()),
        artifacts=(target.trace,) if target.trace is not None and target.trace.exists() else (),
        conformance=_conformance(conformance),
        tests=tests,
        reproduce=shlex.join(["./medcheck", *options.command]),
    )


def _verdict(
    results: Mapping[str, XtestResult],
    conformance: ConformanceResult | None,
    tests: Sequence[model.BoardTestReport],
    failure: BaseException | None,
) -> tuple[model.Verdict, str | None]:
    if failure is not None:
        reason = "interrupted" if isinstance(failure, KeyboardInterrupt) else str(failure)
        return ("fail" if isinstance(failure, GuestCrash) else "infrastructure"), reason
    reasons = [f"xtest in {name}: {result.reason}" for name, result in results.items() if not result.good]
    if conformance is not None and conformance.verdict == INCOMPLETE:
        reasons.append(f"the trace is incomplete: {conformance.gaps[-1]}")
    elif conformance is not None and conformance.verdict != "pass":
        broken = [rule.id for rule in conformance.rules if rule.failed]
        reasons.append(f"the mediator does not conform: {', '.join(broken) or 'nothing could be checked'}")
    bad = [test.id for test in tests if test.status not in ("passed", "skipped")]
    if bad:
        reasons.append(f"{len(bad)} of {len(tests)} tests failed, first {bad[0]}")
    return ("fail", "; ".join(reasons)) if reasons else ("pass", None)


def slowdown_of(guest: str, tests: Sequence[model.BoardTestReport]) -> float | None:
    """The largest slowdown that a test measured of a guest of this name; None: nobody did."""
    return max((test.slowdowns[guest] for test in tests if guest in test.slowdowns), default=None)


def _guest(name: str, target: Target, result: XtestResult | None, slowdown: float | None = None) -> model.GuestReport:
    guest = target.guests.get(name)
    return model.GuestReport(name, guest.domid if guest else None, _xtest(result), slowdown)


def _xtest(result: XtestResult | None) -> model.XtestReport | None:
    if result is None:
        return None
    cases = tuple(
        model.CaseReport(
            case.id, case.title, case.status, case.seconds,
            tuple(model.SubtestReport(sub.id, sub.status, sub.error, sub.title) for sub in case.subtests),
            case.error,
        )
        for case in result.cases
    )  # fmt: skip
    # The parser's counts are whole numbers or None, and `agree` is a truth value.
    totals = model.TotalsReport(**cast(Any, result.totals))
    return model.XtestReport(cases, totals, result.exit_code, problems=tuple(result.problems))


def _conformance(result: ConformanceResult | None) -> model.ConformanceReport | None:
    if result is None:
        return None
    rules = tuple(
        model.RuleReport(
            r.id,
            r.title,
            r.severity,
            cast(model.RuleVerdict, r.verdict),
            r.passed + r.failed + r.deviations,
            r.failed,
            r.not_checked,
            r.not_checked_reasons,
        )
        for r in result.rules
    )
    found = tuple(
        model.NonconformanceReport(n.rule, n.event, n.expected, n.observed, n.explanation)
        for n in result.nonconformances
    )
    deviations = tuple(
        model.DeviationReport(
            d.id, d.rule, "seen" if d.status == "seen" else "not seen", d.evidence, d.report_privately
        )
        for d in result.deviations
    )
    return model.ConformanceReport(result.events_checked, rules, found, deviations)


def _host() -> dict[str, object]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }

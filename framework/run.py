"""The main job: boot the board, run xtest in every guest at once, write the report."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml

from framework.artifacts.stack import Overrides, Stack
from framework.board.spec import BoardSpec
from framework.errors import ConfigError, ExitCode, GuestCrash, MedcheckError, UsageError
from framework.guests.xtest import XtestResult, run_xtest_in_all
from framework.paths import IMAGES
from framework.progress import Progress
from framework.report import model
from framework.report.write import point_latest, write_report
from framework.session import Session, open_store, prepare_stack, with_guests


@dataclass(frozen=True)
class Profile:
    """What one run exercises; ``images/profiles.yaml``. ``cases`` None means the whole suite."""

    name: str
    cases: tuple[str, ...] | None


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
    command: Sequence[str] = ()


def profiles() -> dict[str, Profile]:
    """All profiles of ``images/profiles.yaml``."""
    path = IMAGES / "profiles.yaml"
    loaded = yaml.safe_load(path.read_text())
    result = {}
    for name, raw in loaded.items():
        cases = raw.get("cases") if isinstance(raw, dict) else None
        if cases != "all" and not isinstance(cases, list):
            raise ConfigError(f"profile {name}: cases must be a list or `all`", where=str(path))
        result[name] = Profile(name, None if cases == "all" else tuple(str(case) for case in cases))
    return result


def run(options: RunOptions, progress: Progress) -> tuple[ExitCode, Path]:
    """Do the main job; returns the exit code and the report's folder.

    A usage error is raised before anything is made; whatever goes wrong afterwards ends up in a report.
    """
    known = profiles()
    if options.profile not in known:
        raise UsageError(f"no profile {options.profile}", hint=f"one of {', '.join(known)}")
    cases = options.xtest or known[options.profile].cases
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    stack = prepare_stack(options.overrides, open_store(options.offline, options.mirrors, progress), progress)
    started = datetime.now(UTC)
    folder = options.report or Path("reports") / started.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    session = Session(spec, stack, folder)
    results: Mapping[str, XtestResult] = {}
    failure: BaseException | None = None
    try:
        with session:
            session.boot(progress)
            results = _exercise(session, cases, progress)
    except (MedcheckError, KeyboardInterrupt) as error:
        failure = error
    report = _report(options, spec, stack, session, results, failure, started, time.monotonic() - begin)
    write_report(report, folder)
    if options.report is None:
        point_latest(folder.parent, folder)
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    if failure is not None:
        raise failure
    return (ExitCode.GOOD if report.verdict == "pass" else ExitCode.FAILED), folder


def _exercise(session: Session, cases: Sequence[str] | None, progress: Progress) -> Mapping[str, XtestResult]:
    guests = list(session.guests.values())
    total = None if cases is None else len(cases) * len(guests)
    with progress.task(f"xtest in {len(guests)} guests", total=total, unit="cases") as task:
        return run_xtest_in_all(
            guests, cases, on_case=lambda _guest, _case: task.advance(), alive=session.check_alive
        )


def _report(
    options: RunOptions, spec: BoardSpec, stack: Stack, session: Session, results: Mapping[str, XtestResult],
    failure: BaseException | None, started: datetime, seconds: float,
) -> model.RunReport:  # fmt: skip
    guests = tuple(_guest(name, session, results.get(name)) for name in (g.name for g in spec.guests))
    problems = [model.Problem(p.kind, p.console, p.line, p.at) for p in session.board.problems]
    reason = None
    if failure is not None:
        if isinstance(failure, GuestCrash):
            verdict = "fail"
        else:
            verdict = "infrastructure"
        reason = "interrupted" if isinstance(failure, KeyboardInterrupt) else str(failure)
    else:
        bad = [g.name for g in guests if g.xtest is None or not g.xtest.good]
        verdict = "fail" if bad else "pass"
        reason = f"xtest failed in {', '.join(bad)}" if bad else None
    return model.RunReport(
        verdict=verdict,
        reason=reason,
        profile=options.profile,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        host=_host(),
        stack=tuple(model.ComponentReport(c.name, c.version, c.sha256, c.origin) for c in stack.components),
        guests=guests,
        timings=tuple(model.Timing(phase.name, phase.end) for phase in session.phases),
        problems=tuple(problems),
        consoles=tuple(
            model.ConsoleReport(name, console.log) for name, console in session.board.consoles.items()
        ),
        reproduce=shlex.join(["./medcheck", *options.command]),
    )


def _guest(name: str, session: Session, result: XtestResult | None) -> model.GuestReport:
    guest = session.guests.get(name)
    return model.GuestReport(name=name, domid=guest.domid if guest else None, xtest=_xtest(result))


def _xtest(result: XtestResult | None) -> model.XtestReport | None:
    if result is None:
        return None
    cases = tuple(
        model.CaseReport(
            case.id, case.title, case.status, case.seconds,
            tuple(model.SubtestReport(sub.id, sub.status, sub.error) for sub in case.subtests),
        )
        for case in result.cases
    )  # fmt: skip
    return model.XtestReport(cases, result.totals, result.exit_code)


def _host() -> dict[str, object]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
    }

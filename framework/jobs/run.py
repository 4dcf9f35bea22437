# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: boot the board, run xtest in every guest at once, then the stimuli, and draw one conclusion."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.artifacts.stack import Overrides
from framework.board.spec import BoardSpec
from framework.common.errors import ExitCode, InfrastructureError, MedcheckError, UsageError
from framework.common.paths import atomic_write_text
from framework.common.progress import Progress
from framework.common.safe_files import make_own
from framework.conformance.baseline import load_baseline
from framework.conformance.checker import check_file
from framework.conformance.policy import FailOn
from framework.conformance.result import ConformanceResult
from framework.guests.xtest import XtestGuest, XtestResult, case_ids, run_xtest_in_all
from framework.jobs import reruns
from framework.jobs.live_watch import LiveWatch
from framework.jobs.profiles import profiles
from framework.jobs.run_report import Found, covered, report_of
from framework.jobs.testsuite import path_of, results_of_stimuli, run_stimuli
from framework.report.model import BoardTestReport, RunReport
from framework.report.write import point_latest, write_report
from framework.snapshot.store import SnapshotStore
from framework.target.checkpoints import clone_target
from framework.target.liveness import Hypervisor, hypervisor_of, xen_died
from framework.target.stack import open_store, prepare_stack, with_guests
from framework.target.target import Target
from framework.trace.senses import chosen

TRACEBACK = "traceback.txt"
"""The file in the report's folder with what an unexpected exception left."""


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
    senses: str | None = None
    fail_on: FailOn = FailOn.NONCONFORMANCE
    baseline: Path | None = None
    fail_fast: bool = False
    reruns: int = reruns.DEFAULT
    command: Sequence[str] = ()


@dataclass(frozen=True)
class RunResult:
    """Result of a run: the report, its JSON document as written into ``folder``, and the exit code it means.

    ``failure`` is what ended the run early, if anything did.
    """

    report: RunReport
    document: Mapping[str, Any]
    folder: Path
    code: ExitCode
    failure: BaseException | None = None


def run(options: RunOptions, progress: Progress) -> RunResult:
    """Run the main job. A run that breaks off has a report, too, and its trace is checked as far as it came.

    Raises UsageError before anything is fetched or boots, and the error of a download or build that fails before
    there is a board. Whatever goes wrong afterwards is the result's ``failure``.
    """
    known = profiles()
    if options.profile not in known:
        raise UsageError(f"no profile {options.profile}", hint=f"one of {', '.join(known)}")
    profile = known[options.profile]
    senses = chosen(options.senses or profile.senses)
    cases = profile.cases if options.xtest is None else options.xtest
    if not case_ids(cases) and options.xtest is not None:
        raise UsageError("--xtest names no case", hint="such as --xtest 1004,6001")
    baseline = None if options.baseline is None else load_baseline(options.baseline)
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    if options.report is not None:
        _make_folder(options.report)
    store = open_store(options.offline, options.mirrors, progress)
    stack = prepare_stack(options.overrides, store, progress, cpu=spec.cpu)
    started = datetime.now(UTC)
    folder = options.report or Path("reports") / started.strftime("%Y%m%d-%H%M%S")
    _make_folder(folder)
    begin = time.monotonic()
    live = LiveWatch(progress, fail_fast=options.fail_fast) if options.trace else None
    target = Target(spec, stack, folder, trace=options.trace, lockstep=live.socket if live else None, senses=senses)
    if live is not None:
        live.watch(target)
    xtest: Mapping[str, XtestResult] = {}
    tests: tuple[BoardTestReport, ...] = ()
    traces: dict[str, ConformanceResult] = {}
    failure: BaseException | None = None
    hypervisor = Hypervisor(None)
    try:
        with live or nullcontext(), target:
            target.boot(progress, wait=False)
            # Cases of the user's choice are for the domUs.
            xtest = _exercise(target, cases, profile.dom0 if options.xtest is None else (), progress)
            hypervisor = hypervisor_of(target)
    except BaseException as error:
        failure = _expected(error, folder)
        hypervisor = Hypervisor(False if xen_died(target) else None)
    try:
        # Even of a run that broke off, and before any other verdict on it: the trace may name the broken rule.
        if target.trace is not None and target.trace.exists():
            judged = live.result(target.trace, hypervisor.alive) if live else None
            traces["run"] = judged or check_file(
                target.trace, progress, board_alive=hypervisor.alive, memory_free=hypervisor.memory_free
            )
        if failure is None and not any(result.failed for result in traces.values()):
            rerun = _run_again(target, xtest, cases, options, progress)
            xtest = rerun.xtest
            traces |= rerun.traces
        if failure is None and options.tests and options.xtest is None and profile.tests:
            # What this run had, even if a tree has been edited meanwhile.
            same = stack.frozen(options.overrides)

            def stimuli(selection: Sequence[str], place: Path) -> tuple[BoardTestReport, ...]:
                where = options.board, options.domus, place
                return run_stimuli(selection, same, *where, progress, senses, fail_fast=options.fail_fast)

            tests = stimuli(profile.tests, folder)
            traces |= results_of_stimuli(folder)

            def again(failed: Sequence[str], number: int) -> tuple[BoardTestReport, ...]:
                place = folder / "reruns" / f"stimuli-{number}"
                found = stimuli([path_of(id_) for id_ in failed], place)
                traces.update({f"{id_} (rerun {number})": part for id_, part in results_of_stimuli(place).items()})
                return found

            tests = reruns.rerun_stimuli(tests, traces, again, options.reruns)
    except BaseException as error:
        failure = failure or _expected(error, folder)
    found = Found(xtest, traces, tests, failure)
    coverage = covered(folder, target.stack, started)
    if coverage.missing:
        progress.say(f"no coverage: {coverage.missing}")
    report, code = report_of(
        found, target, options.fail_on, baseline, options.profile, options.command, started, time.monotonic() - begin,
        coverage.files,
    )  # fmt: skip
    document = write_report(report, folder, coverage.extra)
    if options.report is None:
        point_latest(folder.parent, folder)
    return RunResult(report, document, folder, code, failure)


def _run_again(
    target: Target, xtest: Mapping[str, XtestResult], cases: Sequence[str] | None, options: RunOptions,
    progress: Progress,
) -> reruns.Rerun:  # fmt: skip
    """Run the cases that failed on this board again, on clones of a board that is like it."""
    spec, stack, folder = target.spec, target.stack, target.board.run_dir

    def clone(name: str) -> Target:
        store = SnapshotStore(progress=progress)
        return clone_target(store, spec, stack, folder / "reruns" / name, trace=options.trace, progress=progress)

    return reruns.rerun_cases(xtest, cases, clone, options.reruns, progress)


def _expected(error: BaseException, folder: Path) -> BaseException:
    """Return the error itself if it is one that a run may end with; else one that names the traceback's file."""
    if isinstance(error, MedcheckError | OSError | KeyboardInterrupt):
        return error
    if not isinstance(error, Exception):
        raise error
    path = folder / TRACEBACK
    atomic_write_text(path, "".join(traceback.format_exception(error)))
    what = f"an unexpected {type(error).__name__}: {error}; this is a defect of medcheck"
    return InfrastructureError(what, where=str(path), hint="the file has the traceback; please report it")


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


def _exercise(
    target: Target, cases: Sequence[str] | None, dom0: Sequence[str], progress: Progress
) -> Mapping[str, XtestResult]:
    """Run ``cases`` in every domU as soon as it is ready, and those of ``dom0`` in dom0, if any, at the same time."""
    guests: list[XtestGuest] = list(target.guests.values())
    total = None if cases is None else len(cases) * len(guests) + len(dom0)
    own = {target.dom0.name: dom0} if dom0 else {}
    if dom0:
        guests.insert(0, target.dom0)

    def make_ready(guest: XtestGuest) -> None:
        if guest.name in target.guests:
            target.wait_ready(guest.name)
        else:
            target.dom0.become_client()

    with progress.task(f"xtest in {len(guests)} domains", total=total, unit="cases") as task:
        return run_xtest_in_all(
            guests, cases, own=own, make_ready=make_ready, on_case=lambda _guest, _case: task.advance(),
            alive=target.check_alive,
        )  # fmt: skip

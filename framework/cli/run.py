# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck run``: argument parsing, the report in words, and ``git bisect``'s exit codes."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.cli.check import add_policy
from framework.common.errors import MedcheckError, UsageError
from framework.common.terminal import Output

if TYPE_CHECKING:
    from framework.jobs.run import RunOptions, RunResult


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser) -> None:
    """Add ``run``; it sets ``handler``, a function of options and output."""
    text = "boot the board, run xtest in all domUs at once, write a report"
    command = subparsers.add_parser("run", help=text, description=text, parents=parents)
    add_options(command)
    command.add_argument(
        "--bisect",
        action="store_true",
        help="exit codes for `git bisect run`: 0 good, 1 bad, 125 cannot be decided here",
    )
    command.add_argument("--expect", metavar="RULE", help="with --bisect: bad is where this rule (STD-6, D8) is broken")
    command.set_defaults(handler=_run)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what a run can be told beside its parts under test; :func:`run_options` understands it."""
    command.add_argument("--profile", default="standard", help="smoke, standard (default) or nightly")
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--domus", type=int, metavar="N", help="number of Linux domUs")
    command.add_argument("--xtest", metavar="CASES", help="xtest regression cases, comma separated, e.g. 1004,6001")
    command.add_argument("--report", type=_path, metavar="DIR", help="default: reports/<time>")
    command.add_argument("--no-tests", action="store_true", help="leave out the profile's exact and hostile stimuli")
    command.add_argument("--no-trace", action="store_true", help="neither record nor check the SMCs")
    command.add_argument(
        "--senses", metavar="WORDS",
        help="what the trace shows beside the calls: coverage, reads, time, books, frames, heap, partition, comma "
        "separated; all or none (default: the profile's, else all)",
    )  # fmt: skip
    command.add_argument("-x", "--fail-fast", action="store_true", help="end the run at the first nonconformance")
    command.add_argument(
        "--reruns", type=_count, default=3, metavar="N", help="runs again of what failed, on fresh boards (default 3)"
    )
    add_policy(command)


def run_options(options: argparse.Namespace) -> RunOptions:
    """The run that parsed arguments ask for."""
    from framework.artifacts.stack import Overrides
    from framework.conformance.policy import FailOn
    from framework.jobs.run import RunOptions

    return RunOptions(
        profile=options.profile,
        board=options.board,
        domus=options.domus,
        xtest=None if options.xtest is None else tuple(filter(None, options.xtest.split(","))),
        report=options.report or _report_beside(options.xen_tree, options.optee_tree),
        overrides=Overrides.given(vars(options)),
        offline=options.offline,
        mirrors=options.mirror,
        trace=not options.no_trace,
        tests=not options.no_tests,
        senses=options.senses,
        fail_on=FailOn(options.fail_on),
        baseline=options.baseline,
        fail_fast=options.fail_fast,
        reruns=options.reruns,
        command=options.arguments,
    )


def _run(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.bisect import Bisection, Step, bisect_step
    from framework.jobs.run import run

    if options.expect is not None and not options.bisect:
        raise UsageError("--expect goes with --bisect", hint="--fail-on says what makes other runs fail")
    chosen = run_options(options)
    if not options.bisect:
        return _show_run(run(chosen, output.progress), options, output)
    try:
        bisection = Bisection(options.expect)
    except UsageError as error:
        output.error(error)
        return Step.ABORT
    step, result = bisect_step(bisection, lambda: run(chosen, output.progress), output.say)
    if result is not None:
        _show_run(replace(result, failure=None), options, output)
    return step


def _report_beside(*trees: Path | None) -> Path | None:
    """Where the report goes when this folder lies in one of the user's trees, where it would become a part of it."""
    if not any(tree is not None and Path.cwd().is_relative_to(tree.resolve()) for tree in trees):
        return None
    from framework.common.paths import cache_root

    return cache_root() / "reports" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())


def _show_run(result: RunResult, options: argparse.Namespace, output: Output) -> int:
    from framework.report.markdown import summary

    if options.json:
        output.document(result.document)
    else:
        output.result(summary(result.document))
        output.result(f"report: {result.folder / 'index.html'}")
    if isinstance(result.failure, KeyboardInterrupt | OSError):
        raise result.failure
    if isinstance(result.failure, MedcheckError):
        output.error(result.failure)
    return result.code


def _path(text: str) -> Path:
    """argparse's type of a file or folder: an empty name (of an unset variable, say) is not this folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found nothing")
    return Path(text)


def _count(text: str) -> int:
    """argparse's type of a small number."""
    if not text.isdecimal() or len(text) > 2:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 99, found '{text}'")
    return int(text)

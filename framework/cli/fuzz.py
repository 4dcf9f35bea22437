# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck fuzz``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from framework.cli.arguments import seconds, whole
from framework.common.errors import ExitCode, UsageError
from framework.common.terminal import Output

_TEXT = "run programs that no person wrote, and have the reference judge them"
_MORE = """Programs of calls, answers to requests, changes of memory and the death of domains run in live clones. What
breaks a rule and is no known deviation is made small, reproduced on fresh boards, and written as a pytest file. Exit
code 1 when something was found."""


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """Add ``fuzz`` to the program's subcommands; see :func:`framework.cli.snapshot.add_parser`."""
    command = subparsers.add_parser("fuzz", help=_TEXT, description=f"{_TEXT}. {_MORE}", parents=[*parents, stack])
    command.add_argument("--time", type=seconds, default=0.0, metavar="T", help="90s, 30m or 2h (default 30m)")
    command.add_argument("--programs", type=whole, default=0, metavar="N", help="end after so many programs")
    command.add_argument("--seed", type=whole, default=1, metavar="N", help="which programs (default 1)")
    command.add_argument(
        "--reproduce", type=whole, default=20, metavar="N", help="fresh boards for each finding (default 20)"
    )
    command.add_argument("--on", metavar="NAMES", help="probe, probe_smp, probe_pair; comma separated (default: all)")
    command.add_argument("-r", dest="again", type=Path, metavar="FILE", help="run a finding's program again instead")
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--report", type=Path, default=Path("reports/fuzz"), metavar="DIR", help="reports/fuzz")
    command.set_defaults(handler=_fuzz)


def _fuzz(options: argparse.Namespace, output: Output) -> int:
    try:
        from framework.fuzz.job import FuzzOptions, run
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise UsageError("this needs the package hypothesis", hint="pip install 'medcheck[fuzz]'") from error
    from framework.artifacts.overrides import Overrides

    if not options.reproduce:
        raise UsageError("--reproduce 0 would prove nothing", hint="1 or more")
    duration = options.time if options.time or options.programs else 1800.0
    chosen = FuzzOptions(
        Overrides.given(vars(options)), options.offline, options.mirror, options.board, options.seed, duration,
        options.programs, options.reproduce, tuple(filter(None, (options.on or "").split(","))), options.again,
        options.report.absolute(),
    )  # fmt: skip
    outcome = run(chosen, output.progress)
    output.finish(outcome.document, outcome.text)
    return ExitCode(outcome.code)

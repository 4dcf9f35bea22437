# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck mutants``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from framework.cli.arguments import seconds, whole
from framework.common.errors import ExitCode, UsageError
from framework.common.terminal import Output

_TEXT = "change the mediator in a thousand ways, and count which changes the suite notices"
_MORE = """One Xen holds all mutants, each behind a number in its memory. A campaign that was interrupted goes on where
it was. Exit code 1 when a seeded fault lives, or a change without effect was killed."""


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """Add ``mutants`` to the program's subcommands; see :func:`framework.cli.snapshot.add_parser`."""
    command = subparsers.add_parser("mutants", help=_TEXT, description=f"{_TEXT}. {_MORE}", parents=[*parents, stack])
    command.add_argument("--sample", type=whole, default=0, metavar="N", help="only so many, drawn by --seed")
    command.add_argument("--seed", type=whole, default=1, metavar="N", help="which, and in which order (default 1)")
    command.add_argument("--time", type=seconds, default=0.0, metavar="T", help="begin nothing after 90s, 30m or 2h")
    command.add_argument(
        "--most", type=whole, default=0, metavar="N", help="tests for each mutant (default: all that reach it)"
    )
    command.add_argument("--workers", type=whole, default=1, metavar="N", help="boards at once (default 1)")
    command.add_argument("--operators", metavar="NAMES", help="comma separated; --list shows them (default: all)")
    command.add_argument("--seeded", action="store_true", help="the faults of testcases/faults instead of operators")
    command.add_argument("--list", action="store_true", help="list the operators, or with --seeded the faults")
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--report", type=Path, default=Path("reports/mutants"), metavar="DIR", help="reports/mutants")
    command.add_argument("-k", dest="keyword", metavar="WORDS", help="only tests whose names match, as in pytest")
    command.set_defaults(handler=_mutants)


def _mutants(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.overrides import Overrides
    from framework.mutants.faults import load
    from framework.mutants.job import MutantOptions, run
    from framework.mutants.operators import OPERATORS
    from framework.mutants.report import summary

    if options.list:
        rows = {fault.id: fault.what for fault in load()} if options.seeded else {}
        rows = rows or {operator.name: operator.text for operator in OPERATORS.values()}
        width = max(map(len, rows))
        output.finish(rows, "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))
        return ExitCode.GOOD
    operators = tuple(OPERATORS)
    if options.operators is not None:
        operators = tuple(filter(None, options.operators.split(",")))
        if options.seeded or not operators:
            raise UsageError("--operators names operators, and --seeded runs none", hint="leave one of them out")
    if not options.workers:
        raise UsageError("--workers 0 would run nothing", hint="1 or more")
    chosen = MutantOptions(
        Overrides.given(vars(options)), options.offline, options.mirror, options.board, options.sample, options.seed,
        options.time, options.most, options.workers, operators, options.seeded, options.report.absolute(),
        ("-m", "not nightly", *(("-k", options.keyword) if options.keyword else ())),
    )  # fmt: skip
    outcome = run(chosen, output.progress)
    lines = [summary(outcome.mutants, outcome.verdicts), *outcome.wrong, f"report: {chosen.folder}"]
    if outcome.unfit:
        lines.insert(1, f"tests that fail without any mutant, and count for none: {', '.join(outcome.unfit)}")
    document = {
        "report": str(chosen.folder / "mutants.json"), "unfit": outcome.unfit, "wrong": outcome.wrong,
        "verdicts": {outcome.mutants[n].id: v.status.value for n, v in sorted(outcome.verdicts.items())},
    }  # fmt: skip
    output.finish(document, "\n".join(lines))
    return outcome.code

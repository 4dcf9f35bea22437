# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck check FILE`` and ``medcheck explain [RULE]``: argument parsing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.artifacts.overrides import add_options
from framework.common.progress import Answer
from framework.conformance.policy import FailOn


def add_parser(subparsers: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Add ``check`` and ``explain``; each sets ``handler``, a function of options and output."""
    text = "check a recorded trace against the reference mediator"
    check: argparse.ArgumentParser = subparsers.add_parser(
        "check",
        help=text,
        description=f"{text}. Exit code 0: it conforms, apart from known deviations; 1: it does not; 2: the "
        "file is not a trace; 3: the trace is damaged, or nothing in it can be checked.",
        parents=list(parents),
    )
    check.add_argument("file", type=Path, metavar="FILE", help="a trace, e.g. reports/latest/trace/board.trace")
    check.add_argument("--strict", action="store_true", help="count known deviations as nonconformances")
    check.add_argument("--record", type=int, metavar="N", help="stop at record N and explain what is decided there")
    check.add_argument("--segment", type=int, default=1, metavar="N", help="the run of the plugin, with --record")
    add_policy(check)
    group = check.add_argument_group("the Xen that was traced", "waivers of --baseline may name its version")
    add_options(group.add_argument, "--", argparse.ArgumentTypeError, ("xen", "xen-tree", "xen-rev"))
    check.set_defaults(handler=_check)

    text = "explain a rule or a known deviation, with a good and a bad example"
    explain: argparse.ArgumentParser = subparsers.add_parser(
        "explain", help=text, description=f"{text}. Without a name: list them.", parents=list(parents)
    )
    explain.add_argument("rule", nargs="?", metavar="RULE", help="e.g. STD-6 or D8")
    explain.add_argument(
        "--table", action="store_true", help="all rules with sources and tests in Markdown, as in docs/rules.md"
    )
    explain.set_defaults(handler=_explain)


def add_policy(command: argparse.ArgumentParser) -> None:
    """Add the options that say what of a result makes a command fail."""
    command.add_argument(
        "--fail-on",
        choices=[str(policy) for policy in FailOn],
        default=str(FailOn.NONCONFORMANCE),
        help="what makes it fail: a nonconformance (default), also a known deviation that breaks isolation, or any",
    )
    command.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="the known deviations that are accepted, each with a reason and an end; others fail (docs/conformance.md)",
    )


def _check(options: argparse.Namespace, output: Answer) -> int:
    from framework.jobs.check import check

    return check(options, output)


def _explain(options: argparse.Namespace, output: Answer) -> int:
    from framework.jobs.check import explain

    return explain(options, output)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck compare A B``: argument parsing, and differences in words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from framework.common.errors import ExitCode
from framework.common.terminal import Output


def add_parser(subparsers: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Add ``compare``; it sets ``handler``, a function of options and output."""
    text = "show what differs between two reports, or two matrices"
    command: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        help=text,
        description=f"{text}: the parts under test, rules, known deviations, xtest, stimuli and times. Exit code 1 "
        "when something is worse in B than in A; such lines begin with '!'.",
        parents=list(parents),
    )
    for name in ("A", "B"):
        command.add_argument(
            name.lower(), type=Path, metavar=name, help="a report's folder or its report.json, or a matrix's"
        )
    command.set_defaults(handler=_compare)


def _compare(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.compare import compare_all
    from framework.report.facts import load_facts

    found = compare_all(load_facts(options.a), load_facts(options.b))
    worse = sum(difference.worse for difference in found)
    summary = f"{len(found)} differences, {worse} for the worse" if found else "no differences"
    rows = [asdict(difference) for difference in found]
    output.finish({"differences": rows, "worse": worse}, "\n".join([*map(str, found), summary]))
    return ExitCode.FAILED if worse else ExitCode.GOOD

# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck matrix``: argument parsing, and the table in words."""

from __future__ import annotations

import argparse
from typing import Any

from framework.cli.run import add_options, run_options
from framework.common.terminal import Output


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser) -> None:
    """Add ``matrix``; it sets ``handler``, a function of options and output."""
    text = "make the same run for many versions of Xen, one table"
    command: argparse.ArgumentParser = subparsers.add_parser(
        "matrix",
        help=text,
        description=f"{text}. A run that is known by the content of all that decides it is not made again. Exit code 1 "
        "when a run fails, 3 when none fails and one cannot be decided. --cc takes several compilers, with commas.",
        parents=parents,
    )
    command.add_argument(
        "--revs", type=_names, default=(), metavar="A,B,…", help="commits of --xen-tree (default: the tree as it is)"
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="have the workers of this Dask cluster make the runs (tcp://HOST:PORT)"
    )
    add_options(command)
    command.set_defaults(handler=_matrix)


def _names(text: str) -> tuple[str, ...]:
    """argparse's type of several names: at least one, none empty."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between, found {text!r}")
    return names


def _matrix(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.matrix import MatrixOptions, matrix
    from framework.report.matrix import summary

    compilers = tuple(filter(None, (options.cc or "").split(",")))
    result = matrix(MatrixOptions(run_options(options), options.revs, compilers, options.scheduler), output.progress)
    if options.json:
        output.document(result.document)
    else:
        output.result(summary(result.document))
        output.result(f"report: {result.folder / 'index.html'}")
    return result.code

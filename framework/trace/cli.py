"""``medcheck trace show|stats|diff|export``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.errors import ExitCode
from framework.trace.diff import diff
from framework.trace.export import export
from framework.trace.reader import Reader
from framework.trace.show import Filter, show
from framework.trace.stats import collect


def add_parser(subparsers: Any) -> None:
    """Add ``trace`` to the program's subcommands; each sets ``run``: a function of the arguments that gives
    an exit code."""
    trace: argparse.ArgumentParser = subparsers.add_parser("trace", help="look into recorded traces")
    commands = trace.add_subparsers(dest="trace_command", required=True, metavar="COMMAND")

    shown = commands.add_parser("show", help="print the calls in the ABI's own words")
    _file(shown)
    shown.add_argument("--domain", type=int, help="only this Xen domain id")
    shown.add_argument("--function", metavar="NAME", help="part of a function's or command's name, or a number")
    shown.add_argument("--since", type=float, metavar="S", help="board time in seconds")
    shown.add_argument("--until", type=float, metavar="S", help="board time in seconds")
    shown.add_argument("--thread", type=int, help="only this OP-TEE thread")
    shown.set_defaults(run=_quietly(_show))

    counted = commands.add_parser("stats", help="count calls, latencies and RPCs")
    _file(counted)
    counted.add_argument("--json", action="store_true", help="machine-readable")
    counted.set_defaults(run=_quietly(_stats))

    compared = commands.add_parser("diff", help="compare what was said in two traces; exit code 1 when they differ")
    compared.add_argument("left", type=Path, metavar="A")
    compared.add_argument("right", type=Path, metavar="B")
    compared.add_argument("--recover", action="store_true", help="go on after damaged parts")
    compared.set_defaults(run=_quietly(_diff))

    exported = commands.add_parser("export", help="one JSON object a line")
    _file(exported)
    exported.add_argument("-o", "--output", type=Path, help="instead of the standard output")
    exported.set_defaults(run=_quietly(_export))


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--recover", action="store_true", help="go on after damaged parts")


def _quietly(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A reader of our output that has seen enough (``| head``) is no error."""

    def run(args: argparse.Namespace) -> int:
        try:
            code = command(args)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            return ExitCode.GOOD

    return run


def _show(args: argparse.Namespace) -> int:
    chosen = Filter(args.domain, args.function, args.since, args.until, args.thread)
    reader = Reader(args.file, recover=args.recover)
    for line in show(reader.events(), chosen):
        print(line)
    return _problems(reader)


def _stats(args: argparse.Namespace) -> int:
    reader = Reader(args.file, recover=args.recover)
    stats = collect(reader.events())
    if args.json:
        print(json.dumps(stats.to_json(), indent=2))
    else:
        print("\n".join(stats.lines()))
    return _problems(reader)


def _diff(args: argparse.Namespace) -> int:
    left, right = (Reader(path, recover=args.recover) for path in (args.left, args.right))
    different = False
    for line in diff(left.events(), right.events()):
        different = True
        print(line)
    _problems(left)
    _problems(right)
    return ExitCode.FAILED if different else ExitCode.GOOD


def _export(args: argparse.Namespace) -> int:
    reader = Reader(args.file, recover=args.recover)
    if args.output is None:
        export(reader.events(), sys.stdout)
    else:
        with args.output.open("w", encoding="ascii") as stream:
            export(reader.events(), stream)
    return _problems(reader)


def _problems(reader: Reader) -> int:
    """Say on the standard error what was wrong with the file; reading went on, so it is no failure."""
    for problem in reader.problems:
        print(f"{reader.path}@{problem.offset}: {problem.text}", file=sys.stderr)
    return ExitCode.GOOD

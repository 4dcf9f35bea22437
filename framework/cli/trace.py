# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck trace show|stats|diff|export``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.common.errors import ExitCode, UsageError
from framework.common.progress import Answer

if TYPE_CHECKING:
    from framework.trace.reader import Reader


def add_parser(subparsers: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Add ``trace`` to the program's subcommands; each sets ``handler``, a function of options and output.

    ``parents`` carry the options of every command.
    """
    text = "show, count, compare or export recorded traces"
    trace = subparsers.add_parser("trace", help=text, description=text, parents=list(parents))
    commands = trace.add_subparsers(dest="trace_command", required=True, metavar="COMMAND")

    def add(name: str, handler: Any, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=list(parents))
        command.add_argument("--recover", action="store_true", help="continue after damaged parts")
        command.set_defaults(handler=handler)
        return command

    shown = add("show", _show, "print the calls in the ABI's own words")
    shown.add_argument("file", type=Path, metavar="FILE")
    shown.add_argument("--domain", type=int, help="only this Xen domain id")
    shown.add_argument("--function", metavar="NAME", help="part of a function's or command's name, or a number")
    shown.add_argument("--since", type=float, metavar="S", help="board time in seconds")
    shown.add_argument("--until", type=float, metavar="S", help="board time in seconds")
    shown.add_argument("--thread", type=int, help="only this OP-TEE thread")

    counted = add("stats", _stats, "count calls, latencies and RPCs")
    counted.add_argument("file", type=Path, metavar="FILE")

    compared = add("diff", _diff, "compare the calls of two traces; exit code 1 when they differ")
    compared.add_argument("left", type=Path, metavar="A")
    compared.add_argument("right", type=Path, metavar="B")

    exported = add("export", _export, "print one JSON object a line for each event")
    exported.add_argument("file", type=Path, metavar="FILE")
    exported.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of the standard output")


def _show(options: argparse.Namespace, output: Answer) -> int:
    from framework.trace.show import Filter, show

    chosen = Filter(options.domain, options.function, options.since, options.until, options.thread)
    reader = _reader(options, options.file)
    _lines(show(reader.valid_events(), chosen), [reader], output)
    return ExitCode.GOOD


def _stats(options: argparse.Namespace, output: Answer) -> int:
    from framework.trace.stats import collect

    reader = _reader(options, options.file)
    stats = collect(reader.valid_events())
    output.finish({**stats.to_json(), "problems": _problems([reader], output)}, "\n".join(stats.lines()))
    return ExitCode.GOOD


def _diff(options: argparse.Namespace, output: Answer) -> int:
    from framework.trace.diff import diff

    left, right = _reader(options, options.left), _reader(options, options.right)
    different = _lines(diff(left.valid_events(), right.valid_events()), [left, right], output)
    return ExitCode.FAILED if different else ExitCode.GOOD


def _export(options: argparse.Namespace, output: Answer) -> int:
    from framework.trace.export import export

    reader = _reader(options, options.file)
    if options.output is None:
        if output.json:
            raise UsageError(
                "the events are many JSON documents, one a line, and --json promises a single one",
                hint="leave --json out, or let --output take the events",
            )
        export(reader.valid_events(), sys.stdout)
        _problems([reader], output)
        return ExitCode.GOOD
    if options.output.exists() and options.output.samefile(options.file):
        raise UsageError("--output would overwrite the trace that is read", where=str(options.output))
    try:
        stream = options.output.open("w", encoding="ascii")
    except OSError as error:
        raise UsageError(f"--output cannot be written: {error.strerror}", where=str(options.output)) from error
    with stream:
        count = export(reader.valid_events(), stream)
    problems = _problems([reader], output)
    output.finish({"events": count, "problems": problems}, f"{count} events: {options.output}")
    return ExitCode.GOOD


def _reader(options: argparse.Namespace, path: Path) -> Reader:
    from framework.trace.reader import Reader, named_trace

    return Reader(named_trace(path), recover=options.recover)


def _lines(lines: Iterable[str], readers: Sequence[Reader], output: Answer) -> bool:
    """Print ``lines`` as they come, or all of them as JSON; return whether there were any."""
    kept = []
    some = False
    for line in lines:
        some = True
        if output.json:
            kept.append(line)
        else:
            print(line)
    problems = _problems(readers, output)
    if output.json:
        output.finish({"lines": kept, "problems": problems}, "")
    return some


def _problems(readers: Iterable[Reader], output: Answer) -> list[dict[str, object]]:
    """Return and print what was wrong with the files; reading went on, so it is no failure."""
    found = [{"file": str(reader.path), **asdict(problem)} for reader in readers for problem in reader.problems]
    for item in found:
        output.say(f"{item['file']}@{item['offset']}: {item['text']}")
    return found

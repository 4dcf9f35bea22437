# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: ``./medcheck COMMAND``. Parses, calls one function, turns its errors into words and exit codes."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from framework.artifacts.overrides import add_options
from framework.cli import former
from framework.cli import run as run_cli
from framework.common.errors import ExitCode, InfrastructureError, MedcheckError, UsageError
from framework.common.terminal import Output, mib

if TYPE_CHECKING:
    from framework.artifacts.stack import Overrides

Handler = Callable[[argparse.Namespace, Output], int]
_WITHOUT_JSON = ("test", "boot")
_LONGEST_WORDS = 2000
"""Characters of an unexpected exception's own words that are shown; it may quote a guest."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 good, 1 nonconformance or failed test, 2 usage, 3 infrastructure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    # What is written here is run later: others never get to write it, whatever this process was started with.
    os.umask(os.umask(0o022) | 0o022)
    parser = _parser()
    # These two may stand before or behind any subcommand; a default of its own would undo what stands before.
    options, rest = parser.parse_known_args(arguments, argparse.Namespace(quiet=False, json=False))
    if options.version:
        options.handler = _version
    elif options.command is None:
        parser.error("the following arguments are required: COMMAND")
    if rest and options.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.json and options.command in _WITHOUT_JSON:
        parser.error(f"`{options.command}` has no result that could be printed as JSON")
    options.rest = rest
    options.arguments = arguments
    output = Output(quiet=options.quiet, json=options.json)
    # A closed terminal ends a run as Ctrl-C does: boards are taken down and logs kept.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with output:
            former.tell(options, output)
            code = int(options.handler(options, output))
            sys.stdout.flush()
    except MedcheckError as error:
        output.error(error)
        code = error.exit_code
    except KeyboardInterrupt:
        output.say("interrupted; what was written so far is kept")
        code = 130
    except OSError as error:
        if isinstance(error, BrokenPipeError) and (gone := _without_reader()):
            # As `| head` does.
            for stream in gone:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = ExitCode.GOOD
        else:
            code = _refused(error, output)
    except Exception as error:
        code = _unexpected(error, output)
    _flush()
    sys.exit(code)


def _open_streams() -> None:
    """A caller may have closed them (``>&-``): what is opened next would take their places."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open to the end
    # A terminal or file that cannot show a character shows its number.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _without_reader() -> list[TextIO]:
    """Return which of our own streams have lost their reader; none if it was some socket of the board's."""
    look = select.poll()
    streams = {stream.fileno(): stream for stream in (sys.stdout, sys.stderr)}
    for number in streams:
        look.register(number, 0)
    return [streams[number] for number, event in look.poll(0) if event & select.POLLERR]


def _flush() -> None:
    """Drop what cannot be written, or the interpreter tries again at its end and complains about it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(error: OSError, output: Output) -> ExitCode:
    """Return the error for an OS error not handled closer to its cause, e.g. ENOSPC."""
    output.error(
        InfrastructureError(
            f"the system refused: {error.strerror or error}",
            where=None if error.filename is None else str(error.filename),
            hint="is that place there, yours, and not full? `./medcheck doctor` looks at the usual ones",
        )
    )
    return ExitCode.INFRASTRUCTURE


def _unexpected(error: Exception, output: Output) -> ExitCode:
    """A defect of medcheck, or a library's: it says nothing about the mediator under test, so it is not exit code 1."""
    text = "".join(traceback.format_exception(error))
    output.error(
        InfrastructureError(
            f"unexpected: {type(error).__name__}: {error}"[:_LONGEST_WORDS],
            where=_keep_traceback(f"medcheck {' '.join(sys.argv[1:])}\n{text}"),
            hint="a defect of medcheck itself; the file named above says where it is",
        )
    )
    return ExitCode.INFRASTRUCTURE


def _keep_traceback(text: str) -> str:
    """Write it into the cache's folder of logs, or else among the temporary files; the file's name."""
    from framework.common.paths import cache_root

    name = f"unexpected-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        folder = cache_root() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        fd, path = tempfile.mkstemp(".txt", name, folder)
    except (MedcheckError, OSError):
        fd, path = tempfile.mkstemp(".txt", f"medcheck-{name}")
    with os.fdopen(fd, "w", errors="backslashreplace") as stream:
        stream.write(text)
    return path


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors and the result")
    as_json = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, parents=[common])
    as_json.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else")
    sources = argparse.ArgumentParser(add_help=False)
    sources.add_argument("--offline", action="store_true", help="use only what is in the cache")
    sources.add_argument(
        "--mirror", type=_mirror, metavar="URL[,URL…]", help="archive mirrors or folders, instead of apt's"
    )
    stack = argparse.ArgumentParser(add_help=False, parents=[sources])
    group = stack.add_argument_group("the parts under test", "your own files instead of the pinned builds")
    add_options(group.add_argument, "--", argparse.ArgumentTypeError)

    parser = argparse.ArgumentParser(
        prog="medcheck",
        description="Integration and conformance tests for mediators between VMs and a TEE.",
        parents=[as_json],
    )
    parser.add_argument("--version", action="store_true", help="print the version and do nothing else")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str,
        handler: Handler,
        text: str,
        *parents: argparse.ArgumentParser,
        base: argparse.ArgumentParser = as_json,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[base, *parents])
        command.set_defaults(handler=handler)
        return command

    run_cli.add_parser(commands, as_json, stack)
    command = add("test", _test, "run the project's tests (further arguments go to pytest)", stack, base=common)
    command.add_argument("--unit", action="store_true", help="only the tests that need no board")

    add("fetch", _fetch, "download everything that is pinned", sources)
    add("build", _build, "fetch and build everything", stack)
    command = add("boot", _boot, "boot a board and give a shell in dom0 or a domU", stack, base=common)
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--domus", type=int, metavar="N", help="number of Linux domUs")
    add("boards", _boards, "list the boards")
    add("doctor", _doctor, "say what is missing or broken, and how to fix it", sources)
    command = add("lock", _lock, "show the pins, or pin anew", sources)
    command.add_argument("--update", action="store_true", help="pin what the archive offers now; shows the difference")
    command.add_argument(
        "--unsigned", action="store_true", help="with --update: also where the archive's indexes cannot be verified"
    )
    command = add("clean", _clean, "end orphans and free disk space")
    command.add_argument("--all", action="store_true", help="also remove downloads and builds")
    command.add_argument("--keep", type=mib, default=4096, metavar="MIB", help="bound on builds (default 4096 MiB)")
    command = add("bench", _bench, "measure; ratios in one run where possible", stack, base=common)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all (see --list)")
    command.add_argument("--list", action="store_true", help="list the benchmarks")
    command.add_argument(
        "--json",
        type=_path,
        nargs="?",
        const=Path("-"),
        dest="file",
        metavar="FILE",
        help="write the numbers to FILE as JSON; without FILE, print one JSON document on stdout and nothing else",
    )
    _add_parts(commands, as_json, stack)
    return parser


def _path(text: str) -> Path:
    """argparse's type of a file or folder: an empty name (of an unset variable, say) is not this folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found nothing")
    return Path(text)


def _mirror(text: str) -> str:
    """argparse's type of ``--mirror``: an empty one (of an unset variable, say) does not override apt's default."""
    if not text.replace(",", "").strip():
        raise argparse.ArgumentTypeError("expected a URL or a folder, found nothing")
    return text


def _add_parts(commands: Any, common: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """The commands that parts of the framework bring themselves."""
    from framework.cli import check as conformance
    from framework.cli import compare as compare_cli
    from framework.cli import fuzz as fuzz_cli
    from framework.cli import matrix as matrix_cli
    from framework.cli import mutants as mutants_cli
    from framework.cli import replay as replay_cli
    from framework.cli import snapshot as snapshot_cli
    from framework.cli import trace

    matrix_cli.add_parser(commands, common, stack)
    snapshot_cli.add_parser(commands, common, stack=stack)
    replay_cli.add_parser(commands, common, stack=stack)
    trace.add_parser(commands, [common])
    conformance.add_parser(commands, [common])
    compare_cli.add_parser(commands, [common])
    mutants_cli.add_parser(commands, common, stack=stack)
    fuzz_cli.add_parser(commands, common, stack=stack)


# Each handler imports what it needs: `--help` and a usage error answer at once.


def _version(_options: argparse.Namespace, output: Output) -> int:
    from importlib.metadata import version

    output.finish({"version": version("medcheck")}, f"medcheck {version('medcheck')}")
    return ExitCode.GOOD


def _overrides(options: argparse.Namespace) -> Overrides:
    from framework.artifacts.stack import Overrides

    return Overrides.given(vars(options))


def _test(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.test import run_tests

    # Quiet is for pytest as well.
    arguments = [*(["-q"] if options.quiet else []), *options.rest]
    return run_tests(
        arguments,
        _overrides(options),
        unit=options.unit,
        offline=options.offline,
        mirrors=options.mirror,
        output=output,
    )


def _fetch(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.lock import Lock
    from framework.target.stack import open_store

    pins = list(Lock.load().pins.values())
    open_store(options.offline, options.mirror, output.progress).fetch(pins)
    total = sum(pin.size for pin in pins)
    output.finish({"files": len(pins), "bytes": total}, f"{len(pins)} files, {total / 1e6:.0f} MB, all verified")
    return ExitCode.GOOD


def _build(options: argparse.Namespace, output: Output) -> int:
    from framework.target.stack import open_store, prepare_stack

    store = open_store(options.offline, options.mirror, output.progress)
    stack = prepare_stack(_overrides(options), store, output.progress)
    rows = [component.__dict__ for component in stack.components]
    output.finish(rows, "\n".join(f"{r['name']:<16} {r['version']:<28} {r['sha256'][:16]} {r['origin']}" for r in rows))
    return ExitCode.GOOD


def _boot(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.boot import boot

    return boot(options.board, options.domus, _overrides(options), options.offline, options.mirror, output)


def _boards(_options: argparse.Namespace, output: Output) -> int:
    from framework.board.spec import all_boards

    specs = all_boards()
    rows = [{"name": s.name, "description": s.description, "guests": [g.name for g in s.guests]} for s in specs]
    output.finish(rows, "\n".join(f"{s.name:<12} {s.description}" for s in specs))
    return ExitCode.GOOD


def _doctor(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.doctor import examine

    return examine(options.offline, options.mirror, output)


def _lock(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.lock import Lock
    from framework.common.paths import IMAGES

    if options.unsigned and not options.update:
        raise UsageError("--unsigned goes with --update", hint="without it nothing is asked of an archive")
    if not options.update:
        pins = Lock.load().pins.values()
        text = "\n".join(f"{pin.name:<44} {pin.version:<34} {pin.size:>9}" for pin in pins)
        output.finish([{"name": p.name, "version": p.version, "size": p.size, "sha256": p.sha256} for p in pins], text)
        return ExitCode.GOOD
    from framework.artifacts.mirror import Mirrors
    from framework.artifacts.repin import update

    if options.offline:
        raise UsageError("--update asks an archive, which --offline forbids", hint="leave one of the two out")
    mirrors = Mirrors.discover(option=options.mirror)
    packages, lock = IMAGES / "packages.yaml", IMAGES / "artifacts.lock.yaml"
    difference = update(packages, lock, mirrors, output.progress, unsigned=options.unsigned)
    output.finish(difference.lines(), "\n".join(difference.lines()) or "nothing has changed")
    return ExitCode.GOOD


def _clean(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.clean import clean

    return clean(options.all, options.keep << 20, output)


def _bench(options: argparse.Namespace, output: Output) -> int:
    from framework.bench.run import BENCHMARKS, bench

    if str(options.file) in BENCHMARKS:
        raise UsageError(f"--json {options.file}: a benchmark where a file belongs", hint="give --json after the names")
    if options.file == Path("-"):
        options.file, output.json = None, True
    return bench(options.names, options.list, options.file, _overrides(options), options, output)

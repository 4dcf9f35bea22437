"""``medcheck replay STIMULUS``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from framework.console_ui import Output
from framework.errors import ExitCode

_TEXT = "run a stimulus again and again, the same instruction by instruction, and compare the traces"
_MORE = """The stimulus is a shell script of dom0. In it, `in_guest vm1 "COMMAND"` types a line into a guest, and
`settle SECONDS` waits for what was begun: its end is the end of all guests. Exit code 1 when two traces differ, or when
the stimulus failed."""


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """Add ``replay`` to the program's subcommands; see :func:`framework.template_cli.add_parser`."""
    command = subparsers.add_parser("replay", help=_TEXT, description=f"{_TEXT}. {_MORE}", parents=[*parents, stack])
    command.add_argument("stimulus", metavar="STIMULUS", help='such as \'in_guest vm1 "xtest 1004"; settle 20\'')
    command.add_argument("--runs", type=_positive, default=2, metavar="N", help="how often (default 2)")
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--domus", type=int, metavar="N", help="number of Linux domUs")
    command.add_argument("--moment", default="ready", help="where the board begins (see `template build`)")
    command.add_argument("--logs", type=Path, default=Path("reports/replay"), help="folder of the traces and consoles")
    command.add_argument(
        "--host-clock", action="store_true", help="as other boards run: what that gives is never the same twice"
    )
    command.set_defaults(handler=_replay)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


def _replay(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.stack import Overrides
    from framework.board.pool import Pool, places_here
    from framework.board.spec import BoardSpec
    from framework.board.template import TemplateStore
    from framework.errors import UsageError
    from framework.moments import MOMENTS
    from framework.replay import armed, replay
    from framework.session import open_store, prepare_stack, with_guests

    if options.moment not in MOMENTS:
        raise UsageError(f"no moment is called '{options.moment}'", hint=f"one of {', '.join(MOMENTS)}")
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    downloads = open_store(options.offline, options.mirror, output.progress)
    stack = prepare_stack(Overrides.given(vars(options)), downloads, output.progress)
    store = TemplateStore(progress=output.progress)
    runs = []
    with (
        Pool(places_here(spec.smp), say=output.progress.say).place(),
        armed(store, spec, stack, options.stimulus, MOMENTS[options.moment], output.progress) as found,
        output.progress.task("replaying", total=options.runs, unit="runs") as task,
    ):
        for number in range(1, options.runs + 1):
            folder = options.logs / str(number)
            done = replay(found, spec, stack, folder, host_clock=options.host_clock)
            runs.append(done)
            task.advance()
            output.progress.say(f"run {number}: {done.events} events, {done.digest[:16]}, {done.seconds:.1f} s")
    traces = len({run.digest for run in runs})
    failed = [run.code for run in runs if run.code]
    rows = [{**vars(run), "trace": str(run.trace)} for run in runs]
    verdict = f"{len(runs)} runs, {'one trace' if traces == 1 else f'{traces} different traces'}"
    ending = f"; the stimulus failed with exit code {failed[0]}" if failed else ""
    output.finish({"runs": rows, "traces": traces}, f"{verdict}{ending}; the first is {runs[0].trace}")
    return ExitCode.FAILED if failed or (traces > 1 and not options.host_clock) else ExitCode.GOOD

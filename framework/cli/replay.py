# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck replay STIMULUS``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

from framework.cli import former
from framework.common.errors import ExitCode
from framework.common.terminal import Output

_TEXT = "run a stimulus several times deterministically and compare the traces"
_MORE = """The stimulus is a shell script of dom0. In it, `in_guest vm1 "COMMAND"` types a line into a guest, and
`settle SECONDS` waits for what was begun: its end is the end of all guests. Exit code 1 when two traces differ, or when
the stimulus failed."""


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """Add ``replay`` to the program's subcommands; see :func:`framework.cli.snapshot.add_parser`."""
    command = subparsers.add_parser("replay", help=_TEXT, description=f"{_TEXT}. {_MORE}", parents=[*parents, stack])
    example = 'in_guest vm1 "xtest -t regression 1004"; settle 20'
    command.add_argument("stimulus", metavar="STIMULUS", help=f"such as '{example}'")
    command.add_argument("--runs", type=_positive, default=2, metavar="N", help="number of runs (default 2)")
    command.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    command.add_argument("--domus", type=int, metavar="N", help="number of Linux domUs")
    command.add_argument("--checkpoint", default="ready", help="where the board begins: ready (default), dom0, parked")
    former.add_option(command, "--moment", "--checkpoint")
    command.add_argument(
        "--logs", type=Path, default=Path("reports/replay"), help="folder in which each use makes one for its logs"
    )
    command.add_argument(
        "--idle-timeout",
        type=_positive,
        default=300,
        metavar="S",
        help="longest silence of dom0 in seconds before the run ends (300)",
    )
    former.add_option(command, "--patience", "--idle-timeout", type=_positive)
    command.add_argument(
        "--host-clock",
        action="store_true",
        help="use the host's clock, as other boards do: no two such runs are the same",
    )
    command.set_defaults(handler=_replay)


def _positive(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found '{text}'")
    return int(text)


def _replay(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.stack import Overrides
    from framework.board.icount import require_realtime
    from framework.board.spec import BoardSpec
    from framework.jobs.replay import prepared, replay
    from framework.snapshot.store import SnapshotStore
    from framework.target.checkpoints import get_checkpoint
    from framework.target.slots import BoardSlots, slots_here
    from framework.target.stack import open_store, prepare_stack, with_guests

    checkpoint = get_checkpoint(options.checkpoint)
    if not options.host_clock:
        require_realtime()
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    downloads = open_store(options.offline, options.mirror, output.progress)
    stack = prepare_stack(Overrides.given(vars(options)), downloads, output.progress, cpu=spec.cpu)
    store = SnapshotStore(progress=output.progress)
    logs, runs = _new_folder(options.logs), []
    with (
        BoardSlots(slots_here(spec.smp), say=output.progress.say).slot(),
        prepared(store, spec, stack, options.stimulus, checkpoint, output.progress) as found,
        output.progress.task("replaying", total=options.runs, unit="runs") as task,
    ):
        for number in range(1, options.runs + 1):
            folder = logs / str(number)
            done = replay(found, spec, stack, folder, host_clock=options.host_clock, idle_timeout=options.idle_timeout)
            runs.append(done)
            task.advance()
            output.progress.say(f"run {number}: {done.events} events, {done.digest[:16]}, {done.seconds:.1f} s")
    traces = len({run.digest for run in runs})
    failed = [run.code for run in runs if run.code]
    rows = [{**vars(run), "trace": str(run.trace)} for run in runs]
    verdict = f"{len(runs)} runs, {'one trace' if traces == 1 else f'{traces} different traces'}"
    verdict += f" of {runs[0].events} events" if traces == 1 else ""
    ending = f"; the stimulus failed with exit code {failed[0]}: see dom0's console beside the trace" if failed else ""
    ending += "" if runs[0].events else "; no guest called OP-TEE, so nothing was compared"
    output.finish({"runs": rows, "traces": traces}, f"{verdict}{ending}; the first is {runs[0].trace}")
    differ = traces > 1 and not options.host_clock
    return ExitCode.FAILED if failed or differ or not runs[0].events else ExitCode.GOOD


def _new_folder(parent: Path) -> Path:
    """A folder of this use alone, named after the time."""
    now = time.strftime("%Y%m%d-%H%M%S")
    for number in range(100):
        folder = parent / (f"{now}-{number}" if number else now)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("a hundred replays began in this second")

# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck snapshot list|build|prune`` and ``medcheck resume ID``: argument parsing and nothing else."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from framework.cli import former
from framework.common.errors import ExitCode
from framework.common.terminal import Output, mib

_MIB = 1 << 20


def add_parser(subparsers: Any, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser) -> None:
    """Add ``snapshot`` and ``resume`` to the program's subcommands; each sets ``handler``: a function of the
    arguments and the output that gives an exit code.

    ``parents`` carry the options of every command, ``stack`` those that choose the parts under test.
    """
    text = "list, build and remove snapshots of booted boards"
    snapshot = subparsers.add_parser("snapshot", help=text, parents=[*parents])
    _add_commands(snapshot, *parents, stack=stack)
    for old, new in former.COMMANDS.items():
        # Without help, --help does not list it.
        _add_commands(subparsers.add_parser(old, prog=f"medcheck {new}", parents=[*parents]), *parents, stack=stack)
    resumed = subparsers.add_parser(
        "resume", help="resume a postmortem snapshot (pytest --mc-save-on-failure)", parents=[*parents]
    )
    resumed.add_argument("id", nargs="?", help="a postmortem snapshot; without it, list them")
    resumed.set_defaults(handler=_resume)


def _add_commands(
    snapshot: argparse.ArgumentParser, *parents: argparse.ArgumentParser, stack: argparse.ArgumentParser
) -> None:
    commands = snapshot.add_subparsers(dest="snapshot_command", required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help="list the snapshots, least recently used first", parents=[*parents])
    listed.set_defaults(handler=_list)
    built = commands.add_parser("build", help="make a board's snapshot now", parents=[*parents, stack])
    built.add_argument("--board", default="default", help="a name of `medcheck boards` or a YAML file")
    built.add_argument("--domus", type=int, metavar="N", help="number of Linux domUs")
    built.add_argument(
        "--checkpoint",
        default="ready",
        help="ready (default): all guests up; dom0: no guest yet; parked: a probe's call waits in OP-TEE",
    )
    former.add_option(built, "--moment", "--checkpoint")
    built.set_defaults(handler=_build)
    pruned = commands.add_parser("prune", help="remove the least recently used snapshots", parents=[*parents])
    pruned.add_argument("--keep", type=mib, default=0, metavar="MIB", help="size that may remain (default 0: nothing)")
    pruned.set_defaults(handler=_prune)


def _list(_options: argparse.Namespace, output: Output) -> int:
    from framework.snapshot.store import SnapshotStore

    entries = SnapshotStore().entries()
    rows = [entry.__dict__ for entry in entries]
    lines = [
        f"{entry.name:<48} {entry.disk_bytes // _MIB:>6} MiB on disk {entry.memory_bytes // _MIB:>6} MiB in memory"
        f"  used {time.strftime('%F %R', time.localtime(entry.last_use))}{'' if entry.intact else '  incomplete'}"
        for entry in entries
    ]
    output.finish(rows, "\n".join(lines) or "no snapshot yet: the first test that needs one makes it")
    return ExitCode.GOOD


def _build(options: argparse.Namespace, output: Output) -> int:
    from framework.artifacts.stack import Overrides
    from framework.board.spec import BoardSpec
    from framework.snapshot.store import SnapshotStore
    from framework.target.checkpoints import get_checkpoint, snapshot
    from framework.target.stack import open_store, prepare_stack, with_guests

    checkpoint = get_checkpoint(options.checkpoint)
    spec = with_guests(BoardSpec.load(options.board), options.domus)
    downloads = open_store(options.offline, options.mirror, output.progress)
    stack = prepare_stack(Overrides.given(vars(options)), downloads, output.progress, cpu=spec.cpu)
    store = SnapshotStore(progress=output.progress)
    begin = time.monotonic()
    with snapshot(store, spec, stack, checkpoint, output.progress) as found:
        seconds = time.monotonic() - begin
        output.finish(
            {"name": found.folder.name, "ram": str(found.ram), "seconds": round(seconds, 1)},
            f"{found.folder.name}: ready after {seconds:.1f} s, RAM in {found.ram}",
        )
    return ExitCode.GOOD


def _prune(options: argparse.Namespace, output: Output) -> int:
    from framework.snapshot.store import SnapshotStore

    removed = SnapshotStore().prune(options.keep * _MIB)
    output.finish({"removed": removed}, f"removed: {', '.join(removed) or 'nothing'}")
    return ExitCode.GOOD


def _resume(options: argparse.Namespace, output: Output) -> int:
    from framework.jobs.boot import visit
    from framework.target.postmortem import resume, saved_boards

    if options.id is None:
        none = "there is no postmortem snapshot (pytest --mc-save-on-failure makes them)"
        output.finish({"kept": saved_boards()}, "\n".join(saved_boards()) or none)
        return ExitCode.GOOD
    with tempfile.TemporaryDirectory(prefix="medcheck-") as folder, resume(options.id, Path(folder)) as target:
        for name, console in target.board.consoles.items():
            output.say(f"console {name}: {console.log}")
        visit(target, output)
    return ExitCode.GOOD

# SPDX-License-Identifier: GPL-2.0-or-later
"""Deterministic replay: a board that executes one stimulus any number of times, with the same trace bit by bit.

A stimulus is a shell script of dom0. It is copied into a clone of a checkpoint (``ready`` by default) and started with
a delay; then the board is saved, *prepared*. The prepared board is a snapshot like any other, made once for each
stimulus. Its clones run on the instruction clock (:mod:`framework.board.icount`), so nothing comes from outside while
they do it. The script's end is the end of all guests, so that no call can follow it.

    in_guest vm1 "xtest -t regression 1004"      types a line into a guest
    settle 20                                    waits; time in which all CPUs wait costs next to nothing
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts.stack import Stack
from framework.board.board import Board
from framework.board.qemu import Ram
from framework.board.spec import BoardSpec
from framework.common import safe_files
from framework.common.errors import BoardError, UsageError
from framework.common.progress import Progress
from framework.common.safe_text import number
from framework.snapshot import sparse
from framework.snapshot.restore import clone
from framework.snapshot.store import Snapshot, SnapshotStore
from framework.target.checkpoints import READY, Checkpoint, inputs_of, label_of, snapshot
from framework.target.target import Target
from framework.trace.format import Kind
from framework.trace.reader import Reader

_SCRIPT, _GIVEN = "/run/medcheck-prepared", "/run/medcheck-stimulus"
BEGINS, _ENDED = b"medcheck: stimulus begins", b"medcheck: stimulus ended"
"""Marks that dom0 prints on its console."""
_CODE = rb" ([0-9]{1,18})\r?\n"
_DELAY = 10
"""Seconds of the board's time between preparing and the stimulus: the board must have been saved by then."""
_PIECE = 200
"""Bytes that are typed in one line; a terminal takes lines of 4095 characters, four for each byte."""
PATIENCE = 300.0
_SAID_BYTES = 1 << 20
"""Bytes of console log to search: more than dom0 prints between preparing and saving."""

_PRELUDE = """in_guest() {
    medcheck_domain=$(xl domid "$1") || { echo "in_guest: there is no guest $1"; exit 1; }
    echo "$2" >"$(xenstore-read "/local/domain/$medcheck_domain/console/tty")"
}
settle() { sleep "${1:-10}"; }
"""
"""Stands before the given text."""

# The given text is a file and a target of its own: it cannot end, or run beyond, what is around it.
_PREPARED = f"""sleep {_DELAY}
echo "{BEGINS.decode()}"
setsid sh {_GIVEN} &
given=$!
wait $given
code=$?
kill -9 -$given 2>/dev/null
for domain in $(xenstore-list /local/domain); do
    [ "$domain" = 0 ] || xl destroy "$domain"
done
echo "{_ENDED.decode()} $code"
"""


@dataclass(frozen=True)
class Replay:
    """One run of an prepared board: ``digest`` is over all events of its trace, ``seconds`` are of wall time, ``code``
    is the stimulus' exit code."""

    trace: Path
    digest: str
    events: int
    seconds: float
    code: int


def given(stimulus: str) -> bytes:
    """The script that holds a stimulus. Raises UsageError for one that no script can hold."""
    try:
        text = (_PRELUDE + stimulus.strip() + "\n").encode()
    except UnicodeEncodeError:
        text = b""
    if not stimulus.strip() or not text or b"\0" in text:
        raise UsageError("the stimulus is empty or not text", hint="a shell script of dom0, such as 'settle 1'")
    return text


@contextmanager
def prepared(
    store: SnapshotStore,
    spec: BoardSpec,
    stack: Stack,
    stimulus: str,
    checkpoint: Checkpoint = READY,
    progress: Progress | None = None,
) -> Iterator[Snapshot]:
    """Yield the snapshot of a board that is about to run ``stimulus``; it is made if there is none.

    Raises UsageError for a stimulus that no shell can read, BoardError when the host was too slow to save it in time.
    """
    script = given(stimulus)

    @contextmanager
    def make(ram: Ram, run_dir: Path) -> Iterator[tuple[Board, dict[str, Any]]]:
        with snapshot(store, spec, stack, checkpoint, progress) as parent:
            sparse.copy(parent.ram, ram.path)
            with (
                clone(parent, spec, stack, run_dir, ram=ram) as board,
                Target(spec, stack, run_dir, board=board) as target,
            ):
                target.adopt(parent.about)
                _prepare(target, script)
                yield board, target.about()
                if BEGINS in safe_files.tail(board.consoles["dom0"].log, _SAID_BYTES):
                    raise BoardError("the stimulus began before the board was saved", hint="this host is too slow")

    inputs = {
        **inputs_of(spec, stack, checkpoint),
        "stimulus": script.decode(),
        "prepare": [_PREPARED, inspect.getsource(_prepare)],
    }
    with store.get(f"{label_of(spec, checkpoint)}-prepared", inputs, make) as found:
        yield found


def _prepare(target: Target, script: bytes) -> None:
    """Type the scripts into dom0 and start them. Typed on the console, because SSH traffic would make runs differ."""
    for path, text in ((_GIVEN, script), (_SCRIPT, _PREPARED.encode())):
        target.dom0.run_on_console(f": >{path}").check()
        for at in range(0, len(text), _PIECE):
            piece = "".join(f"\\{byte:03o}" for byte in text[at : at + _PIECE])
            target.dom0.run_on_console(f"printf '{piece}' >>{path}").check()
    read = target.dom0.run_on_console(f"sh -n {_GIVEN}")
    if read.rc:
        raise UsageError("the stimulus is no shell script", where=read.text.strip(), hint="dom0's shell is busybox ash")
    target.dom0.run_on_console(f"setsid sh {_SCRIPT} </dev/null >/dev/console 2>&1 &").check()


def replay(
    found: Snapshot,
    spec: BoardSpec,
    stack: Stack,
    run_dir: Path,
    *,
    host_clock: bool = False,
    idle_timeout: float = PATIENCE,
) -> Replay:
    """Run an prepared board once, its trace in ``run_dir``.

    ``host_clock``: on the host's clock, as other clones: no two such runs are the same. ``idle_timeout``: the
    longest silence of dom0's console (seconds, scaled). Raises BoardError when that is exceeded or the board dies.
    """
    begin = time.monotonic()
    with Target.from_snapshot(found, spec, stack, run_dir, trace=True, icount=not host_clock, wake=False) as target:
        board = target.board
        try:
            match = board.consoles["dom0"].expect([_ENDED + _CODE], idle_timeout)
        except BoardError as error:
            if not board.alive:
                raise
            raise BoardError(
                f"the stimulus did not end: {error.what}", where=error.where, hint="is there something it waits for?"
            ) from error
        seconds = time.monotonic() - begin
    assert target.trace is not None
    digest, events = digest_of(target.trace)
    return Replay(target.trace, digest, events, seconds, number(match[1]))


def digest_of(trace: Path) -> tuple[str, int]:
    """SHA-256 over all events of a trace, times included, and their number. Raises TraceError for a damaged one."""
    digest, events = hashlib.sha256(), 0
    for event in Reader(trace).events():
        if event.kind != Kind.COUNTERS:  # The plugin's own, of what it did until it was stopped.
            digest.update(event.raw)
            events += 1
    return digest.hexdigest(), events

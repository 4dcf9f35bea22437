# SPDX-License-Identifier: GPL-2.0-or-later
"""A private copy of a saved board, running in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.board.board import Board
from framework.board.icount import pin_threads_realtime
from framework.board.qemu import BoardFiles, Ram
from framework.board.spec import BoardSpec
from framework.diagnosis.hang import watch
from framework.snapshot.icount_state import converted
from framework.snapshot.save import fill
from framework.snapshot.store import Snapshot

BeforeRun = Callable[[Board], object]
"""Changes a filled board before its first instruction."""


def clone(
    snapshot: Snapshot,
    spec: BoardSpec,
    stack: BoardFiles,
    run_dir: Path,
    *,
    ram: Ram | None = None,
    icount: bool = False,
    before_run: BeforeRun | None = None,
    **options: Any,
) -> Board:
    """Start a private copy of a saved board; it runs when this returns.

    ``options`` are Board's own (plugin, outputs, …). ``spec`` and ``stack`` must be those of the snapshot.
    ``ram``: a file with what the snapshot's RAM holds, instead of a private view of that.
    ``before_run`` gets the filled board before its first instruction.
    ``icount``: it executes the same instructions as every such clone, for as long as
    nothing comes in from outside (:mod:`framework.board.icount`).
    Raises BoardError, with nothing left running, when it cannot be filled.
    """
    board = Board(
        spec, stack, run_dir, ram=ram or Ram(snapshot.ram, share=False), incoming=True, past=snapshot.past,
        icount=icount, **options
    )  # fmt: skip
    watch(board).start()
    try:
        fill(board, converted(snapshot.state.read_bytes()) if icount else snapshot.state)
        if icount:
            pin_threads_realtime(board.pid)
        if before_run is not None:
            before_run(board)
        board.resume()
    except BaseException:
        board.kill()
        raise
    return board

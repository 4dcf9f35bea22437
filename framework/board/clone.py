"""A private copy of a saved board, running in a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framework.board.board import Board
from framework.board.qemu import BoardFiles, Ram
from framework.board.saving import fill
from framework.board.spec import BoardSpec
from framework.board.template import Template


def clone(template: Template, spec: BoardSpec, stack: BoardFiles, run_dir: Path, **options: Any) -> Board:
    """Start a private copy of a saved board; it runs when this returns.

    ``options`` are Board's own (plugin, outputs, …). ``spec`` and ``stack`` must be those of the template.
    Raises BoardError, with nothing left running, when it cannot be filled.
    """
    board = Board(
        spec, stack, run_dir, ram=Ram(template.ram, share=False), incoming=True, past=template.past, **options
    )
    board.start()
    try:
        fill(board, template.state)
        board.resume()
    except BaseException:
        board.kill()
        raise
    return board

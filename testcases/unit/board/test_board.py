# SPDX-License-Identifier: GPL-2.0-or-later
"""A board as far as it goes without QEMU: whose folder it writes to, what a clone's log begins with, who is where."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.board import process
from framework.board.board import EARLIER_BYTES, Board, RestoredFrom
from framework.board.spec import BoardSpec
from framework.common.errors import UsageError

SPEC = BoardSpec.load("default")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led to files of other users")
@pytest.mark.parametrize("place", ["", "consoles", "trace"])
def test_root_starts_no_board_in_a_folder_of_another_user(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("qemu.log", "xen.log", "board.trace"):
        (folder / name).symlink_to(victim)
    stack: Any = SimpleNamespace()
    board = Board(SPEC, stack, tmp_path / "run", outputs=[tmp_path / "run/trace/board.trace"])
    with pytest.raises(UsageError, match="folder of user 12345"):
        board.start()
    assert victim.read_text() == "precious"
    assert victim.stat().st_uid == 0


def test_a_clones_log_begins_with_the_end_of_what_was_said_before_and_names_the_rest(tmp_path: Path) -> None:
    earlier = tmp_path / "xen.log"
    line = b"[     1.000] " + b"x" * 86 + b"\n"
    earlier.write_bytes(line * (2 * EARLIER_BYTES // 100) + b"the last words")
    RestoredFrom(tmp_path, 12.5, "snapshot x").begin_log("xen", tmp_path / "log")
    text = (tmp_path / "log").read_bytes()
    assert len(text) < EARLIER_BYTES + 1000
    assert text.startswith(b"---- the beginning is in %s ----\n%s" % (os.fsencode(earlier), line))
    assert text.endswith(b"the last words\n[    12.500] ---- restored from snapshot x ----\n")


def test_a_short_log_is_taken_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "xen.log").write_bytes(b"first\n")
    RestoredFrom(tmp_path, 1.0, "x").begin_log("xen", tmp_path / "log")
    RestoredFrom(tmp_path, 1.0, "x").begin_log("dom0", tmp_path / "other")
    assert (tmp_path / "log").read_bytes() == b"first\n[     1.000] ---- restored from x ----\n"
    assert (tmp_path / "other").read_bytes() == b"[     1.000] ---- restored from x ----\n"


def test_two_boards_that_start_at_once_leave_huge_pages_as_they_were() -> None:
    libc = ctypes.CDLL(None)
    before = libc.prctl(process._PR_GET_THP_DISABLE, 0, 0, 0, 0)
    inside, first_done = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        inside.wait()
        with process._small_pages():
            # The first has left its own meanwhile, and would have undone this one's.
            seen.append((first_done.is_set(), libc.prctl(process._PR_GET_THP_DISABLE, 0, 0, 0, 0)))

    thread = threading.Thread(target=second)
    thread.start()
    with process._small_pages():
        inside.set()
        thread.join(0.2)
        first_done.set()
    thread.join()
    assert seen == [(True, 1)]
    assert libc.prctl(process._PR_GET_THP_DISABLE, 0, 0, 0, 0) == before

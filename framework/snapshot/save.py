# SPDX-License-Identifier: GPL-2.0-or-later
"""Saves a running board into files, and fills a new board from them."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from pathlib import Path

from framework.board.board import Board
from framework.common.errors import BoardError
from framework.common.host_speed import host_factor
from framework.diagnosis.hang import between, sample
from framework.snapshot import sparse
from framework.snapshot.timer_fixup import Woken, wake_timers
from framework.snapshot.tmpfs_cache import TMPFS

_SECONDS = 60.0
"""For 1.2 MB of device state, and up to the whole RAM of a board that keeps it to itself; scaled."""


_CALM, _CALM_SECONDS, _CALM_LIMIT = 0.1, 0.2, 5.0
"""A board whose CPUs compute for less than this share of this many seconds is calm; how long to wait for that."""


def wait_until_calm(board: Board) -> bool:
    """Wait until a board has finished what it began, which every clone would have to repeat. False: it does not finish.

    Raises BoardError, or what else ended the board, when it is gone.
    """
    try:
        return _grows_calm(board, time.monotonic() + _CALM_LIMIT * host_factor())
    except OSError as error:
        raise board.death() from error


def _grows_calm(board: Board, end: float) -> bool:
    before = sample(board)
    while time.monotonic() < end:
        # No event says that a CPU computes no more; its use of the host's time is the only evidence.
        time.sleep(_CALM_SECONDS)
        now = sample(board)
        used = sum(use.ran for use in between(before, now).values())
        if used < _CALM * (now.at - before.at):
            return True
        before = now
    return False


def save_devices(board: Board) -> tuple[bytes, list[Woken]]:
    """Stop a board whose RAM lies in a shared file; return its device state, mended
    (:mod:`framework.snapshot.timer_fixup`), and the timers that were.

    Raises BoardError when QEMU cannot save it.
    """
    if board.ram is None or not board.ram.share:
        raise BoardError("only a board with its RAM in a shared file can become a snapshot", where="saving")
    fd = os.memfd_create("medcheck-state", os.MFD_CLOEXEC)
    try:
        _save(board, f"/proc/self/fd/{fd}", shared=True)
        state = bytearray(os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
    woken = wake_timers(state)
    return bytes(state), woken


def save_whole(board: Board, path: Path) -> list[Woken]:
    """Stop any board and write devices and RAM into one file, as large as the RAM in use.

    Raises BoardError when QEMU cannot save it, a full disk included; nothing is left then.
    """
    _spare_tmpfs(board)
    try:
        path.touch(mode=0o600)
        _save(board, str(path), shared=False)
        with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as state:
            return wake_timers(state)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _spare_tmpfs(board: Board) -> None:
    """A clone's RAM is read from one end to the other, and on tmpfs a hole that is read through a mapping is filled:
    when it cannot be, QEMU is killed (SIGBUS). Raises BoardError when that could happen."""
    if board.ram is None or board.ram.share or not board.ram.path.is_relative_to(TMPFS):
        return
    holes = board.ram.path.stat().st_size - sparse.allocated(board.ram.path)
    free = shutil.disk_usage(board.ram.path.parent).free
    if free < holes:
        raise BoardError(
            f"saving the board would fill {TMPFS}: it needs {holes >> 20} MiB there, {free >> 20} MiB are free",
            where=str(board.run_dir),
            hint="`medcheck snapshot prune` frees some; with MEDCHECK_TMPFS_MIB=0 clones read from disk",
        )


def fill(board: Board, state: Path | bytes, *, shared: bool = True) -> None:
    """Fill a board that was started with ``incoming`` and is paused; it stays paused.

    ``shared``: its RAM lies in the file that the state belongs to, rather than in the state itself.
    """
    board.qmp.execute("migrate-set-capabilities", capabilities=_capabilities(shared))
    # A machine that moved tells its network so, five times; a clone's network is new and has no peers.
    board.qmp.execute("migrate-set-parameters", announce_rounds=0)
    if isinstance(state, bytes):
        fd = os.memfd_create("medcheck-state", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as stream:
                stream.write(state)
            target = _lend(board, f"/proc/self/fd/{fd}", os.O_RDONLY)
        finally:
            os.close(fd)
    else:
        target = _lend(board, str(state), os.O_RDONLY)
    board.qmp.execute("migrate-incoming", uri=f"file:{target}", exit_on_error=False)
    _wait(board, "filled")


def copy_logs(board: Board, folder: Path) -> None:
    """Copy the consoles' logs as they are now."""
    folder.mkdir(exist_ok=True)
    for name, console in board.consoles.items():
        shutil.copyfile(console.log, folder / f"{name}.log")


def _save(board: Board, path: str, *, shared: bool) -> None:
    board.qmp.execute("migrate-set-capabilities", capabilities=_capabilities(shared))
    board.qmp.execute("stop")
    board.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    target = _lend(board, path, os.O_WRONLY)
    # A clone has been through a migration already: its own filling.
    board.qmp.forget_events("MIGRATION")
    board.qmp.execute("migrate", uri=f"file:{target}")
    _wait(board, "saved")


def _capabilities(shared: bool) -> list[dict[str, object]]:
    return [{"capability": "events", "state": True}, {"capability": "x-ignore-shared", "state": shared}]


def _lend(board: Board, path: str, mode: int) -> str:
    # QEMU may run as another user, who could not open the file itself.
    fd = os.open(path, mode | os.O_CLOEXEC)
    try:
        return board.qmp.add_fd(fd)
    finally:
        os.close(fd)


def _wait(board: Board, what: str) -> None:
    done = board.qmp.wait_any_event("MIGRATION", _SECONDS, status=("completed", "failed"))
    if done["data"]["status"] != "completed":
        why = board.qmp.execute("query-migrate").get("error-desc", "QEMU does not say why")
        raise BoardError(f"the board cannot be {what}: {why}", where=str(board.run_dir))

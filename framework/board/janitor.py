# SPDX-License-Identifier: GPL-2.0-or-later
"""The janitor: finds QEMUs and files of ours whose owner is gone, ends them, and proves that none is left.

Every board has an entry file ``<cache>/boards/<id>.json`` for as long as it lives. A board's id begins with
its owner's pid and start time, and QEMU carries the id in ``-name``, so an orphan is recognised even when
its entry is lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.board.qemu import NAME_PREFIX
from framework.board.supervisor import start_time
from framework.common.errors import BoardError
from framework.common.paths import atomic_write_text, cache_root
from framework.common.polling import readable
from framework.common.qemu_ids import FIRST_UID, LAST_UID

QEMU_UIDS = range(FIRST_UID, LAST_UID)
"""Users that QEMU runs as when root starts it."""

_KILL_SECONDS = 30.0
"""Seconds that the kernel may take to end a killed process: it frees gigabytes of guest RAM first."""


@dataclass(frozen=True)
class ProcessId:
    """A process, named unambiguously: its pid and when it started (clock ticks since boot)."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Name a process that runs now. Raises ProcessLookupError when it does not."""
        start = start_time(pid)
        if start is None:
            raise ProcessLookupError(f"there is no process {pid}")
        return cls(pid, start)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return start_time(self.pid) == self.start

    def kill(self) -> bool:
        """Kill it and wait for its end; return False when it was gone already or does not go.

        A later user of the pid is never hit.
        """
        return self._with_handle(_kill)

    def wait_end(self, seconds: float) -> bool:
        """Wait for its end, for ``seconds`` at most; return whether it is gone."""
        self._with_handle(lambda handle: _ended(handle, max(0.0, seconds)))
        return not self.alive

    def _with_handle(self, action: Callable[[int], bool]) -> bool:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # Looked at after the handle was taken: from here on the handle means this process or none.
            return self.alive and action(handle)
        finally:
            os.close(handle)


def _ended(handle: int, seconds: float) -> bool:
    return readable(handle, seconds)


def _kill(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return _ended(handle, _KILL_SECONDS)


@dataclass(frozen=True)
class OrphanProcess:
    """A QEMU or supervisor of ours without an owner."""

    board_id: str
    role: str
    process: ProcessId

    def __str__(self) -> str:
        return f"{self.role} {self.process.pid} of board {self.board_id}"


@dataclass(frozen=True)
class StaleFile:
    """A file of a board that is gone."""

    board_id: str
    path: Path

    def __str__(self) -> str:
        return f"{self.path} of board {self.board_id}"


def boards_folder() -> Path:
    """Return the folder of the entry files."""
    return cache_root() / "boards"


def new_board_id(counter: int) -> str:
    """Make the id of a board that this process owns."""
    me = ProcessId.of(os.getpid())
    return f"{me.pid}-{me.start}-{counter}"


def owner_of(board_id: str) -> ProcessId | None:
    """Read the owner out of a board id; None when it is not one of ours."""
    parts = board_id.split("-")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return ProcessId(int(parts[0]), int(parts[1]))


def write_entry(board_id: str, temporary: list[Path], run_dir: Path) -> Path:
    """Write the entry file of a board that is about to start; its supervisor completes and finally removes it."""
    path = boards_folder() / f"{board_id}.json"
    entry = {"id": board_id, "run_dir": str(run_dir), "temporary": [str(item) for item in temporary]}
    atomic_write_text(path, json.dumps(entry), mode=0o600)
    return path


class Janitor:
    """Looks after the boards of one cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = boards_folder() if folder is None else folder

    def boards(self) -> list[str]:
        """Return the ids of all boards that have an entry, alive or not."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def orphans(self) -> list[OrphanProcess]:
        """Return our processes whose owner is gone; examines every process of this machine, not only those with
        entries."""
        found = []
        for item in Path("/proc").iterdir():
            if not item.name.isdigit():
                continue
            seen = _ours(int(item.name))
            if seen is None:
                continue
            board_id, role, process = seen
            owner = owner_of(board_id)
            if owner is not None and not owner.alive:
                found.append(OrphanProcess(board_id, role, process))
        return found

    def processes_of(self, board_id: str) -> list[OrphanProcess]:
        """Return the processes of one board, whether or not its owner lives: none, once it was stopped."""
        numbers = [int(item.name) for item in Path("/proc").iterdir() if item.name.isdigit()]
        seen = [found for found in map(_ours, numbers) if found is not None]
        return [OrphanProcess(*found) for found in seen if found[0] == board_id]

    def stale_files(self) -> list[StaleFile]:
        """Return the files of boards whose owner, supervisor and QEMU are all gone; each board's entry file
        comes last."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            owner = owner_of(path.stem)
            if owner is not None and owner.alive:
                continue
            entry = _read_entry(path)
            if any(_process(entry, role) for role in ("supervisor", "qemu")):
                continue
            found += [StaleFile(path.stem, Path(item)) for item in entry.get("temporary", []) if Path(item).exists()]
            found.append(StaleFile(path.stem, path))
        return found

    def sweep(self) -> list[OrphanProcess | StaleFile]:
        """End every orphan process, then remove every stale file; return what was found."""
        orphans = self.orphans()
        # QEMU first: a supervisor that sees its QEMU end cleans up by itself.
        for orphan in sorted(orphans, key=lambda item: item.role):
            orphan.process.kill()
        stale_files = self.stale_files()
        for stale in stale_files:
            stale.path.unlink(missing_ok=True)
        return [*orphans, *stale_files]

    def assert_clean(self, seconds: float = 10.0) -> None:
        """Raise BoardError, naming each, when something of a board without an owner is left.

        An owner may have died only just now: its processes have ``seconds`` to end.
        """
        end = time.monotonic() + seconds
        for orphan in self.orphans():
            orphan.process.wait_end(end - time.monotonic())
        left = [str(item) for item in [*self.orphans(), *self.stale_files()]]
        if left:
            raise BoardError(
                "boards outlived their owner: " + ", ".join(left),
                hint="`medcheck clean` ends and removes them",
            )


def _ours(pid: int) -> tuple[str, str, ProcessId] | None:
    """Recognise one of our QEMUs or supervisors by its command line, in this pid namespace only.

    A process can choose its own command line, so only processes that can be ours count.
    """
    try:
        if not _can_be_ours(Path(f"/proc/{pid}").stat().st_uid):
            return None
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not any(NAME_PREFIX.encode() in word for word in words):
            return None
        process = ProcessId.of(pid)
        # Pids in a board's id mean something in the owner's namespace only.
        if Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink():
            return None
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for index, word in enumerate(words[:-1]):
        following = words[index + 1].decode(errors="replace")
        if word == b"-name" and following.startswith(NAME_PREFIX):
            return following[len(NAME_PREFIX) :].partition(",")[0], "qemu", process
        if word.endswith(b"/supervisor.py"):
            entry = re.search(rb'"entry": "[^"]*/([0-9-]+)\.json"', words[-2])
            return None if entry is None else (entry[1].decode(), "supervisor", process)
    return None


def _can_be_ours(uid: int) -> bool:
    """Whether a process of this user can be a board's: of this user, or of those that root starts QEMU as."""
    me = os.geteuid()
    return uid == me or (me == 0 and uid in QEMU_UIDS)


def _read_entry(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text())
    except (OSError, ValueError):
        # An unreadable entry protects no file: its board's processes are found in /proc.
        return {}
    return entry if isinstance(entry, dict) else {}


def _process(entry: dict[str, Any], role: str) -> bool:
    named = entry.get(role)
    if not isinstance(named, dict) or not isinstance(named.get("start"), int):
        return False
    return ProcessId(int(named["pid"]), named["start"]).alive

# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU under its supervisor, as its owner sees it: start, how it ended, kill."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framework.board import supervisor
from framework.common import safe_files
from framework.common.errors import BoardError
from framework.common.host_speed import host_factor

_START_SECONDS = 20.0
_TAIL_BYTES = 64 * 1024
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_thp_lock = threading.Lock()


@dataclass(frozen=True)
class Job:
    """Description of a process to start: the whole command line, the inherited fds, as whom it runs (``auto``, ``keep``
    or a uid), the files around it, and those that it opens by name, for reading and for writing.

    ``file_bytes`` bounds each file that it writes.
    """

    argv: Sequence[str]
    fds: Sequence[int]
    run_as: str | int
    log: Path
    entry: Path
    temporary: Sequence[Path]
    read: Sequence[Path] = ()
    write: Sequence[Path] = ()
    file_bytes: int = 1 << 40


@dataclass(frozen=True)
class Walls:
    """Isolation between a QEMU and the host: the ``uid`` as which it runs, ``view``: whether it sees its own files
    only, Landlock's version (0: the kernel has none), and ``lack``: why it runs as root although it should not."""

    uid: int
    view: bool
    landlock: int
    lack: str


class QemuProcess:
    """One QEMU.

    ``ended`` is set and ``ending`` explains why once QEMU exits; no other state changes asynchronously.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._owner_end, supervisor_owner = os.pipe2(os.O_CLOEXEC)
        self.status_fd, supervisor_status = os.pipe2(os.O_CLOEXEC)
        self._pending = b""
        self._reading = threading.Lock()
        self._closing = threading.Lock()
        self.pid: int | None = None
        self.walls: Walls | None = None
        self.started = threading.Event()
        self.ended = threading.Event()
        self.ending = "QEMU runs"
        self.exit_code: int | None = None
        description = {
            "argv": list(job.argv),
            "run_as": job.run_as,
            "read": [str(path) for path in job.read],
            "write": [str(path) for path in job.write],
            "file_bytes": job.file_bytes,
            "owner": os.getpid(),
            "entry": str(job.entry),
            "temporary": [str(path) for path in job.temporary],
            "fds": list(job.fds),
        }
        command = [
            sys.executable,
            "-I",
            "-S",
            supervisor.__file__,
            str(supervisor_owner),
            str(supervisor_status),
            json.dumps(description),
        ]
        try:
            with os.fdopen(safe_files.create(job.log), "wb") as log, _small_pages():
                self._supervisor = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(supervisor_owner, supervisor_status, *job.fds),
                    start_new_session=True,
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                )
        except BaseException:
            os.close(self._owner_end)
            os.close(self.status_fd)
            raise
        finally:
            os.close(supervisor_owner)
            os.close(supervisor_status)

    @property
    def supervisor_pid(self) -> int:
        """The pid of the process that watches over this QEMU."""
        return self._supervisor.pid

    def read_status(self) -> bool:
        """Read the supervisor's status; return False after its last message. For the console reader thread."""
        with self._reading:
            data = os.read(self.status_fd, 4096)
            self._pending += data
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                self._take(json.loads(line))
            if data:
                return True
            if self.exit_code is None and self.ending == "QEMU runs":
                self.ending = "QEMU's supervisor ended without a word (killed?), and QEMU with it"
            os.close(self.status_fd)
            self._supervisor.wait()
            # The supervisor does this too, for the sake of a dead owner; a killed supervisor could not.
            for path in (*self._job.temporary, self._job.entry):
                path.unlink(missing_ok=True)
            self.started.set()
            self.ended.set()
            return False

    def wait_started(self) -> int:
        """Return QEMU's pid. Raises BoardError when it does not start."""
        if not self.started.wait(_START_SECONDS * host_factor()) or self.pid is None:
            raise BoardError(f"QEMU does not start: {self.ending}\n{self.log_tail()}", where=str(self._job.log))
        return self.pid

    def kill(self) -> None:
        """Have the supervisor kill QEMU; returns at once, may be called twice."""
        with self._closing:
            if self._owner_end >= 0:
                os.close(self._owner_end)
                self._owner_end = -1

    def log_tail(self, lines: int = 10) -> str:
        """Return the last lines of QEMU's own output, indented."""
        text = safe_files.tail(self._job.log, _TAIL_BYTES).decode(errors="replace").strip()
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (QEMU said nothing)"

    def _take(self, report: dict[str, object]) -> None:
        if "qemu" in report:
            self.pid = int(str(report["qemu"]))
        elif "walls" in report:
            self.walls = Walls(**report["walls"])  # type: ignore[arg-type]
        elif "error" in report:
            self.ending = str(report["error"])
        elif "signal" in report:
            number = int(str(report["signal"]))
            self.exit_code = -number
            self.ending = f"QEMU was ended by signal {number} ({signal.Signals(number).name})"
        elif "exit" in report:
            self.exit_code = int(str(report["exit"]))
            # A failed exec has already said what went wrong, in better words than its exit status.
            if self.ending == "QEMU runs":
                self.ending = f"QEMU ended with exit status {self.exit_code}"
        # The two come from two processes, in any order.
        if self.pid is not None and self.walls is not None:
            self.started.set()


@contextmanager
def _small_pages() -> Iterator[None]:
    """Run processes started inside this context, and their children, with transparent huge pages disabled.

    QEMU asks for them for its translated code and its RAM, and begins more of them than it fills: every idle clone
    has 6 MB less without, and xtest takes 2 % longer. Source: prctl(2).
    """
    libc = ctypes.CDLL(None)
    # It is the whole process' setting: of two boards that start at once, the first would undo it for the second, or
    # the second take it for what was there before.
    with _thp_lock:
        before = libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
        try:
            yield
        finally:
            if before == 0:
                libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)

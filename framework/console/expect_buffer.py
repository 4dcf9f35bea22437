# SPDX-License-Identifier: GPL-2.0-or-later
"""pexpect's pattern matching on bytes that another thread hands over."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pexpect
from pexpect.spawnbase import SpawnBase

from framework.common.errors import MedcheckError
from framework.console.wait_policy import next_sample

_WINDOW = 16 * 1024
_CHUNK = 8 * 1024
"""pexpect searches only the last ``searchwindowsize`` bytes after each read: a read as large as the window
would let matches slip by. With half a window per read, a match of up to the other half is never missed."""

_BACKLOG = 64 << 20
_MOST_CHUNKS = 1 << 20
"""A chunk costs some 40 bytes beside its content."""
_UNMATCHED = 1 << 20
"""pexpect keeps everything since the last match; of that, the last MiB (briefly two) stays."""

if TYPE_CHECKING:
    _Base = SpawnBase[bytes]
else:
    _Base = SpawnBase  # generic in its type stubs only


class ExpectBuffer(_Base):
    """pexpect's machinery on top of bytes that the console reader thread hands over."""

    def __init__(self) -> None:
        super().__init__(timeout=None, maxread=_CHUNK, searchwindowsize=_WINDOW)
        self.delaybeforesend = None
        self.delayafterread = None
        self.ready = threading.Condition()
        self.chunks: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.dropped = 0
        self.last_byte = time.monotonic()
        self.last_progress = self.last_byte
        """When the last byte came that was not the same complaint again."""
        self.cut = 0
        """Bytes before the last match that were not kept; see ``before``."""
        self.unkept = 0
        """The same of what comes before the next match."""
        self.cut_now = 0
        """The same of the wait that lasts."""
        self.idle_limit = 0.0
        self.expect_began = 0.0
        self.deadline = 0.0
        self.end: MedcheckError | None = None
        self.alarm: MedcheckError | None = None
        self.window = 0.0
        """Every so many seconds of silence, the last time so many before the wait expires, ``look`` is called;
        0: never."""
        self.sample: Callable[[], Any] = lambda: None
        """Returns what ``seen`` becomes; may raise pexpect.TIMEOUT to end the wait."""
        self.looked_at = 0.0
        self.seen: Any = None

    def put(self, data: bytes) -> float:
        """Take bytes from the console reader thread; of more than 64 MiB that no wait has consumed, the oldest are
        dropped. Returns when the last progress was before."""
        with self.ready:
            before = self.last_progress
            self.last_byte = self.last_progress = time.monotonic()
            for start in range(0, len(data), _CHUNK):
                self.chunks.append(data[start : start + _CHUNK])
            self.waiting_bytes += len(data)
            while self.waiting_bytes > _BACKLOG or len(self.chunks) > _MOST_CHUNKS:
                gone = len(self.chunks.popleft())
                self.waiting_bytes -= gone
                self.dropped += gone
            self.ready.notify_all()
        return before

    def no_progress(self, since: float) -> None:
        """Undo :meth:`put`'s conclusion that the bytes are progress: the last progress was at ``since``."""
        with self.ready:
            self.last_progress = since

    def begin(self, idle_limit: float, longest: float) -> None:
        """Begin a wait; both limits in seconds, the second for the whole of it."""
        self.expect_began = time.monotonic()
        self.idle_limit = idle_limit
        self.deadline = self.expect_began + longest
        self.cut_now = 0
        self.seen = None

    def silent(self) -> float:
        """Return the seconds for which this wait has seen no progress."""
        return time.monotonic() - max(self.expect_began, self.last_progress)

    def matched(self) -> None:
        """End a wait with a match."""
        self.cut, self.unkept = self.unkept, 0

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:  # noqa: ARG002 - pexpect's shape
        """Give pexpect the next bytes, or wait until the console has been silent for too long."""
        while True:
            with self.ready:
                data = self._next()
            if data is not None:
                self._bound()
                return data
            # Not with the lock held, which the console reader thread needs.
            self.looked_at = time.monotonic()
            self.seen = self.sample()

    def _bound(self) -> None:
        """Keep the end of what was not matched: pexpect counts from the end, and searches less than that."""
        spawn: Any = self  # Its type stubs do not know these.
        size = spawn._before.tell()
        if size > 2 * _UNMATCHED:
            kept = spawn._before.getvalue()[-_UNMATCHED:]
            spawn._before = spawn.buffer_type()
            spawn._before.write(kept)
            self.unkept += size - len(kept)
            self.cut_now += size - len(kept)

    def _next(self) -> bytes | None:
        """The next bytes; None when it is time for a sample of the board."""
        while not self.chunks:
            if self.alarm is not None:
                raise self.alarm
            if self.end is not None:
                raise pexpect.EOF("the console ended")
            now = time.monotonic()
            began = max(self.expect_began, self.last_progress)
            limit = began + self.idle_limit
            if self.deadline < limit:
                began, limit = self.expect_began, self.deadline
            if now >= limit:
                raise pexpect.TIMEOUT("the console is silent")
            if self.window:
                limit = next_sample(began, self.looked_at, limit, self.window)
                if now >= limit:
                    return None
            self.ready.wait(limit - now)
        # One-byte chunks are what a UART produces; handing them on together saves a search per byte.
        taken = [self.chunks.popleft()]
        size = len(taken[0])
        while self.chunks and size + len(self.chunks[0]) <= _CHUNK:
            taken.append(self.chunks.popleft())
            size += len(taken[-1])
        self.waiting_bytes -= size
        return b"".join(taken)

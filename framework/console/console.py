# SPDX-License-Identifier: GPL-2.0-or-later
"""Consoles: every byte goes into a log with time stamps, to the crash scanner and to the waits for patterns.

One thread per board (:class:`framework.console.reader_thread.ConsoleReader`) reads all its consoles, whether or not
a caller is waiting. Everything it does per chunk is a handful of C-level scans over the chunk, so the cost per byte
does not depend on what came before.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pexpect

from framework.common import safe_files
from framework.common.errors import BoardError, MedcheckError
from framework.common.host_speed import host_factor
from framework.common.safe_text import decode
from framework.console import wait_policy
from framework.console.crash_signatures import CrashSignature
from framework.console.expect_buffer import ExpectBuffer
from framework.console.scanner import LINE_BYTES, Found, Scanner, first_matches
from framework.console.wait_policy import OnSilence

_DEATH_SECONDS = 1.0
_REPEAT_SECONDS = 2.0
"""Seconds after a repeated complaint in which output (a back trace) belongs to it."""
_COMPLAINTS = frozenset({"linux-panic", "linux-stall", "linux-lockup", "linux-hang", "linux-oom"})
"""Kinds of messages that a system without progress prints repeatedly."""

Watcher = Callable[[bytes], None]

LOG_BYTES = 1 << 30
"""Bytes of a console that are logged; a whole night of xtest prints a thousandth of it."""


class Console:
    """One console of a board. Made by the board; ``end`` is this side's socket of a connected pair.

    A console that continues an earlier one (``append``) writes behind what its log holds already.
    """

    def __init__(
        self, name: str, end: socket.socket, log_path: Path, clock: Callable[[], float], *, append: bool = False
    ) -> None:
        self.name = name
        self.log = log_path
        self.bytes_seen = 0
        self._socket = end
        self._clock = clock
        self._buffer = ExpectBuffer()
        self._expecting = threading.Lock()
        self._sending = threading.Lock()
        self._watches: list[tuple[re.Pattern[bytes], Watcher]] = []
        self._scanner = Scanner(name)
        self._complained: set[str] = set()
        self._repeats_until = 0.0
        self._on_signature: Callable[[Console, CrashSignature, bytes], None] = lambda _console, _signature, _line: None
        self._on_silence: OnSilence | None = None
        self._idle_timeout = 0.0
        self._unfinished = b""
        self._at_line_start = True
        self._log_room = LOG_BYTES
        self._open = True
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_fd = safe_files.create(log_path, append=append)

    @property
    def dropped(self) -> int:
        """Bytes dropped from the expect buffer because nothing read them in time; they are still in the log."""
        return self._buffer.dropped

    @property
    def idle(self) -> float:
        """Seconds since the last byte came."""
        return time.monotonic() - self._buffer.last_byte

    def expect(
        self, patterns: bytes | Sequence[bytes], idle_timeout: float, *, deadline: float | None = None
    ) -> re.Match[bytes]:
        """Wait for the first of some regular expressions, from where the last match ended, and return the
        match.

        ``idle_timeout`` (seconds, scaled by the host factor) counts from the last byte: a console that
        prints is not hung, unless all it prints is the same complaint of its kernel again and again.
        ``deadline`` (seconds, scaled as well; :func:`framework.console.wait_policy.deadline` unless given) limits
        the whole wait, for consoles that chatter for ever. The match's ``lastindex`` and groups are the pattern's
        own; which pattern it was is ``match.re.pattern``. A pattern must not need more than 8 KiB to match.
        Raises BoardError with the last lines when the console stays silent, and at once when the board dies.

        When a wait of 2 s or more expires, the error also says whether the board is hung, idle or slow, what
        of it stood still and where its CPUs are. That costs no time but the monitor's answer (a tenth of a
        second): what moved during the last 5 s (scaled; half of a shorter wait) of the wait itself decides.
        A board whose CPUs all sleep with nothing to wake them, for 15 s (scaled), is not waited for any longer, nor
        one that has had no SMC and no work for its CPUs for ``idle_timeout`` seconds, not scaled.
        """
        wanted = [patterns] if isinstance(patterns, bytes) else list(patterns)
        compiled: list[Any] = [re.compile(pattern, re.DOTALL) for pattern in wanted]
        factor = host_factor()
        with self._expecting:
            buffer = self._buffer
            longest = wait_policy.deadline(idle_timeout) if deadline is None else deadline
            buffer.begin(idle_timeout * factor, longest * factor)
            self._idle_timeout = min(idle_timeout, longest)
            buffer.window = 0.0 if self._on_silence is None else wait_policy.window(min(idle_timeout, longest))
            try:
                buffer.expect_list(compiled, timeout=None)
            except pexpect.TIMEOUT:
                raise self._expired(wanted) from None
            except pexpect.EOF:
                raise self._ended(wanted) from None
            buffer.matched()
            match = buffer.match
            assert isinstance(match, re.Match)
            return match

    @property
    def before(self) -> bytes:
        """Text between the previous match and the last one: its last MiB, after a line that gives the size of anything
        dropped before."""
        before = self._buffer.before
        text = before if isinstance(before, bytes) else b""
        return b"[medcheck: %d bytes before this were not kept]\r\n" % cut + text if (cut := self._buffer.cut) else text

    def send(self, text: str | bytes, idle_timeout: float = 30.0) -> None:
        """Type something.

        Raises BoardError when the board is gone or takes no input for ``idle_timeout`` seconds.
        """
        data = memoryview(text.encode() if isinstance(text, str) else text)
        poll = select.poll()
        with self._sending:
            try:
                poll.register(self._socket, select.POLLOUT)
                while data:
                    if not poll.poll(idle_timeout * host_factor() * 1000):
                        raise BoardError(f"takes no input: {len(data)} bytes are waiting", where=self._where())
                    data = data[self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                raise BoardError("takes no input", where=self._where()) from None
            except (OSError, ValueError) as error:
                raise self._buffer.end or BoardError(f"cannot be written: {error}", where=self._where()) from error

    def sendline(self, text: str | bytes = "") -> None:
        """Type a line and the return key."""
        self.send((text.encode() if isinstance(text, str) else text) + b"\r")

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of the log, with their time stamps; control characters are shown, not obeyed."""
        with self.log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 400 * lines))
            text = stream.read()
        return [decode(line.rstrip(b"\r")) for line in text.rstrip(b"\n").split(b"\n")[-lines:]]

    def watch(self, pattern: bytes, callback: Watcher) -> Callable[[], None]:
        """Call ``callback(line)`` from the console reader thread for each complete line that matches; return a function
        that stops it.

        Of each line, the first 512 bytes count. The callback must be quick and must not wait for the console:
        nothing is read while it runs.
        """
        entry = (re.compile(pattern), callback)
        self._watches.append(entry)
        return lambda: self._watches.remove(entry)

    def alarm(self, error: MedcheckError | None) -> None:
        """Make every wait on this console, present or later, raise ``error`` once the bytes are used up."""
        with self._buffer.ready:
            self._buffer.alarm = error
            self._buffer.ready.notify_all()

    # The rest is for the console reader thread and the board.

    def fileno(self) -> int:
        """Return the file descriptor, so that a selector can wait for the console."""
        return self._socket.fileno()

    def receive(self, size: int = 256 * 1024) -> int:
        """Read once without waiting and feed it; return the number of bytes, 0 for the end, -1 for nothing
        there."""
        if not self._open:
            return 0
        try:
            data = self._socket.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return -1
        except ConnectionResetError:
            return 0
        if data:
            self.feed(data)
        return len(data)

    def feed(self, data: bytes) -> None:
        """Take bytes that came: log them, scan them for problems, and hand them to the expect buffer."""
        self.bytes_seen += len(data)
        try:
            self._write_log(data)
        except OSError as error:
            # A full disk must not stop the board's only reader either.
            self.alarm(BoardError(f"its log cannot be written: {error}", where=self._where()))
        # Handed on before the watches run, so that a wait for a line is not delayed by them.
        progress = self._buffer.put(data)
        end = data.rfind(b"\n") + 1
        if end == 0:
            # Only the beginning of a line is searched.
            self._unfinished = (self._unfinished + data[:LINE_BYTES])[:LINE_BYTES]
        else:
            block = self._unfinished + data[:end]
            self._unfinished = data[end : end + LINE_BYTES]
            self._look(block)
        if time.monotonic() < self._repeats_until:
            self._buffer.no_progress(progress)

    def settle(self, *, now: bool = False) -> bool:
        """Report a crash signature whose next lines do not come (``now``: will not); return whether one may still
        come."""
        self._tell(self._scanner.settle(now=now))
        return self._scanner.waits

    def _look(self, block: bytes) -> None:
        """Scan whole lines for problems and for watched patterns."""
        self._tell(self._scanner.feed(block))
        try:
            for pattern, callback in tuple(self._watches):
                for line in first_matches(pattern, block):
                    callback(line)
        except Exception as error:
            # A mistake in a callback must not stop the board's only reader; the next expect tells
            # of it.
            self.alarm(BoardError(f"a watch callback failed: {error!r}", where=self._where()))

    def _tell(self, found: Sequence[Found]) -> None:
        for signature, line in found:
            if signature.kind in self._complained:
                self._repeats_until = time.monotonic() + _REPEAT_SECONDS
            elif signature.kind in _COMPLAINTS:
                self._complained.add(signature.kind)
            try:
                self._on_signature(self, signature, line)
            except Exception as error:
                self.alarm(BoardError(f"a watch callback failed: {error!r}", where=self._where()))

    def close(self, reason: MedcheckError) -> None:
        """End the console: every wait raises ``reason``."""
        if self._open:
            self._tell(self._scanner.feed(self._unfinished + b"\n") if self._unfinished else [])
            self.settle(now=True)
        with self._buffer.ready:
            if not self._open:
                return
            self._open = False
            self._buffer.end = reason
            self._buffer.ready.notify_all()
        self._socket.close()
        os.close(self._log_fd)

    def on_signature(self, callback: Callable[[Console, CrashSignature, bytes], None]) -> None:
        """Set the callback that receives problems (the board's)."""
        self._on_signature = callback

    def on_silence(self, callback: OnSilence) -> None:
        """Set the callback that explains silence (the board's hang detector)."""
        self._on_silence = callback
        self._buffer.sample = self._sample

    def _sample(self) -> Any:
        assert self._on_silence is not None
        seen = self._on_silence.sample()
        # What stood still is told from two samples of this wait.
        if self._buffer.seen is not None and wait_policy.in_vain(
            self._on_silence, self._idle_timeout, self._buffer.silent()
        ):
            raise pexpect.TIMEOUT("the board sleeps for ever")
        return seen

    def _write_log(self, data: bytes) -> None:
        stamp = b"[%10.3f] " % self._clock()
        text = data.replace(b"\n", b"\n" + stamp)
        if self._at_line_start:
            text = stamp + text
        self._at_line_start = data.endswith(b"\n")
        if self._at_line_start:
            text = text[: -len(stamp)]
        if self._log_room <= 0:
            return
        self._log_room -= len(text)
        if self._log_room <= 0:
            # A guest decides how much it prints, so the disk needs a bound.
            text += b"\n" + stamp + b"---- the log of this console is full; what came later is lost ----\n"
        view = memoryview(text)
        while view:
            view = view[os.write(self._log_fd, view) :]

    def _where(self) -> str:
        return f"console {self.name}"

    def _tail_text(self) -> str:
        lines = self.tail(12)
        return "\n".join(f"    {line}" for line in lines) if lines != [""] else "    (nothing was printed)"

    def _expired(self, wanted: Sequence[bytes]) -> MedcheckError:
        """Return the error of an expired wait; the board's death if that is why nothing came."""
        buffer, idle, now = self._buffer, self.idle, time.monotonic()
        why = self._on_silence.explain(buffer.seen) if self._on_silence is not None and buffer.window else ""
        with buffer.ready:
            if why is None:
                buffer.ready.wait_for(lambda: buffer.end is not None, _DEATH_SECONDS)
            if buffer.alarm is not None:
                return buffer.alarm
            if buffer.end is not None:
                return self._ended(wanted)
        names = " or ".join(repr(pattern.decode(errors="replace")) for pattern in wanted)
        what = f"no byte for {idle:.1f} s while waiting for {names}"
        if now - buffer.last_progress > idle + _REPEAT_SECONDS:
            what = (
                f"nothing but the same complaints for {now - buffer.last_progress:.1f} s while waiting for {names} "
                f"(the last byte came {idle:.1f} s ago)"
            )
        if now >= buffer.deadline:
            what = (
                f"{now - buffer.expect_began:.1f} s passed while waiting for {names}, which is all it was given "
                f"(the last byte came {idle:.1f} s ago)"
            )
        if buffer.cut_now:
            what += f"; {buffer.cut_now} bytes of it were not kept"
        text = f"\n    {why}\n" if why else "; "
        return BoardError(
            f"{what}{text}the last lines:\n{self._tail_text()}",
            where=self._where(),
            hint=f"the whole console is in {self.log}",
            hang=True,
        )

    def _ended(self, wanted: Sequence[bytes]) -> MedcheckError:
        names = " or ".join(repr(pattern.decode(errors="replace")) for pattern in wanted)
        end = self._buffer.end
        what = "the console ended" if end is None else end.what
        return BoardError(
            f"{what}; it happened while waiting for {names}; the last lines:\n{self._tail_text()}",
            where=self._where(),
            hint=None if end is None else end.hint,
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""One channel of an SSH connection: both directions served with a deadline, lines as they come, exit code last."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import paramiko

from framework.common.errors import GuestError
from framework.common.host_speed import host_factor
from framework.common.polling import readable
from framework.console.wait_policy import OnSilence, in_vain, next_sample, window
from framework.console.wait_policy import deadline as longest

Alive = Callable[[], None]
"""Raises GuestCrash or BoardError when the other side is dead; called about once a second while waiting."""

TICK = 0.5
_CHUNK = 64 * 1024
_LONGEST_LINE = 1 << 20
MOST_OUTPUT = 256 << 20
"""Bytes of a command's output that are taken: a guest must not fill this machine's memory."""


class SilentGuestError(GuestError):
    """A command that a guest had begun gave no byte for too long."""


class EndlessOutputError(GuestError):
    """A command printed more than its limit, or still printed at its deadline."""


class CommandStream:
    """The lines of a running command, each with its line end unless it is a piece of a longer one (pieces
    are at most 1 MiB) or the last. :attr:`rc` holds the exit code once the lines have ended."""

    def __init__(self, channel: paramiko.Channel, talk: Talk) -> None:
        self.rc: int | None = None
        self._channel = channel
        self._talk = talk

    def __iter__(self) -> Iterator[bytes]:
        """Wait for lines; raises GuestError when none comes for the stream's idle timeout, EndlessOutputError at the
        stream's limit or deadline."""
        try:
            rest = b""
            for data, _ in self._talk.pieces():
                lines = split_lines(rest + data)
                rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
                yield from lines
                while len(rest) >= _LONGEST_LINE:
                    yield rest[:_LONGEST_LINE]
                    rest = rest[_LONGEST_LINE:]
            if rest:
                yield rest
            self.rc = self._talk.exit_code()
        finally:
            self.close()

    def close(self) -> None:
        """Leave the command to itself; may be called twice."""
        self._channel.close()


class Talk:
    """Both directions of one channel, read to the end with a deadline before the exit code is requested.

    paramiko's ``recv_exit_status`` knows no timeout and never returns when output is left unread.
    """

    def __init__(
        self, channel: paramiko.Channel, stdin: bytes, idle_timeout: float, alive: Alive, what: str,
        where: str, on_silence: OnSilence | None = None, *, limit: int = MOST_OUTPUT, deadline: float | None = None,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._stdin = memoryview(stdin)
        self._idle_timeout = idle_timeout
        self._limit = idle_timeout * host_factor()
        self._alive = alive
        self._what = what
        self._where = where
        self._room = self._most = limit
        self._longest = (longest(idle_timeout) if deadline is None else deadline) * host_factor()
        self._began = self._moved = time.monotonic()
        self._wrote_all = False
        self._on_silence = on_silence
        self._window = 0.0 if on_silence is None else window(idle_timeout)
        self._sampled = 0.0
        self._seen: object = None

    def pieces(self) -> Iterator[tuple[bytes, bool]]:
        """Give what the command prints, True for stderr, until it has closed both streams."""
        channel = self._channel
        checked = time.monotonic()
        while True:
            self._write()
            got = False
            if channel.recv_ready():
                got = True
                yield self._counted(channel.recv(_CHUNK)), False
            if channel.recv_stderr_ready():
                got = True
                yield self._counted(channel.recv_stderr(_CHUNK)), True
            now = time.monotonic()
            if now - self._began > self._longest:
                raise EndlessOutputError(
                    f"{self._what}: not done after {now - self._began:.0f} s, which is all it was given",
                    where=self._where,
                )
            if now - checked >= 2 * TICK:
                checked = now
                self._alive()
            if got:
                self._moved = now
                continue
            if channel.eof_received or channel.closed:
                # Bytes may have come between the last read and the end mark.
                if channel.recv_ready() or channel.recv_stderr_ready():
                    continue
                return
            self._check_silence(now)
            readable(channel, TICK if self._wrote_all else 0.02)

    def _counted(self, data: bytes) -> bytes:
        self._room -= len(data)
        if self._room < 0:
            raise EndlessOutputError(f"{self._what} prints more than {self._most} bytes", where=self._where)
        return data

    def exit_code(self) -> int:
        """Wait for the exit code, -1 for a signal; raises GuestError when the connection broke before."""
        channel = self._channel
        while not channel.exit_status_ready():
            self._alive()
            self._check_silence(time.monotonic())
            channel.status_event.wait(TICK)
        if channel.exit_status == -1 and not channel.get_transport().is_active():
            self._alive()
            raise GuestError(f"{self._what}: the connection broke before it ended", where=self._where)
        return channel.exit_status

    def _write(self) -> None:
        channel = self._channel
        while not self._wrote_all and (not self._stdin or channel.send_ready()):
            if not self._stdin or channel.closed:
                with contextlib.suppress(OSError):
                    channel.shutdown_write()
                self._wrote_all = True
                return
            try:
                self._stdin = self._stdin[channel.send(self._stdin[:_CHUNK].tobytes()) :]
            except OSError:
                # The command closed its standard input early; what it printed and its exit code say why.
                self._stdin = self._stdin[:0]
            self._moved = time.monotonic()

    def _check_silence(self, now: float) -> None:
        limit = self._moved + self._limit
        if now <= limit and not self._hopeless(now, limit):
            return
        self._alive()
        why = self._on_silence.explain(self._seen) if self._on_silence is not None and self._window else ""
        if why is None:
            self._alive()
        raise SilentGuestError(
            f"{self._what}: no byte for {now - self._moved:.0f} s" + (f"\n    {why}" if why else ""),
            where=self._where, hint="it hangs, or the guest does; the consoles say more", hang=True,
        )  # fmt: skip

    def _hopeless(self, now: float, limit: float) -> bool:
        """Sample the board's activity if it is time to; return whether it sleeps for ever."""
        if self._on_silence is None or not self._window:
            return False
        if now < next_sample(self._moved, self._sampled, limit, self._window):
            return False
        self._sampled = now
        seen = self._on_silence.sample()
        # What stood still is told from two samples of this wait.
        if self._seen is not None and in_vain(self._on_silence, self._idle_timeout, now - self._moved):
            return True
        self._seen = seen
        return False


def split_lines(data: bytes) -> list[bytes]:
    """Split at newlines only: a lone carriage return belongs to its line."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def short(command: str) -> str:
    """A command as errors show it: one line of at most 120 characters."""
    first = " ".join(command.split())
    return first if len(first) <= 120 else f"{first[:117]}..."

"""How programs reach the probe guest and results come back: its console, or the trace plugin's doorbell."""

from __future__ import annotations

import base64
import re
import struct
import threading
import zlib
from collections.abc import Sequence
from typing import Protocol

from framework.errors import GuestError
from framework.guests.probe_ops import MAILBOX, PROGRAM, PROTOCOL, RESULTS

_LINE = rb"@([HREN]) ([^\r\n]*)\r?\n"
_ATTEMPTS = 3
_PIECE = 512
"""Bytes typed at a time: Xen's console ring towards a guest holds 1024."""


class Transport(Protocol):
    """Carries one program at a time."""

    def execute(self, program: bytes, timeout_s: float) -> bytes:
        """Have the probe run a program; its records. Raises GuestError when nothing comes back."""
        ...

    def close(self) -> None:
        """Let go of what carries it."""
        ...


class ConsoleLike(Protocol):
    """The part of :class:`framework.board.consoles.Console` that is used here."""

    name: str

    def expect(self, patterns: bytes | Sequence[bytes], idle_timeout: float) -> re.Match[bytes]:
        """Wait for a regular expression."""
        ...

    def send(self, text: str | bytes) -> None:
        """Type something."""
        ...


class ConsoleTransport:
    """Frames on the probe's PV console: works on every board, a few milliseconds for each program."""

    def __init__(self, console: ConsoleLike) -> None:
        self._console = console
        self._sequence = 0

    def hello(self, timeout_s: float = 20.0) -> None:
        """Wait until the probe answers; raises GuestError when it speaks another protocol."""
        self._console.send(b"\n?\n")
        fields = self._await(b"H", timeout_s).split()
        if int(fields[0], 16) != PROTOCOL:
            raise GuestError(
                f"it speaks protocol {int(fields[0], 16)}, this client {PROTOCOL}", where=self._console.name
            )

    def execute(self, program: bytes, timeout_s: float) -> bytes:
        """Send a program as one frame; again when the probe found it damaged."""
        for _ in range(_ATTEMPTS):
            self._sequence += 1
            crc = zlib.crc32(program)
            head = f"P {self._sequence:x} {len(program):x} {crc:x} ".encode()
            frame = head + base64.b64encode(program) + b"\n"
            for start in range(0, len(frame), _PIECE):
                self._console.send(frame[start : start + _PIECE])
            found = self._results(timeout_s)
            if found is not None:
                return found
        raise GuestError(f"a program was damaged on its way {_ATTEMPTS} times", where=self._console.name)

    def close(self) -> None:
        """Nothing: the console belongs to the board."""

    def _results(self, timeout_s: float) -> bytes | None:
        parts: list[bytes] = []
        while True:
            match = self._console.expect([_LINE], timeout_s)
            kind, fields = match[1], match[2].split()
            if kind == b"H" or int(fields[0], 16) != self._sequence:
                continue
            if kind == b"N":
                return None
            if kind == b"R":
                parts.append(base64.b64decode(fields[1]))
                continue
            data = b"".join(parts)
            if len(data) != int(fields[1], 16) or zlib.crc32(data) != int(fields[2], 16):
                raise GuestError("results were damaged on their way", where=self._console.name)
            return data

    def _await(self, kind: bytes, timeout_s: float) -> bytes:
        while True:
            match = self._console.expect([_LINE], timeout_s)
            if match[1] == kind:
                return match[2]


class HeldLike(Protocol):
    """The part of :class:`framework.trace.live.Held` that is used here."""

    def read_ipa(self, ipa: int, length: int) -> bytes:
        """Guest memory."""
        ...

    def write_ipa(self, ipa: int, data: bytes) -> None:
        """Change guest memory."""
        ...


class DoorbellTransport:
    """Programs through the mailbox, handed over while the probe's vCPU stands at its doorbell.

    Whoever reads the board's lock-step events calls :meth:`serve` for each doorbell of this probe's domain;
    another thread calls :meth:`execute`. The vCPU is held only while memory is copied, never while Python
    thinks, except for ``linger_s`` after results, in which the next program usually comes.
    """

    _BOX = struct.Struct("<8Q")
    _IDLE, _PROGRAM, _NONE = 1, 2, 3

    def __init__(self, linger_s: float = 0.0005) -> None:
        self.linger_s = linger_s
        self.rings = 0
        self._sequence = 0
        self._waiting: bytes | None = None
        self._sent = 0
        self._results: bytes | None = None
        self._error: GuestError | None = None
        self._changed = threading.Condition()

    def serve(self, held: HeldLike) -> None:
        """Answer one ring: take results that lie ready, hand over a program that waits."""
        self.rings += 1
        _, _, _, _, sequence, words, version, _ = self._BOX.unpack(held.read_ipa(MAILBOX, self._BOX.size))
        with self._changed:
            if version != PROTOCOL:
                self._error = GuestError(f"the probe speaks protocol {version}, this client {PROTOCOL}")
                self._changed.notify_all()
                return
            if self._sent and sequence == self._sent:
                self._results = held.read_ipa(RESULTS, 8 * words) if words else b""
                self._sent = 0
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None, self.linger_s)
            state, length = self._NONE, 0
            if self._waiting is not None:
                program, self._waiting = self._waiting, None
                self._sequence += 1
                self._sent = self._sequence
                state, length = self._PROGRAM, len(program) // 8
                held.write_ipa(PROGRAM, program)
        held.write_ipa(MAILBOX + 8, struct.pack("<3Q", state, self._sequence, length))

    def execute(self, program: bytes, timeout_s: float) -> bytes:
        """Leave a program for the next ring and wait for its results."""
        with self._changed:
            self._results, self._waiting = None, program
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._results is not None or self._error, timeout_s)
            if self._error is not None:
                raise self._error
            if not done or self._results is None:
                state = "took the program and has not come back" if self._sent else "has not rung"
                raise GuestError(
                    f"the probe {state} for {timeout_s:.0f} s",
                    hint="is it alive, and does somebody serve the board's doorbell events?",
                )
            return self._results

    def close(self) -> None:
        """Nothing: the lock-step socket belongs to the board."""


class Doorbells:
    """All probes of a board that talk through the doorbell, told apart by their domain.

    Give :meth:`serve` every event of kind DOORBELL while its vCPU is held (``LiveConsumer(hold={Kind.DOORBELL})``).
    """

    def __init__(self) -> None:
        self._transports: dict[int | None, DoorbellTransport] = {}

    def transport(self, domid: int | None) -> DoorbellTransport:
        """The way to one domain's probe; None: of a board whose plugin does not know domains, and one probe."""
        return self._transports.setdefault(domid, DoorbellTransport())

    def serve(self, domid: int | None, held: HeldLike) -> None:
        """Answer a ring of a domain's probe; one that nobody talks to is left alone."""
        transport = self._transports.get(domid) or self._transports.get(None)
        if transport is not None:
            transport.serve(held)

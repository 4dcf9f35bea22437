# SPDX-License-Identifier: GPL-2.0-or-later
"""Transports of programs to the probe guest and of results back: its console, or the trace plugin's doorbell."""

from __future__ import annotations

import base64
import re
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol

from framework.common.errors import GuestError, TraceError
from framework.common.host_speed import host_factor
from framework.console.wait_policy import deadline
from framework.probe.ops import MAILBOX, PROTOCOL, RESULTS, RESULTS_SIZE
from framework.trace.format import Kind
from framework.trace.live import Held, Hold, HoldNews, LiveConsumer

_LINE = rb"@([HREN]) ([^@\r\n]{0,1000})\r?\n"
"""A line of results has 768 characters of base64, which knows no "@"."""
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_ATTEMPTS = 3
_PIECE = 512
"""Bytes typed at a time: Xen's console ring towards a guest holds 1024."""


class Transport(Protocol):
    """Carries one program at a time."""

    def execute(self, program: bytes, timeout_s: float) -> bytes:
        """Have the probe run a program; its records. Raises GuestError when nothing comes back."""
        ...

    def close(self) -> None:
        """Release the carrier."""
        ...


class ConsoleLike(Protocol):
    """The part of :class:`framework.console.console.Console` that is used here."""

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
        protocol = next(self._number(fields, 0) for kind, fields in self._lines(timeout_s) if kind == b"H")
        if protocol != PROTOCOL:
            raise GuestError(f"it speaks protocol {protocol}, this client {PROTOCOL}", where=self._console.name)

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
        """Do nothing: the console belongs to the board."""

    def _results(self, timeout_s: float) -> bytes | None:
        data = bytearray()
        for kind, fields in self._lines(timeout_s):
            if kind == b"H" or self._number(fields, 0) != self._sequence:
                continue
            if kind == b"N":
                return None
            if kind == b"E":
                if len(data) != self._number(fields, 1) or zlib.crc32(data) != self._number(fields, 2):
                    raise GuestError("results were damaged on their way", where=self._console.name)
                break
            try:
                data += base64.b64decode(fields[1], validate=True)
            except (IndexError, ValueError):
                raise self._malformed(fields) from None
            if len(data) > RESULTS_SIZE:
                raise GuestError(f"it gives more than {RESULTS_SIZE} bytes of results", where=self._console.name)
        return bytes(data)

    def _lines(self, timeout_s: float) -> Iterator[tuple[bytes, list[bytes]]]:
        """The lines of the protocol, each with its fields, until :func:`deadline`; a guest may send any for ever."""
        end = time.monotonic() + deadline(timeout_s) * host_factor()
        while True:
            match = self._console.expect([_LINE], timeout_s)
            yield match[1], match[2].split()
            if time.monotonic() > end:
                raise GuestError("it sends lines for ever, and not the one that is due", where=self._console.name)

    def _number(self, fields: Sequence[bytes], at: int) -> int:
        if at >= len(fields) or not _HEX.fullmatch(fields[at]):
            raise self._malformed(fields)
        return int(fields[at], 16)

    def _malformed(self, fields: Sequence[bytes]) -> GuestError:
        return GuestError(f"a line that is not the probe's: {b' '.join(fields)[:80]!r}", where=self._console.name)


class EventLike(Protocol):
    """The part of :class:`framework.trace.event.Event` that is used here."""

    @property
    def regs(self) -> Sequence[int]:
        """Registers."""
        ...


class HeldLike(Protocol):
    """The part of :class:`framework.trace.live.Held` that is used here."""

    @property
    def event(self) -> EventLike:
        """The event at which the vCPU waits."""
        ...

    def read_ipa(self, ipa: int, length: int) -> bytes:
        """Guest memory."""
        ...

    def release(self, *, writes: Sequence[tuple[int, bytes]]) -> None:
        """Change guest memory and let the vCPU go."""
        ...


class DoorbellTransport:
    """Programs through the mailbox, handed over while the probe's vCPU stands at its doorbell.

    The reader of the board's lock-step events calls :meth:`serve` for each doorbell of this probe's domain; another
    thread calls :meth:`execute`. The vCPU, and every other caller, is held only while memory is copied, except for
    ``linger_s`` after results, in which the next program usually comes.
    """

    _PROGRAM, _NONE = 2, 3

    def __init__(self, linger_s: float = 0.002) -> None:
        self.linger_s = linger_s
        self.rings = 0
        self._given = 0  # sequence of the latest program handed to execute()
        self._sent = 0  # sequence of the program that the probe has, 0: none
        self._programs: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._answers: SimpleQueue[tuple[int, bytes | GuestError]] = SimpleQueue()
        self._gone: GuestError | None = None

    def serve(self, held: HeldLike) -> None:
        """Answer one ring: take results that lie ready, hand over a program that waits."""
        self.rings += 1
        _, sequence, words, version = held.event.regs[:4]
        finished = self._sent != 0 and sequence == self._sent
        if finished:
            # Whatever reading them meets, this program is over.
            self._sent = 0
            self._answers.put((sequence, self._results(held, words)))
        waiting = self._next(self.linger_s if finished else 0.0)
        state, program = self._NONE, b""
        if waiting is not None and version != PROTOCOL:
            text = f"the probe speaks protocol {version}, this client {PROTOCOL}"
            self._answers.put((waiting[0], GuestError(text)))
        elif waiting is not None:
            state, (self._sent, program) = self._PROGRAM, waiting
        box = struct.pack("<3Q", state, self._sent, len(program) // 8)
        held.release(writes=[(MAILBOX + 8, box + program)])

    def _results(self, held: HeldLike, words: int) -> bytes | GuestError:
        if 8 * words > RESULTS_SIZE:
            return GuestError(f"the probe claims {words} words of results; there is room for {RESULTS_SIZE // 8}")
        try:
            return held.read_ipa(RESULTS, 8 * words) if words else b""
        except TraceError as error:
            return GuestError(f"the probe's results cannot be read: {error.what}")

    def execute(self, program: bytes, timeout_s: float) -> bytes:
        """Hand over a program at the next ring and wait for its results."""
        if self._gone is not None:
            raise self._gone
        self._given += 1
        self._programs.put((self._given, program))
        while True:
            try:
                number, answer = self._answers.get(timeout=timeout_s)
            except Empty:
                state = "has not rung" if self._next(0.0) else "took the program and has not come back"
                raise GuestError(
                    f"the probe {state} for {timeout_s:.0f} s",
                    hint="is it alive, and is there a thread that serves the board's doorbell events?",
                ) from None
            if isinstance(answer, GuestError):
                raise answer
            if number == self._given:  # and not of an earlier program, which was given up
                return answer

    def fail(self, reason: GuestError) -> None:
        """Report that the program handed over last did not arrive."""
        if self._sent:
            self._answers.put((self._sent, reason))
            self._sent = 0

    def hang_up(self, reason: GuestError) -> None:
        """End the service: present and later :meth:`execute` calls raise."""
        self._gone = reason
        self._answers.put((0, reason))

    def close(self) -> None:
        """Do nothing: the lock-step socket belongs to the board."""

    def _next(self, timeout_s: float) -> tuple[int, bytes] | None:
        try:
            return self._programs.get(timeout_s > 0, timeout_s)
        except Empty:
            return None


class DoorbellServer(AbstractContextManager["DoorbellServer"]):
    """All probes of a board that talk through the doorbell: a thread at the board's lock-step socket serves them.

        with DoorbellServer() as bells:
            ...start a board with the plugin argument lockstep=<bells.socket>, create a probe on it...
            probe.transport = bells.transport(probe.domid)

    Leave the context after the board has ended: a plugin that loses its consumer stops the board.

    ``socket`` is in a folder that it makes and removes. ``hold``, ``before``: further kinds of events at which vCPUs
    wait, as in :class:`framework.trace.live.LiveConsumer`, until ``on_event`` has seen them.

    ``watch``: called in the server's thread with every record of the board, in order, rings included, each before it
    is answered. So what came before a program's results has been watched when they are returned.
    """

    def __init__(
        self,
        *,
        hold: Collection[Kind] = (),
        before: Collection[Kind] = (),
        on_event: Callable[[Held], None] | None = None,
        watch: Callable[[Held], None] | None = None,
    ) -> None:
        # Not in a board's own folder: a socket's path is at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="medcheck-")
        self.socket = Path(self._folder.name) / "lockstep"
        self._on_event = on_event
        self._watch = watch
        self._transports: dict[int | None, DoorbellTransport] = {}
        self._gone: GuestError | None = None
        self._consumer = LiveConsumer(
            self.socket,
            hold={Kind.DOORBELL, *hold},
            before=before,
            send=() if watch is None else tuple(Kind),
            on_failed_write=lambda event, text: self.fail(event.domain, text),
            on_hold=lambda news, path: self._news.put((news, path)),
        )
        self._news: SimpleQueue[tuple[HoldNews, Sequence[int]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="doorbells", daemon=True)

    def __enter__(self) -> DoorbellServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transport(self, domid: int | None) -> DoorbellTransport:
        """The way to one domain's probe; None: of a board whose plugin does not know domains, and one probe."""
        transport = self._transports.setdefault(domid, DoorbellTransport())
        if self._gone is not None:
            transport.hang_up(self._gone)
        return transport

    def serve(self, domid: int | None, held: HeldLike) -> None:
        """Answer a ring of a domain's probe; one without a transport is left alone."""
        transport = self._transports.get(domid) or self._transports.get(None)
        if transport is not None:
            transport.serve(held)

    def hold(self, wanted: Hold) -> None:
        """Have a vCPU stand at a point of Xen; it is in force before the next program begins."""
        self._consumer.hold(wanted)

    def news(self, timeout_s: float) -> tuple[HoldNews, Sequence[int]] | None:
        """Return the next thing that became of a hold, and the addresses of a path; None when none comes in time."""
        try:
            return self._news.get(timeout_s > 0, timeout_s)
        except Empty:
            return None

    def fail(self, domid: int | None, text: str) -> None:
        """Report that a program could not be handed over: the mailbox is the guest's, which may take it away."""
        transport = self._transports.get(domid) or self._transports.get(None)
        if transport is not None:
            transport.fail(GuestError(f"the probe's mailbox cannot be written: {text}"))

    def close(self) -> None:
        """Hang up; calls that wait for a probe raise."""
        self._consumer.close()
        self._thread.join()
        self._folder.cleanup()

    def _served(self) -> bool:
        """Answer rings until the board ends; whether it has.

        A guest may give its mailbox away, so that it cannot be written: that is known at the next event, and no matter
        of the other probes.
        """
        try:
            for held in self._consumer.events():
                if self._watch is not None:
                    self._watch(held)
                if held.event.kind == Kind.DOORBELL:
                    self.serve(held.event.domain, held)
                elif self._on_event is not None:
                    self._on_event(held)
        except TraceError:
            return False
        return True

    def _run(self) -> None:
        reason = "the board has ended"
        try:
            self._consumer.accept()
            while not self._served():
                continue
        except Exception as error:
            reason = f"the lock-step socket broke: {error.what if isinstance(error, TraceError) else repr(error)}"
        finally:
            self._consumer.close()
            self._gone = GuestError(reason, where=str(self.socket))
            for transport in list(self._transports.values()):
                transport.hang_up(self._gone)

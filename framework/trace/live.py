# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-step: a consumer that sees each event while the vCPU waits, and may change registers and memory before
it lets go. The other end is ``plugin/lockstep.c``; ``docs/trace-format.md`` has the messages.

    with LiveConsumer(path, hold={Kind.GUEST_CALL}) as consumer:
        ...start a board with the plugin argument lockstep=<path>...
        consumer.accept(timeout_s=30)
        for held in consumer.events():
            look(held.event, held.read_ipa(...))      # the next turn of the loop lets the vCPU go

When the consumer's process dies or the loop ends with an exception, the socket closes, and the plugin stops
the board or goes on without it, as configured (``PluginOptions.stop_on_loss``).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from framework.common.errors import TraceError, UsageError
from framework.trace.event import Event
from framework.trace.format import RECORD_LIMIT, Kind
from framework.trace.peer import is_welcome

_HEADER = struct.Struct("<IHH")
_MEMORY = struct.Struct("<QII")
_LEAF = struct.Struct("<QQII")
_HOLD = struct.Struct("<QIIHHI")
_WAITS, _BEFORE = 1, 2
_RECEIVE = 1 << 18
_PATH_LIMIT = 107
_REQUEST_LIMIT = 1 << 20


class Message(IntEnum):
    """Types of messages; the plugin's have numbers below 0x80."""

    HELLO = 1
    EVENT = 2
    REPLY = 3
    BYE = 4
    HELD = 5
    SETUP = 0x80
    READ_REG = 0x81
    WRITE_REG = 0x82
    READ_MEM = 0x83
    WRITE_MEM = 0x84
    CONTINUE = 0x85
    DETACH = 0x86
    STOP = 0x87
    TRANSLATE = 0x88
    COVERAGE = 0x89
    HOLD = 0x8A


class Space(IntEnum):
    """Meaning of an address: machine, guest-physical (through the vCPU's stage-2 tables), or virtual right
    now."""

    MA = 0
    IPA = 1
    VA = 2


class HoldMode(IntEnum):
    """What the plugin does about a vCPU: nothing (whatever it stands at, it goes on), hold it at a point, or note the
    mediator's code that it executes."""

    NONE = 0
    AT_POINT = 1
    PATH = 2


class HoldNews(IntEnum):
    """What became of a :class:`Hold`: the vCPU stands; it was let go; it went on because another one only waited, or
    because nothing let it go in time; and the mediator's code that it executed."""

    REACHED = 1
    RELEASED = 2
    OTHER_WAITS = 3
    EXPIRED = 4
    PATH = 5


@dataclass(frozen=True, slots=True)
class Hold:
    """A vCPU of a domain that is to stand still when it comes to ``at`` for the ``passing``-th time.

    ``at``: the address of an instruction of Xen's, or a :class:`Kind` of event, before it happens. Of the mediator,
    any instruction; elsewhere one at which a block begins, such as a function's first.
    """

    domain: int
    vcpu: int
    at: int = 0
    passing: int = 1
    mode: HoldMode = HoldMode.AT_POINT


_ERRORS = {
    1: "no such register, or it cannot be written",
    2: "the address is not mapped, or not to RAM",
    3: "the memory there cannot be accessed (secure or absent)",
    4: "the plugin does not understand the request",
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A guest page's stage-2 translation: ``ma`` is None when there is none."""

    ma: int | None
    pte: int
    level: int


class LiveConsumer:
    """The consumer's end of one board's lock-step socket. A context manager.

    ``hold``: the kinds of events at which the vCPU waits once they are recorded; ``before``: those at which it waits
    before they are, too, so that a change is part of the record; ``send``: kinds that are sent without waiting, in
    batches. ``on_failed_write``: called for a write given to :meth:`Held.release` that failed, with the event at which
    it was given and a text; without it, :meth:`events` raises. ``on_hold``: called for what becomes of :meth:`hold`,
    with the addresses of a path.

    The socket belongs to this process's user alone. To let a QEMU of another user connect, give the socket to that
    user; of that user's processes only those that this process started are let in.
    """

    def __init__(
        self,
        path: Path,
        *,
        hold: Collection[Kind] = (),
        send: Collection[Kind] = (),
        before: Collection[Kind] = (),
        on_failed_write: Callable[[Event, str], None] | None = None,
        on_hold: Callable[[HoldNews, Sequence[int]], None] | None = None,
    ) -> None:
        if len(str(path)) > _PATH_LIMIT:
            raise UsageError(f"the socket's path is longer than {_PATH_LIMIT} characters: {path}")
        self.path = path
        self.meta: dict[str, Any] = {}
        self._setup = _masks(send, hold, before)
        self._buffer = bytearray()
        self._owed: deque[tuple[Event, str]] = deque()  # what was asked for without waiting for the answer
        self._on_failed_write = on_failed_write
        self._on_hold = on_hold
        self._holds: deque[bytes] = deque()  # asked for by any thread, sent with the next release
        self._connection: socket.socket | None = None
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Before bind: the file gets the socket's mode. A umask is the whole process's, and threads make files too.
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def __enter__(self) -> LiveConsumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def accept(self, timeout_s: float | None = None, *, pid: int | None = None) -> None:
        """Wait for the plugin and greet it.

        ``pid``: QEMU's, when it is known; nothing else is let in then.

        Raises :class:`TraceError` when none comes in time, when it hangs up before its greeting or greets with
        something else, and when another thread calls :meth:`close` meanwhile.
        """
        self._connection = self._plugins_connection(timeout_s, pid)
        if self._closed:  # between the two lines above
            self._connection.close()
            raise self._hung_up()
        self._connection.settimeout(timeout_s)
        try:
            kind, _, payload = self._receive()
        except EOFError as error:
            raise TraceError("the board hung up before its greeting", where=str(self.path)) from error
        if kind != Message.HELLO:
            raise TraceError(f"the plugin began with message {kind}, not a greeting", where=str(self.path))
        try:
            self.meta = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"the plugin's greeting is no JSON: {error}", where=str(self.path)) from error
        if not isinstance(self.meta, dict):
            raise TraceError("the plugin's greeting is no JSON object", where=str(self.path))
        self._put(Message.SETUP, self._setup)
        self._connection.settimeout(None)

    def events(self) -> Iterator[Held]:
        """Yield events until the board ends. Going on to the next one lets the vCPU go, unless that was done
        already. Raises TraceError when the plugin breaks the protocol, or a write that :meth:`Held.release` was
        given failed."""
        while True:
            try:
                kind, flags, payload = self._receive()
            except EOFError:
                return
            if kind == Message.BYE:
                return
            if kind == Message.REPLY and self._owed:
                self._settle(flags, *self._owed.popleft())
                continue
            if kind == Message.HELD:
                self._tell_hold(payload)
                continue
            if kind != Message.EVENT:
                raise TraceError(f"the plugin sent message {kind} where an event was due", where=str(self.path))
            held = Held(self, Event(payload), bool(flags & _WAITS), before=bool(flags & _BEFORE))
            yield held
            held.release()

    def serve(self, handler: Callable[[Held], None]) -> None:
        """Call ``handler`` for each event until the board ends. What it raises ends the connection, then goes
        on."""
        try:
            for held in self.events():
                handler(held)
        except BaseException:
            self.close()
            raise

    def hold(self, wanted: Hold) -> None:
        """Have a vCPU stand at a point, from any thread: the plugin hears of it when the next waiting vCPU is let go,
        before that one goes on. A hold that was asked for before ends."""
        self._holds.append(_HOLD.pack(wanted.at, wanted.passing, wanted.mode, wanted.domain, wanted.vcpu, 0))

    def close(self) -> None:
        """Hang up, from any thread. A board that waits learns of it at once, and so does a thread in
        :meth:`accept` (which raises) or :meth:`events` (which ends)."""
        self._closed = True
        for end in (self._connection, self._listener):
            if end is None:
                continue
            # Closing alone would leave a thread that is blocked in the socket blocked for good.
            with suppress(OSError):  # not connected, or closed already
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.path.unlink(missing_ok=True)

    def _plugins_connection(self, timeout_s: float | None, pid: int | None) -> socket.socket:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        refused = 0
        while True:
            try:
                self._listener.settimeout(None if end is None else max(end - time.monotonic(), 1e-3))
                connection, _ = self._listener.accept()
            except TimeoutError as error:
                others = f"; {refused} connections of other processes were refused" if refused else ""
                raise TraceError(
                    f"no board connected within {timeout_s} s{others}",
                    where=str(self.path),
                    hint="QEMU's standard error says whether the plugin was loaded",
                ) from error
            except OSError as error:
                raise self._hung_up() from error
            if is_welcome(connection, self.path, pid):
                return connection
            connection.close()
            refused += 1

    def _hung_up(self) -> TraceError:
        return TraceError("the consumer was closed before a board connected", where=str(self.path))

    def _receive(self) -> tuple[int, int, bytes]:
        if not self._buffer and self._connection is not None:
            # While a vCPU waits, messages come one by one: hand the bytes on without buffering them.
            part = self._recv()
            if len(part) >= _HEADER.size:
                length, kind, flags = _HEADER.unpack_from(part)
                if len(part) == _HEADER.size + length <= RECORD_LIMIT:
                    return kind, flags, part[_HEADER.size :]
            self._buffer += part
        length, kind, flags = _HEADER.unpack(self._take(_HEADER.size))
        if length > RECORD_LIMIT:
            raise TraceError(f"the plugin sent a message of {length} bytes", where=str(self.path))
        return kind, flags, self._take(length)

    def _recv(self) -> bytes:
        if self._connection is None:
            raise UsageError("accept() must come first")
        try:
            part = self._connection.recv(_RECEIVE)
        except OSError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        return part

    def _take(self, count: int) -> bytes:
        buffer = self._buffer
        while len(buffer) < count:
            buffer += self._recv()
        found = bytes(buffer[:count])
        del buffer[:count]
        return found

    def _put(self, kind: Message, payload: bytes = b"") -> None:
        self._send_all(_message(kind, payload))

    def _send_all(self, messages: bytes) -> None:
        if self._connection is None:
            raise UsageError("accept() must come first")
        try:
            self._connection.sendall(messages)
        except OSError as error:
            raise TraceError("the board is gone", where=str(self.path)) from error

    def _ask(self, kind: Message, payload: bytes, what: str) -> bytes:
        self._put(kind, payload)
        try:
            answer, error, data = self._receive()
        except EOFError as gone:
            raise TraceError("the board is gone", where=str(self.path)) from gone
        if answer != Message.REPLY:
            raise TraceError(f"the plugin answered with message {answer}", where=str(self.path))
        self._check(error, what)
        return data

    def _tell_hold(self, payload: bytes) -> None:
        words = struct.unpack(f"<{len(payload) // 8}Q", payload[: len(payload) & ~7])
        if len(words) < 2 or words[1] not in HoldNews.__members__.values():
            raise TraceError("the plugin's news of a hold cannot be read", where=str(self.path))
        if self._on_hold is not None:
            self._on_hold(HoldNews(words[1]), words[2:])

    def _asked_holds(self) -> bytes:
        asked = b""
        while self._holds:
            asked += _message(Message.HOLD, self._holds.popleft())
        return asked

    def _settle(self, error: int, event: Event, what: str) -> None:
        try:
            self._check(error, what)
        except TraceError as failure:
            if self._on_failed_write is None:
                raise
            self._on_failed_write(event, failure.what)

    def _check(self, error: int, what: str) -> None:
        if error:
            raise TraceError(f"{what}: {_ERRORS.get(error, f'error {error}')}", where=str(self.path))


class Held:
    """An event whose vCPU waits (``waiting``) until :meth:`release`. Requests raise :class:`TraceError` when
    they fail, and :class:`UsageError` when the vCPU does not wait.

    ``before``: it is not recorded yet. ``event`` has its registers and no memory; the trace will have what the vCPU
    finds when it is let go, under the same number. No delay is possible.
    """

    def __init__(self, consumer: LiveConsumer, event: Event, waiting: bool, *, before: bool = False) -> None:
        self.event = event
        self.waiting = waiting
        self.before = before
        self._consumer = consumer

    def read_register(self, name: str) -> int:
        """A register of the waiting vCPU by QEMU's name (``x3``, ``VTTBR_EL2``)."""
        return int.from_bytes(self._ask(Message.READ_REG, name.encode(), f"register {name}"), "little")

    def write_register(self, name: str, value: int) -> None:
        """Change a register of the waiting vCPU."""
        self._ask(Message.WRITE_REG, _word(value, f"register {name}") + name.encode(), f"register {name}")

    def read(self, space: Space, address: int, length: int) -> bytes:
        """Memory, at most 1 MiB at a time."""
        what = f"{length} bytes at {space.name} {address:#x}"
        data = self._ask(Message.READ_MEM, _memory(address, length, space, what), what)
        if len(data) != length:
            raise TraceError(f"{what}: the plugin answered with {len(data)}", where=str(self._consumer.path))
        return data

    def write(self, space: Space, address: int, data: bytes) -> None:
        """Change memory. Code that was translated already may not notice."""
        what = f"{len(data)} bytes at {space.name} {address:#x}"
        self._ask(Message.WRITE_MEM, _memory(address, len(data), space, what) + data, what)

    def read_ipa(self, ipa: int, length: int) -> bytes:
        """Guest memory by guest-physical address."""
        return self.read(Space.IPA, ipa, length)

    def write_ipa(self, ipa: int, data: bytes) -> None:
        """Change guest memory by guest-physical address."""
        self.write(Space.IPA, ipa, data)

    def translate(self, ipa: int) -> Leaf:
        """Translate an IPA by the vCPU's stage-2 tables."""
        answer = self._ask(Message.TRANSLATE, _word(ipa, f"IPA {ipa:#x}"), f"IPA {ipa:#x}")
        if len(answer) != _LEAF.size:
            raise TraceError(f"IPA {ipa:#x}: the plugin answered with {len(answer)} bytes")
        ma, pte, level, mapped = _LEAF.unpack(answer)
        return Leaf(ma if mapped else None, pte, level)

    def coverage(self) -> Sequence[int]:
        """Addresses of the mediator's code that ran for the first time since the last request, those of conditional
        branches with the ways that were new (bit 0 fell through, bit 1 branched); at most 1024, the rest comes with the
        next request. Nothing without the sense."""
        answer = self._ask(Message.COVERAGE, b"", "coverage")
        return struct.unpack(f"<{len(answer) // 8}Q", answer[: len(answer) & ~7])

    def setup(self, *, hold: Collection[Kind], send: Collection[Kind] = (), before: Collection[Kind] = ()) -> None:
        """From now on, hold and send these kinds, as in :class:`LiveConsumer`."""
        self._need()
        self._consumer._put(Message.SETUP, _masks(send, hold, before))

    def release(self, delay_s: float = 0.0, writes: Sequence[tuple[int, bytes]] = ()) -> None:
        """Let the vCPU go, after a delay in which all others run. Does nothing when it does not wait.

        ``writes``: guest memory (IPA, bytes) to change before, at the cost of no round trip: whether that went
        well is known at the next event.
        """
        if self.waiting:
            named = [(ipa, data, f"{len(data)} bytes at IPA {ipa:#x}") for ipa, data in writes]
            requests = [_memory(ipa, len(data), Space.IPA, what) + data for ipa, data, what in named]
            messages = b"".join(_message(Message.WRITE_MEM, request) for request in requests)
            self.waiting = False
            self._consumer._owed.extend((self.event, what) for *_, what in named)
            pause = min(max(round(delay_s * 1e6), 0), 0xFFFF_FFFF)
            messages += self._consumer._asked_holds()
            self._consumer._send_all(messages + _message(Message.CONTINUE, struct.pack("<I", pause)))

    def detach(self) -> None:
        """Let the board go on without a consumer, whatever it is configured to do about a lost one."""
        self._need()
        self.waiting = False
        self._consumer._put(Message.DETACH)

    def stop(self) -> None:
        """Stop the board: QEMU ends as if asked to by the user."""
        self._need()
        self.waiting = False
        self._consumer._put(Message.STOP)

    def _need(self) -> None:
        if not self.waiting:
            raise UsageError(f"the vCPU of record {self.event.seq} does not wait")

    def _ask(self, kind: Message, payload: bytes, what: str) -> bytes:
        self._need()
        return self._consumer._ask(kind, payload, what)


def _memory(address: int, length: int, space: Space, what: str) -> bytes:
    """A request about memory. Address and length may be a guest's words, and so be anything."""
    if not 0 <= length <= _REQUEST_LIMIT:
        raise TraceError(f"{what}: at most {_REQUEST_LIMIT} at a time")
    if not 0 <= address < 1 << 64:
        raise TraceError(f"{what}: this is no address")
    return _MEMORY.pack(address, length, space)


def _word(value: int, what: str) -> bytes:
    if not 0 <= value < 1 << 64:
        raise TraceError(f"{what}: {value:#x} is no number of 64 bits")
    return value.to_bytes(8, "little")


def _message(kind: Message, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), kind, 0) + payload


def _masks(*kinds: Collection[Kind]) -> bytes:
    return struct.pack("<3I", *(sum(1 << kind for kind in set(some)) for some in kinds))

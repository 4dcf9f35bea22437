# SPDX-License-Identifier: GPL-2.0-or-later
"""A board's physical memory, read and written from outside while its virtual CPUs stand still.

By QEMU's gdbstub over a socket that QEMU gets as a descriptor: neither a port nor a file is opened, and any board can
be asked at any time. Sources: GDB's remote serial protocol ("Overview", "Packets"); QEMU's "GDB usage" for the packet
``Qqemu.PhyMemMode``.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from framework.board.board import Board
from framework.common.errors import BoardError
from framework.common.host_speed import host_factor

_SECONDS = 20.0
"""Until the stub answers; it does so from QEMU's main loop. Scaled by the host factor."""
_PIECE = 1024
"""Bytes in one packet; QEMU's stub takes 2048 characters of data, two for each byte."""
_LONGEST = 1 << 16
"""Characters of one answer."""

_counter = itertools.count()


class PhysicalMemory:
    """The connection to the stub of one board; made by :func:`physical_memory`."""

    def __init__(self, end: socket.socket, name: str) -> None:
        self._end = end
        self._name = name
        self._rest = b""

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes. Raises BoardError for an address without memory."""
        parts = []
        for at in range(address, address + length, _PIECE):
            wanted = min(_PIECE, address + length - at)
            answer = self._ask(f"m{at:x},{wanted:x}")
            try:
                part = bytes.fromhex(answer)
            except ValueError:
                part = b""
            if len(part) != wanted:
                raise BoardError(f"{at:#x} cannot be read: the stub says {answer[:40]!r}", where=self._name)
            parts.append(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes. Raises BoardError for an address without memory."""
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            self._expect_ok(f"M{address + at:x},{len(piece):x}:{piece.hex()}")

    def begin(self) -> None:
        """Have addresses be physical from now on."""
        self._expect_ok("Qqemu.PhyMemMode:1")

    def _expect_ok(self, packet: str) -> None:
        answer = self._ask(packet)
        if answer != "OK":
            raise BoardError(f"the stub refuses {packet[:40]}: {answer[:40]!r}", where=self._name)

    def _ask(self, packet: str) -> str:
        data = packet.encode()
        try:
            self._end.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
            return self._answer()
        except OSError as error:
            raise BoardError(f"the stub does not answer: {error}", where=self._name) from error

    def _answer(self) -> str:
        while True:
            before, found, after = self._rest.partition(b"#")
            if found and len(after) >= 2:
                self._rest = after[2:]
                self._end.sendall(b"+")
                return before.rpartition(b"$")[2].decode("ascii", "replace")
            piece = self._end.recv(1 << 16)
            self._rest += piece
            if not piece or len(self._rest) > _LONGEST:
                raise BoardError("the stub hung up, or does not end its answer", where=self._name)


@contextmanager
def physical_memory(board: Board) -> Iterator[PhysicalMemory]:
    """The physical memory of a board. It stands still while the context lasts, and goes on if it ran before.

    :raises BoardError: QEMU gives no access.
    """
    running = board.qmp.execute("query-status")["running"]
    name = f"memory{next(_counter)}"
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            board.qmp.lend_fd(theirs.fileno(), name)
        ours.settimeout(_SECONDS * host_factor())
        backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": name}}, "server": False}}
        board.qmp.execute("chardev-add", id=name, backend=backend)
        if running:
            board.qmp.execute("stop")
        said = board.qmp.hmp(f"gdbserver chardev:{name}").strip()
        if said and not said.startswith("Waiting for gdb connection"):
            raise BoardError(f"QEMU's gdbstub does not start: {said}", where=f"board {board.spec.name}")
        memory = PhysicalMemory(ours, f"memory of board {board.spec.name}")
        memory.begin()
        yield memory
        board.qmp.hmp("gdbserver none")
    if running:
        board.qmp.execute("cont")

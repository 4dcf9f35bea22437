# SPDX-License-Identifier: GPL-2.0-or-later
"""The words spoken with QEMU's gdbstub; a stub that does not behave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from framework.board.physical_memory import PhysicalMemory
from framework.common.errors import BoardError


class _Stub:
    """As much of a stub as is used, over a little memory."""

    def __init__(self) -> None:
        self.memory = bytearray(5000)
        self.answer: Callable[[str], str] = self.obey

    def obey(self, packet: str) -> str:
        if packet.startswith("m"):
            at, length = (int(word, 16) for word in packet[1:].split(","))
            return self.memory[at : at + length].hex() if at + length <= len(self.memory) else "E14"
        if packet.startswith("M"):
            where, _, data = packet[1:].partition(":")
            at, length = (int(word, 16) for word in where.split(","))
            self.memory[at : at + length] = bytes.fromhex(data)
        return "OK"

    def serve(self, end: socket.socket) -> None:
        with end:
            rest = b""
            while piece := end.recv(4096):
                rest += piece
                while rest.find(b"#") >= 0 and len(rest.partition(b"#")[2]) >= 2:
                    packet, _, rest = rest.partition(b"#")
                    words, rest = packet.rpartition(b"$")[2], rest[2:]
                    answer = self.answer(words.decode()).encode()
                    end.sendall(b"+$%s#%02x" % (answer, sum(answer) & 0xFF))


@contextmanager
def _memory(stub: _Stub) -> Iterator[PhysicalMemory]:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with suppress(OSError):  # the other end may go first
            stub.serve(theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    ours.settimeout(10)
    with ours:
        yield PhysicalMemory(ours, "board x")
    thread.join()


def test_more_than_a_packet_goes_there_and_back() -> None:
    stub = _Stub()
    data = bytes(number & 0xFF for number in range(3000))
    with _memory(stub) as memory:
        memory.begin()
        memory.write(0x10, data)
        assert memory.read(0x10, len(data)) == data
    assert stub.memory[0x10:0x20] == data[:16]


def test_where_there_is_no_memory() -> None:
    with _memory(_Stub()) as memory, pytest.raises(BoardError, match="cannot be read"):
        memory.read(0x10000, 8)


def test_a_stub_that_refuses_or_goes() -> None:
    stub = _Stub()
    stub.answer = lambda _packet: "E22"
    with _memory(stub) as memory, pytest.raises(BoardError, match="refuses"):
        memory.write(0, b"x")
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BoardError, match="stub"):
        PhysicalMemory(ours, "board x").read(0, 4)


def test_an_answer_without_end() -> None:
    stub = _Stub()
    stub.answer = lambda _packet: "0" * (1 << 17)
    with _memory(stub) as memory, pytest.raises(BoardError):
        memory.read(0, 4)

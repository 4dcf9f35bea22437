# SPDX-License-Identifier: GPL-2.0-or-later
"""The doorbells' thread outlives what a hostile probe guest says: the guest's program fails, the board goes on."""

from __future__ import annotations

import pytest

from framework.common.errors import GuestError
from framework.probe.link import DoorbellServer
from framework.probe.ops import MAILBOX, PROTOCOL
from framework.trace.format import Kind
from framework.trace.live import Message
from framework.trace.writer import pack_record
from testcases.unit.probe.test_link import executing
from testcases.unit.trace.test_live import FakePlugin


class Board:
    """A board's plugin, played by the test, with one probe whose guest is free to say anything."""

    def __init__(self, bells: DoorbellServer) -> None:
        self.plugin = FakePlugin(bells.socket)
        self.plugin.greet()

    def ring(self, sequence: int = 0, words: int = 0) -> None:
        regs = [MAILBOX, sequence, words, PROTOCOL, *[0] * 14]
        self.plugin.put(Message.EVENT, pack_record(Kind.DOORBELL, 1, regs, domain=1), flags=1)

    def take_program(self, program: bytes, reply: int = 0) -> None:
        """Ring until the program is handed over; ``reply``: how the write to the mailbox goes."""
        sent = b""
        while program not in sent:
            self.ring()
            kind, sent = self.plugin.get()
            assert (kind, self.plugin.get()[0]) == (Message.WRITE_MEM, Message.CONTINUE)
            self.plugin.put(Message.REPLY, flags=reply if program in sent else 0)

    def answer(self, sequence: int, results: bytes) -> None:
        self.ring(sequence, len(results) // 8)
        assert self.plugin.get()[0] == Message.READ_MEM
        self.plugin.put(Message.REPLY, results)
        assert [self.plugin.get()[0] for _ in range(2)] == [Message.WRITE_MEM, Message.CONTINUE]
        self.plugin.put(Message.REPLY)


@pytest.mark.parametrize("words", [1 << 18, 1 << 29, 1 << 32, 1 << 61, (1 << 64) - 1])
def test_any_number_of_results_is_an_error_of_that_probe(words: int) -> None:
    with DoorbellServer() as bells:
        transport = bells.transport(1)
        client, found = executing(transport, b"program!")
        board = Board(bells)
        board.take_program(b"program!")
        board.ring(1, words)
        assert [board.plugin.get()[0] for _ in range(2)] == [Message.WRITE_MEM, Message.CONTINUE], "no read is asked"
        board.plugin.put(Message.REPLY)
        client.join(10)
        assert isinstance(found[0], GuestError) and "words of results" in str(found[0])
        client, found = executing(transport, b"another.")
        board.take_program(b"another.")
        board.answer(2, b"results.")
        client.join(10)
        assert found == [b"results."]
        board.plugin.socket.close()


def test_a_mailbox_that_the_guest_took_away_is_an_error_of_that_probe() -> None:
    with DoorbellServer() as bells:
        transport = bells.transport(1)
        client, found = executing(transport, b"program!")
        board = Board(bells)
        board.take_program(b"program!", reply=2)
        board.ring()
        client.join(10)
        assert isinstance(found[0], GuestError) and "mailbox cannot be written" in str(found[0])
        assert [board.plugin.get()[0] for _ in range(2)] == [Message.WRITE_MEM, Message.CONTINUE], "the thread lives"
        board.plugin.socket.close()

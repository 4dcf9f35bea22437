# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ways to the probe guest, with the guest played by Python."""

from __future__ import annotations

import base64
import re
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from framework.common.errors import GuestError
from framework.probe.client import Probe, ProbeFault
from framework.probe.link import ConsoleTransport, DoorbellServer, DoorbellTransport
from framework.probe.message import Invoke, tmem
from framework.probe.ops import MAILBOX, PROGRAM, PROTOCOL, RESULTS, Call, Read
from framework.trace.format import Kind
from framework.trace.live import Held, Message, Space
from framework.trace.writer import pack_record
from mediator_ref.abi import RpcFunc
from testcases.unit.trace.test_live import FakePlugin

RESULT = bytes(range(256)) * 6


class Guest:
    """A console with a probe behind it that answers each program with ``results`` in lines."""

    name = "probe"

    def __init__(self, results: bytes = RESULT) -> None:
        self.results = results
        self.typed = b""
        self.lines: list[bytes] = []
        self.programs: list[bytes] = []
        self.damage = 0
        self.protocol = PROTOCOL

    def send(self, text: str | bytes) -> None:
        self.typed += text if isinstance(text, bytes) else text.encode()
        while b"\n" in self.typed:
            line, _, self.typed = self.typed.partition(b"\n")
            self.take(line)

    def take(self, line: bytes) -> None:
        if line == b"?":
            self.lines.append(b"H %x 3b9aca0 40100000 40400000" % self.protocol)
        elif line.startswith(b"P "):
            _, number, length, crc, data = line.split(b" ")
            program = base64.b64decode(data)
            assert (len(program), zlib.crc32(program)) == (int(length, 16), int(crc, 16))
            if self.damage:
                self.damage -= 1
                self.lines.append(b"N %s 0 0" % number)
                return
            self.programs.append(program)
            for at in range(0, len(self.results), 576):
                self.lines.append(b"R %s %s" % (number, base64.b64encode(self.results[at : at + 576])))
            self.lines.append(b"E %s %x %x" % (number, len(self.results), zlib.crc32(self.results)))

    def expect(self, patterns: bytes | Sequence[bytes], idle_timeout: float) -> re.Match[bytes]:  # noqa: ARG002
        pattern = patterns if isinstance(patterns, bytes) else patterns[0]
        if not self.lines:
            raise GuestError("silent")
        match = re.search(pattern, b"noise\r\n@" + self.lines.pop(0) + b"\r\n")
        assert match is not None
        return match


def test_console_round_trip() -> None:
    guest = Guest()
    transport = ConsoleTransport(guest)
    transport.hello()
    assert transport.execute(b"p" * 2048, 1) == RESULT
    assert transport.execute(b"", 1) == RESULT
    assert guest.programs == [b"p" * 2048, b""]


def test_console_sends_again_what_was_damaged() -> None:
    guest = Guest()
    guest.damage = 2
    assert ConsoleTransport(guest).execute(b"12345678", 1) == RESULT
    guest.damage = 3
    with pytest.raises(GuestError, match="damaged"):
        ConsoleTransport(guest).execute(b"12345678", 1)


def test_console_skips_what_belongs_to_an_earlier_program() -> None:
    guest = Guest()
    guest.lines = [b"R 77 AAAA", b"E 77 3 0", b"H %x 0 0 0" % PROTOCOL]
    assert ConsoleTransport(guest).execute(b"", 1) == RESULT


def test_console_finds_damaged_results() -> None:
    guest = Guest()
    transport = ConsoleTransport(guest)
    guest.lines = [b"R 1 AAAA"]
    with pytest.raises(GuestError, match="results were damaged"):
        transport.execute(b"", 1)


def test_another_protocol_is_refused() -> None:
    guest = Guest()
    guest.protocol = 99
    with pytest.raises(GuestError, match="protocol 99"):
        ConsoleTransport(guest).hello()


@dataclass
class Ring:
    """A vCPU that stands at its doorbell; ``sent`` is what it finds in its mailbox when it goes on."""

    sequence: int = 0
    results: bytes = b""
    version: int = PROTOCOL
    sent: bytes = b""

    @property
    def event(self) -> Ring:
        return self

    @property
    def regs(self) -> tuple[int, ...]:
        return (MAILBOX, self.sequence, len(self.results) // 8, self.version, *[0] * 14)

    def read_ipa(self, ipa: int, length: int) -> bytes:
        assert ipa == RESULTS
        return self.results[:length]

    def release(self, *, writes: Sequence[tuple[int, bytes]]) -> None:
        ((at, self.sent),) = writes
        assert (at, PROGRAM) == (MAILBOX + 8, at + 24), "the program lies right behind the mailbox"

    @property
    def box(self) -> tuple[int, ...]:
        """State, sequence and words."""
        return struct.unpack_from("<3Q", self.sent)


def rung(transport: DoorbellTransport, ring: Ring) -> Ring:
    transport.serve(ring)
    return ring


def executing(transport: DoorbellTransport, program: bytes) -> tuple[threading.Thread, list[bytes | GuestError]]:
    """A thread that waits for the program's results, with room for them."""
    found: list[bytes | GuestError] = []

    def execute() -> None:
        try:
            found.append(transport.execute(program, 10))
        except GuestError as error:
            found.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    return thread, found


def handed_over(transport: DoorbellTransport) -> Ring:
    """Ring until there is a program."""
    while (ring := rung(transport, Ring())).box[0] != 2:
        pass
    return ring


def test_doorbell_round_trip() -> None:
    transport = DoorbellTransport(linger_s=0)
    assert rung(transport, Ring()).box == (3, 0, 0), "answered, and nothing to do"
    client, found = executing(transport, b"program!")
    ring = handed_over(transport)
    assert (ring.box, ring.sent[24:]) == ((2, 1, 1), b"program!")
    assert rung(transport, Ring(1, b"results results.")).box[0] == 3
    client.join(10)
    assert found == [b"results results."]
    assert rung(transport, Ring(1, b"results results.")).box[0] == 3, "taken once"


def test_doorbell_waits_for_the_next_program_while_the_vcpu_is_held() -> None:
    transport = DoorbellTransport(linger_s=10)
    found: list[bytes] = []
    client = threading.Thread(target=lambda: found.extend(transport.execute(name, 10) for name in (b"1", b"2")))
    client.start()
    handed_over(transport)
    assert rung(transport, Ring(1, b"one.....")).sent[24:] == b"2"
    transport.linger_s = 0
    rung(transport, Ring(2, b"two....."))
    client.join(10)
    assert found == [b"one.....", b"two....."]


def test_doorbell_takes_an_empty_program() -> None:
    transport = DoorbellTransport(linger_s=0)
    client, found = executing(transport, b"")
    assert handed_over(transport).box == (2, 1, 0)
    rung(transport, Ring(1))
    client.join(10)
    assert found == [b""]


def test_doorbell_that_nobody_rings() -> None:
    transport = DoorbellTransport()
    with pytest.raises(GuestError, match="has not rung"):
        transport.execute(b"given up", 0.01)
    assert rung(transport, Ring()).box[0] == 3, "what was given up is not executed later"


def test_doorbell_gives_nobody_the_results_of_another_program() -> None:
    transport = DoorbellTransport(linger_s=0)
    ring = threading.Thread(target=handed_over, args=[transport])
    ring.start()
    with pytest.raises(GuestError, match="has not come back"):
        transport.execute(b"too slow", 0.2)
    ring.join(10)
    rung(transport, Ring(1, b"too late"))
    client, found = executing(transport, b"another.")
    handed_over(transport)
    rung(transport, Ring(2, b"in time."))
    client.join(10)
    assert found == [b"in time."]


def test_doorbell_of_another_protocol() -> None:
    transport = DoorbellTransport(linger_s=0)
    client, found = executing(transport, b"program!")
    while client.is_alive():
        assert rung(transport, Ring(version=9)).box[0] == 3
    client.join(10)
    assert "protocol 9" in str(found[0])


def test_doorbells_serve_the_probes_of_a_board_to_its_end() -> None:
    """With the plugin's part played by the test: its domains are told apart, and the end of the board reaches all. What
    else the board was asked for is another's."""
    others: list[Held] = []
    kinds: Any = {"hold": {Kind.GUEST_CALL}, "before": {Kind.GUEST_RETURN}}
    with DoorbellServer(**kinds, on_event=others.append) as bells:
        transport = bells.transport(1)
        client, found = executing(transport, b"program!")
        plugin = FakePlugin(bells.socket)
        plugin.greet()
        assert plugin.setup == (0, 1 << Kind.DOORBELL | 1 << Kind.GUEST_CALL, 1 << Kind.GUEST_RETURN)

        def ring(domain: int, sequence: int, words: int) -> None:
            regs = [MAILBOX, sequence, words, PROTOCOL, *[0] * 14]
            plugin.put(Message.EVENT, pack_record(Kind.DOORBELL, 1, regs, domain=domain), flags=1)

        ring(2, 0, 0)
        assert plugin.get()[0] == Message.CONTINUE, "a probe without a transport is left alone"
        plugin.put(Message.EVENT, pack_record(Kind.GUEST_RETURN, 1, [0], domain=1), flags=3)
        assert plugin.get()[0] == Message.CONTINUE
        assert [(held.event.kind, held.before) for held in others] == [(Kind.GUEST_RETURN, True)]
        sent = b""
        while b"program!" not in sent:
            ring(1, 0, 0)
            kind, sent = plugin.get()
            assert (kind, plugin.get()[0]) == (Message.WRITE_MEM, Message.CONTINUE)
            plugin.put(Message.REPLY)
        ring(1, 1, 1)
        assert plugin.get() == (Message.READ_MEM, struct.pack("<QII", RESULTS, 8, Space.IPA))
        plugin.put(Message.REPLY, b"results.")
        client.join(10)
        assert found == [b"results."]
        assert [plugin.get()[0] for _ in range(2)] == [Message.WRITE_MEM, Message.CONTINUE]
        client, found = executing(transport, b"no more.")
        plugin.socket.close()
        client.join(10)
        assert "the board has ended" in str(found[0])
        with pytest.raises(GuestError, match="the board has ended"):
            bells.transport(7).execute(b"", 10)
    assert not bells.socket.exists()


def test_doorbells_that_no_board_ever_came_to() -> None:
    with DoorbellServer() as bells:
        transport = bells.transport(1)
    with pytest.raises(GuestError, match="closed before a board connected"):
        transport.execute(b"", 10)


class Script:
    """A transport that answers with prepared records."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def execute(self, program: bytes, timeout_s: float) -> bytes:  # noqa: ARG002
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def answer(opcode: int, status: int, step: int, *payload: int) -> bytes:
    return struct.pack(f"<{2 + len(payload)}Q", opcode | status << 16 | len(payload) << 32, step, *payload)


def test_a_fault_is_an_error_unless_it_is_expected() -> None:
    fault = answer(3, 1, 0, 0x92000004, 0x40000000, 0x90000000, 0, 4)
    probe = Probe(Script(fault, fault))
    with pytest.raises(ProbeFault, match="0x90000000"):
        probe.read(0x90000000, 8)
    (record,) = probe.run(Read(0x90000000, 8, catch=True))
    assert record.fault is not None and record.fault.far == 0x90000000


def test_hypercalls_are_signed() -> None:
    assert Probe(Script(answer(5, 0, 0, (1 << 64) - 22))).hypercall(12, 1) == -22


def test_pages_end_somewhere() -> None:
    probe = Probe(Script(), memory_mib=8)
    first = probe.pages(3)
    assert probe.pages(1) == first + 3 * 4096
    with pytest.raises(GuestError, match="no memory left"):
        probe.pages(1024)


def test_a_parked_call() -> None:
    script = Script()
    probe = Probe(script)
    message = Invoke(1, 2, [tmem(pages=2, ref=5)])
    regs = [0xFFFF0000, 64, 0, 1] + [0] * 14
    drive = 515 + 15
    read = drive + 8
    script.answers = [
        answer(6, 0, drive, *regs, 9, 1, 0xFFFF0000, 64 << 32, 1, 0xFFFFFFFF) + answer(3, 0, read, *[0] * 512)
    ]
    call = probe.begin(message, park=[RpcFunc.ALLOC])
    assert not call.done
    assert (str(call.rpc), call.thread, call.buffer().ref) == ("ALLOC", 1, 5)


def test_history_prints_a_test() -> None:
    probe = Probe(Script(answer(1, 0, 0, *range(18), 7)))
    probe.smc(0xBF00FF01)
    text = probe.as_pytest()
    assert "def test_replay(probe):" in text
    again = Probe(Script(answer(1, 0, 0, *range(18), 7)))
    space: dict[str, object] = {}
    exec(text, space)
    space["test_replay"](again)  # type: ignore[operator]
    assert again.history == probe.history
    assert again.history[0].ops == (Call((0xBF00FF01,)),)

"""The two ways to the probe guest, with the guest played by Python."""

from __future__ import annotations

import base64
import re
import struct
import threading
import zlib
from collections.abc import Sequence

import pytest

from framework.errors import GuestError
from framework.guests.probe import Probe, ProbeFault
from framework.guests.probe_link import ConsoleTransport, Doorbells, DoorbellTransport
from framework.guests.probe_msg import Invoke, tmem
from framework.guests.probe_ops import MAILBOX, PROGRAM, RESULTS, Call, Read
from mediator_ref.abi import RpcFunc

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
        self.protocol = 1

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
    guest.lines = [b"R 77 AAAA", b"E 77 3 0", b"H 1 0 0 0"]
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


class Memory:
    """The memory of a guest that stands at its doorbell."""

    def __init__(self) -> None:
        self.ram = {MAILBOX: bytearray(64), PROGRAM: bytearray(4096), RESULTS: bytearray(4096)}
        self.box(1, 0, 0, 0)

    def box(
        self, state: int, sequence: int, result_sequence: int, result_words: int, version: int = 1
    ) -> None:
        self.ram[MAILBOX][:] = struct.pack(
            "<8Q", 0, state, sequence, 0, result_sequence, result_words, version, 0
        )

    def at(self, ipa: int) -> tuple[bytearray, int]:
        base = max(start for start in self.ram if start <= ipa)
        return self.ram[base], ipa - base

    def read_ipa(self, ipa: int, length: int) -> bytes:
        memory, offset = self.at(ipa)
        return bytes(memory[offset : offset + length])

    def write_ipa(self, ipa: int, data: bytes) -> None:
        memory, offset = self.at(ipa)
        memory[offset : offset + len(data)] = data

    def mailbox(self) -> tuple[int, ...]:
        return struct.unpack("<8Q", self.ram[MAILBOX])


def test_doorbell_round_trip() -> None:
    transport, memory = DoorbellTransport(linger_s=0), Memory()
    transport.serve(memory)
    assert memory.mailbox()[1] == 3, "answered, and nothing to do"
    found: list[bytes] = []
    client = threading.Thread(target=lambda: found.append(transport.execute(b"program!", 10)))
    client.start()
    while memory.mailbox()[1] != 2:
        transport.serve(memory)
    assert memory.mailbox()[2:4] == (1, 1)
    assert memory.ram[PROGRAM][:8] == b"program!"
    memory.ram[RESULTS][:16] = b"results results."
    memory.box(1, 1, 1, 2)
    transport.serve(memory)
    client.join(10)
    assert found == [b"results results."]


def test_doorbell_that_nobody_rings() -> None:
    with pytest.raises(GuestError, match="has not rung"):
        DoorbellTransport().execute(b"", 0.01)


def test_doorbell_of_another_protocol() -> None:
    transport, memory = DoorbellTransport(), Memory()
    memory.box(1, 0, 0, 0, version=9)
    transport.serve(memory)
    with pytest.raises(GuestError, match="protocol 9"):
        transport.execute(b"", 1)


def test_doorbells_are_told_apart_by_domain() -> None:
    bells, memory = Doorbells(), Memory()
    first = bells.transport(1)
    bells.serve(2, memory)
    assert (first.rings, memory.mailbox()[1]) == (0, 1)
    bells.serve(1, memory)
    assert (first.rings, memory.mailbox()[1]) == (1, 3)


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

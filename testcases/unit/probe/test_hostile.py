# SPDX-License-Identifier: GPL-2.0-or-later
"""A probe that breaks its protocol is a guest error, at once, and stops no other guest."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.common.errors import GuestError, TraceError
from framework.guests.ssh import Completed
from framework.probe import link
from framework.probe.client import Probe, upload
from framework.probe.link import ConsoleTransport, DoorbellServer, DoorbellTransport
from framework.probe.message import Invoke
from framework.probe.ops import PROTOCOL, RESULTS_SIZE, Call, Drive, Join, Read, Run, Scan
from framework.probe.program import Program
from framework.probe.wire import decode
from framework.trace.format import Kind
from framework.trace.live import Message
from framework.trace.writer import pack_record
from testcases.unit.probe.test_link import Ring, Script, executing, handed_over, rung
from testcases.unit.trace.test_live import FakePlugin


class Lines:
    """A console that prints lines, the last one for ever if told so."""

    name = "probe"

    def __init__(self, *lines: bytes, for_ever: bool = False) -> None:
        self.lines = list(lines)
        self.for_ever = for_ever

    def send(self, text: str | bytes) -> None:
        pass

    def expect(self, patterns: bytes | Sequence[bytes], idle_timeout: float) -> re.Match[bytes]:  # noqa: ARG002
        while self.lines:
            line = self.lines[0] if self.for_ever and len(self.lines) == 1 else self.lines.pop(0)
            if match := re.search(patterns if isinstance(patterns, bytes) else patterns[0], line + b"\r\n"):
                return match
        raise GuestError("silent", where=self.name)


@pytest.mark.parametrize("line", [b"@H x", b"@H ", b"@H -2", b"@H 0x2", b"@H 1_0", b"@H " + b"9" * 900, b"@H \xff"])
def test_a_malformed_greeting(line: bytes) -> None:
    with pytest.raises(GuestError, match="not the probe's"):
        ConsoleTransport(Lines(line)).hello()


@pytest.mark.parametrize("line", [
    b"@R 1", b"@R 1 A", b"@R 1 =", b"@R 1 \xff\xff\xff\xff", b"@R 1 A?AA", b"@R ", b"@N ", b"@E ", b"@E 1", b"@E 1 0",
    b"@E 1 x 0", b"@E 1 0 x", b"@E x 0 0", b"@R 1_ AAAA", b"@E 1 -1 0",
])  # fmt: skip
def test_malformed_lines(line: bytes) -> None:
    with pytest.raises(GuestError, match="not the probe's"):
        ConsoleTransport(Lines(line)).execute(b"", 1)


def test_results_without_end() -> None:
    piece = b"@R 1 " + base64.b64encode(bytes(576))
    with pytest.raises(GuestError, match=f"more than {RESULTS_SIZE} bytes"):
        ConsoleTransport(Lines(piece, for_ever=True)).execute(b"", 1)


@pytest.mark.parametrize("line", [b"@R 77 AAAA", b"@H 2 0 0 0"])
def test_lines_for_ever_that_are_not_due(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "deadline", lambda _seconds: 0.05)
    with pytest.raises(GuestError, match="for ever"):
        ConsoleTransport(Lines(line, for_ever=True)).execute(b"", 1)


PROGRAM = Program((
    Call((1,)), Read(0x40400000, 24), Scan(0x40400000, 8, 1, 1), Run(1, (Call((2,)), Call((3,)))), Join(1), Drive((1,)),
))  # fmt: skip
STEPS = PROGRAM.encode()[1]


def step_of(kind: type) -> int:
    return next(at for at, op in STEPS.items() if type(op) is kind)


def record(kind: type, status: int, *payload: int, step: int | None = None, words: int | None = None) -> bytes:
    count = len(payload) if words is None else words
    at = step_of(kind) if step is None else step
    return struct.pack(f"<{2 + len(payload)}Q", 1 | status << 16 | count << 32, at, *payload)


@pytest.mark.parametrize("data", [
    record(Call, 9), record(Call, 1, 1, 2, 3, 4), record(Call, 1, 1, 2, 3, 4, 5, 6), record(Call, 0),
    record(Call, 0, 1), record(Call, 0, *range(18)), record(Read, 0, 1), record(Scan, 0), record(Drive, 0, *range(18)),
    record(Drive, 0, *range(20), 1), record(Join, 0), record(Join, 0, 2), record(Join, 0, 1, 7),
    record(Join, 0, 1, 9 << 16, 0), record(Call, 0, *range(19), step=999), record(Call, 0, *range(19), words=1 << 31),
    record(Run, 0, 1), struct.pack("<Q", 1), b"\xff" * 800,
])  # fmt: skip
def test_records_that_are_none(data: bytes) -> None:
    with pytest.raises(GuestError):
        decode(data, STEPS)


def test_a_page_that_comes_back_short_is_no_page() -> None:
    short = struct.pack("<2Q", 3, 515 + 3 + 2)
    with pytest.raises(GuestError):
        Probe(Script(short)).begin(Invoke(1, 2, []))


WORDS = st.sampled_from([0, 1, 2, 1 | 1 << 32, 1 | 19 << 32, 1 << 16 | 5 << 32, 9 << 16, (1 << 64) - 1, *STEPS])


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS | st.integers(0, (1 << 64) - 1), max_size=60), st.binary(max_size=7))
def test_any_words_are_records_or_a_guest_error(words: list[int], rest: bytes) -> None:
    try:
        decode(struct.pack(f"<{len(words)}Q", *words) + rest, STEPS)
    except GuestError:
        pass


FIELDS = st.sampled_from([b"1", b"x", b"AAAA", b"=", b"0", b"-1", b"\xff", b"9" * 30, b"@", b"H", b"E", b"R", b"N"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(FIELDS, max_size=5).map(b" ".join), max_size=8))
def test_any_lines_are_results_or_a_guest_error(lines: list[bytes]) -> None:
    lines = [b"@" + line for line in lines]
    works: tuple[Callable[[ConsoleTransport], object], ...] = (lambda t: t.execute(b"", 1), lambda t: t.hello())
    for work in works:
        try:
            work(ConsoleTransport(Lines(*lines)))
        except GuestError:
            pass


def test_lines_that_never_end_cost_little() -> None:
    for piece in (b"@R ", b"@", b"@R x", b"@E \r"):
        begin = time.thread_time()
        re.search(link._LINE, (piece * 16384)[: 16 * 1024])
        assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize("words", [1 << 32, (1 << 61) + 1, (1 << 64) - 1, RESULTS_SIZE // 8 + 1])
def test_a_doorbell_that_claims_more_than_there_is(words: int) -> None:
    class Liar(Ring):
        @property
        def regs(self) -> tuple[int, ...]:
            return (0, 1, words, PROTOCOL, *[0] * 14)

    transport = DoorbellTransport(linger_s=0)
    client, found = executing(transport, b"program!")
    handed_over(transport)
    assert rung(transport, Liar()).box[0] == 3
    client.join(10)
    assert "words of results" in str(found[0])


def test_results_that_cannot_be_read() -> None:
    class Gone(Ring):
        def read_ipa(self, ipa: int, length: int) -> bytes:  # noqa: ARG002
            raise TraceError("the address is not mapped")

    transport = DoorbellTransport(linger_s=0)
    client, found = executing(transport, b"program!")
    handed_over(transport)
    rung(transport, Gone(1, b"results."))
    client.join(10)
    assert "not mapped" in str(found[0])


def test_a_mailbox_that_is_gone_does_not_end_the_other_probes_thread() -> None:
    with DoorbellServer() as bells:
        transport = bells.transport(1)
        bells.transport(2)
        plugin = FakePlugin(bells.socket)
        plugin.greet()

        def ring(domain: int, sequence: int = 0, words: int = 0) -> None:
            regs = [0x40100000, sequence, words, PROTOCOL, *[0] * 14]
            plugin.put(Message.EVENT, pack_record(Kind.DOORBELL, 1, regs, domain=domain), flags=1)
            assert plugin.get()[0] == Message.WRITE_MEM
            assert plugin.get()[0] == Message.CONTINUE

        for _ in range(3):
            ring(2)
            plugin.put(Message.REPLY, flags=2)  # not mapped
        client, found = executing(transport, b"program!")
        deadline = 1000
        while transport._sent == 0 and deadline:
            ring(1)
            plugin.put(Message.REPLY)
            deadline -= 1
        plugin.put(
            Message.EVENT,
            pack_record(Kind.DOORBELL, 1, [0x40100000, 1, 1 << 32, PROTOCOL, *[0] * 14], domain=1),
            flags=1,
        )
        client.join(10)
        assert "words of results" in str(found[0])
        assert bells._thread.is_alive()
        plugin.socket.close()


class Dom0:
    """A dom0 that keeps what arrived, or part of it."""

    xl: Any = None

    def __init__(self, keeps: int | None = None, rc: int = 0) -> None:
        self.keeps, self.rc = keeps, rc

    def run(self, command: str, *, stdin: bytes = b"") -> Completed:
        digest = hashlib.sha256(stdin[: self.keeps]).hexdigest()
        return Completed(command, "dom0", self.rc, f"{digest}  /x.new\n".encode(), b"No space left on device")


def test_an_image_that_does_not_arrive_whole_is_noticed() -> None:
    upload(Dom0(), b"image", "/x")
    with pytest.raises(GuestError, match="did not arrive whole"):
        upload(Dom0(keeps=3), b"image", "/x")
    with pytest.raises(GuestError, match="No space left"):
        upload(Dom0(rc=1), b"image", "/x")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_long_random_results(seed: int) -> None:
    random.seed(seed)
    for _ in range(300):
        good = record(Call, 0, *range(19)) + record(Read, 0, 1, 2, 3)
        data = bytearray(good * random.randrange(1, 50))
        for _ in range(random.randrange(1, 20)):
            data[random.randrange(len(data))] = random.randrange(256)
        lines = [b"@R 1 " + base64.b64encode(data[at : at + 576]) for at in range(0, len(data), 576)]
        end = b"@E 1 %x %x" % (len(data), zlib.crc32(data))
        try:
            decode(ConsoleTransport(Lines(*lines, end)).execute(b"", 1), STEPS)
        except GuestError:
            pass

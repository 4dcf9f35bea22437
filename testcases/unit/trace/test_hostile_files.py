# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace files of strangers: bounded time and memory, and no error but medcheck's own."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from framework.cli import main as cli
from framework.common.errors import ExitCode, MedcheckError, TraceError
from framework.trace.diff import diff
from framework.trace.event import Event
from framework.trace.export import export
from framework.trace.format import CHUNK, CHUNK_MAGIC, SEGMENT, SEGMENT_MAGIC, BlockKind, Codec, Kind
from framework.trace.reader import Reader
from framework.trace.show import show
from framework.trace.stats import collect
from framework.trace.writer import Writer, pack_block, pack_record
from mediator_ref import abi
from testcases.unit.trace.samples import ARG_IPA, Conversation, sample, write

MIB = 1 << 20
BOMB = 64 * MIB
KEPT = 60
"""Seeds in every run; the nightly one goes on from there."""


def segment(text: bytes = b"{}") -> bytes:
    head = SEGMENT.pack(SEGMENT_MAGIC, 1, 0, SEGMENT.size + len(text), 0, len(text), 0)
    return head[:-4] + zlib.crc32(head + text).to_bytes(4, "little") + text


def chunk(
    payload: bytes, raw: int, codec: int = Codec.NONE, *, stored: int | None = None, crc: int | None = None
) -> bytes:
    """A chunk whose header is right in itself, whatever it claims."""
    sizes = (len(payload) if stored is None else stored, raw)
    head = CHUNK.pack(CHUNK_MAGIC, codec, *sizes, 1, zlib.crc32(payload) if crc is None else crc, 1, 0, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little") + payload


def everything(path: Path) -> None:
    """All that looks into a trace, reading on behind damage and not; each ends well or with an error of ours."""
    looks: list[Callable[[Reader], object]] = [
        lambda reader: list(reader.events()),
        lambda reader: export(reader.valid_events(), io.StringIO()),
        lambda reader: list(show(reader.valid_events())),
        lambda reader: list(collect(reader.valid_events()).lines()),
        lambda reader: list(diff(reader.valid_events(), sample().events())),
    ]
    for look in looks:
        for recover in (False, True):
            try:
                look(Reader(path, recover=recover))
            except MedcheckError as error:
                assert str(path) in str(error) or "record " in str(error)


@contextmanager
def at_most(mib: int, seconds: float) -> Iterator[None]:
    """Memory that Python's objects take at once, and processor time, beyond which the test fails."""
    begin = time.process_time()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mib * MIB, f"{peak >> 20} MiB"
    assert time.process_time() - begin < seconds


PACKED = {
    Codec.ZSTD: lambda data: zstandard.ZstdCompressor().compress(data),
    Codec.ZLIB: lambda data: zlib.compress(data, 1),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("codec", list(PACKED))
def test_a_chunk_never_unpacks_to_more_than_its_header_says(tmp_path: Path, codec: Codec, cut: bool) -> None:
    path = tmp_path / "t"
    payload = PACKED[codec](bytes(BOMB))
    path.write_bytes(segment() + chunk(payload, MIB // 2, codec, stored=len(payload) + cut))
    with at_most(4, 5):
        with pytest.raises(TraceError, match="unpacks to more than the 524288 bytes"):
            list(Reader(path).events())
        everything(path)


@pytest.mark.parametrize("claims", [1 << 31, 1 << 50])
def test_a_frame_that_claims_any_size_is_damage(tmp_path: Path, claims: int) -> None:
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claims) + b"\x01\x00\x00" + bytes(80)
    (tmp_path / "t").write_bytes(segment() + chunk(frame, 4096, Codec.ZSTD))
    with at_most(4, 2), pytest.raises(TraceError, match="cannot be unpacked"):
        list(Reader(tmp_path / "t").events())


@pytest.mark.parametrize("raw", [1 << 20, (1 << 32) - 1])
def test_a_chunk_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path: Path, raw: int) -> None:
    (tmp_path / "t").write_bytes(segment() + chunk(b"x", raw, stored=raw))
    with at_most(1, 2):
        reader = Reader(tmp_path / "t", recover=True)
        assert list(reader.events()) == [] and reader.problems


@pytest.mark.parametrize(
    "noise",
    [
        b"MTCK",
        b"MEDTRACE",
        SEGMENT.pack(SEGMENT_MAGIC, 1, 0, SEGMENT.size + 4096, 0, 4096, 7),
        chunk(b"", 4096, stored=4096, crc=7),
        chunk(b"", 4 * MIB, stored=4 * MIB, crc=7),
        segment() + chunk(b"", 4 * MIB, stored=4 * MIB, crc=7),
        chunk(PACKED[Codec.ZSTD](bytes(4 * MIB)), 4 * MIB, Codec.ZSTD),
    ],
    ids=["magic", "segment", "long-segment", "header", "long-header", "torn", "zeros"],
)
def test_damage_without_end_is_read_in_linear_time(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(segment() + b"!" + noise * (MIB // len(noise)))
    begin = time.process_time()
    reader = Reader(path, recover=True)
    assert list(reader.events()) == []
    assert time.process_time() - begin < 4
    assert 0 < len(reader.problems) <= 1001


def test_problems_are_counted_beyond_a_thousand(tmp_path: Path) -> None:
    with Writer(tmp_path / "t", counters=False) as writer:
        for seq in range(1, 6001, 2):
            writer.append(pack_record(Kind.DOORBELL, seq, [0] * 8))
    reader = Reader(tmp_path / "t", recover=True)
    assert sum(1 for _ in reader.events()) == 3000
    assert len(reader.problems) == 1001
    assert reader.problems[-1].text == "1999 more problems are not listed"


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["trace", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_argument_page_of_eight_bytes_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation()
    short = pack_block(BlockKind.GUEST_ARG, bytes(8), ipa=ARG_IPA)
    talk.exchange(abi.CALL_WITH_ARG, [0, ARG_IPA], [0], there=[short], back=[short])
    path = str(tmp_path / "t")
    write(tmp_path / "t", talk)
    for words in (["show", path], ["stats", path], ["diff", path, path]):
        assert command(*words) == ExitCode.INFRASTRUCTURE
        assert "GUEST_ARG block holds 8 bytes" in capsys.readouterr().err
        assert command(*words, "--recover") == ExitCode.GOOD
    assert list(show(Reader(path).events())), "who takes records unchecked is safe, too"


@pytest.mark.parametrize("text", [b"[]", b"7", b"{", b"\xff", b"[" * 3000, b"9" * 5000])
def test_a_description_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t").write_bytes(segment(text))
    with pytest.raises(TraceError, match="holds no JSON"):
        Reader(tmp_path / "t")


def test_a_damaged_later_segment_does_not_end_recovery(tmp_path: Path) -> None:
    write(tmp_path / "one", sample())
    good = (tmp_path / "one").read_bytes()
    bad = bytearray(good)
    bad[20] ^= 1
    (tmp_path / "t").write_bytes(good + bad + good)
    reader = Reader(tmp_path / "t", recover=True)
    kinds = [event.kind for event in reader.events()]
    assert kinds[-1] == Kind.COUNTERS and kinds.count(Kind.COUNTERS) == 3
    assert "segment header is damaged" in reader.problems[0].text


def test_a_call_of_many_thousand_rpcs_is_shown_in_linear_time() -> None:
    talk = Conversation()
    rpc = [abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR, 0, 0, 0]
    talk.exchange(abi.CALL_WITH_ARG, [0, 0], rpc)
    for _ in range(20_000):
        talk.exchange(abi.RETURN_FROM_RPC, [0, 0, 0], rpc)
    begin = time.process_time()
    assert sum("FOREIGN_INTR" in line for line in show(talk.events())) == 20_001
    assert time.process_time() - begin < 10


def test_calls_that_never_end_are_given_up_in_their_order() -> None:
    talk = Conversation()
    for _ in range(5000):
        talk.add(Kind.GUEST_CALL, [abi.CALLS_UID], domain=1)
        talk.add(Kind.EL3_CALL, [abi.CALLS_UID])
    read = 0

    def counted() -> Iterator[Event]:
        nonlocal read
        for event in talk.events():
            read += 1
            yield event

    lines = show(counted())
    assert "#1 " in next(lines)
    assert read < 9000, "all open calls of the file are kept until its end"
    assert sum("=> unfinished" in line for line in lines) == 10_000


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A trace with a few bytes, fields or pieces changed; often with CRCs that are right again."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at = draw.randrange(len(found))
        how = draw.randrange(5)
        if how == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            found[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 8, 0xFFFF, 1 << 31, (1 << 64) - 1]))
        elif how == 2:
            found[at : at + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
        elif how == 3:
            found[at:at] = found[draw.randrange(len(found)) :][: draw.randrange(300)]
        else:
            del found[at : at + draw.choice([1, 8, 100, 1000])]
        if not found:
            found = bytearray(b"M")
    return bytes(found)


def hostile_trace(draw: random.Random) -> bytes:
    """Damage to the file, or to records that are then packed as they should be."""
    talk = sample()
    text = json.dumps({"max_mib": draw.choice([0, 4096, "x", None])}).encode()
    if draw.random() < 0.4:
        raw = b"".join(talk.records)
        return mutated(segment(text) + chunk(raw, len(raw)), draw)
    raw = mutated(b"".join(talk.records), draw)
    codec = draw.choice(list(Codec))
    payload = PACKED[codec](raw) if codec in PACKED else raw
    if draw.random() < 0.2:
        payload = mutated(payload, draw)
    size = len(raw) if draw.random() < 0.8 else draw.choice([0, 1, len(raw) - 1, 1 << 20, (1 << 32) - 1])
    return segment(text) + chunk(payload, size, codec) + draw.choice([b"", b"MTCK", segment()])


def fuzz(path: Path, seed: int) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(hostile_trace(random.Random(seed)))
    begin = time.process_time()
    try:
        everything(path)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    assert time.process_time() - begin < 2, f"seed {seed}"


def test_mutated_traces_raise_nothing_of_others(tmp_path: Path) -> None:
    with at_most(64, 60):
        for seed in range(KEPT):
            fuzz(tmp_path / "t", seed)


@pytest.mark.nightly
def test_many_mutated_traces_raise_nothing_of_others(tmp_path: Path) -> None:
    for seed in range(KEPT, 20_000):
        fuzz(tmp_path / "t", seed)

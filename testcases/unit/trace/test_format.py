# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace files: what is written is read; what is damaged is noticed; what was lost is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.common.errors import TraceError
from framework.trace.event import Event
from framework.trace.export import event_to_json, export, json_to_record
from framework.trace.format import CHUNK, COUNTERS, RECORD, SEGMENT, BlockKind, Codec, Kind, P2mType
from framework.trace.reader import Reader
from framework.trace.writer import Writer, pack_block, pack_record
from testcases.unit.trace.samples import ARG_IPA, Conversation, sample, write


@pytest.mark.parametrize("codec", list(Codec))
def test_what_is_written_is_read(tmp_path: Path, codec: Codec) -> None:
    talk = sample()
    write(tmp_path / "t", talk, codec=codec)
    reader = Reader(tmp_path / "t")
    read = [event.raw for event in reader.events()]
    assert read[:-1] == talk.records
    assert Event(read[-1]).kind == Kind.COUNTERS
    assert reader.meta == {"clock": "test"}
    assert reader.segments[0].complete and not reader.problems and not reader.truncated


def test_an_event_gives_registers_and_memory_by_name(tmp_path: Path) -> None:
    write(tmp_path / "t", sample())
    event = next(e for e in Reader(tmp_path / "t").events() if e.kind == Kind.GUEST_CALL and e.blocks())
    assert (event.domain, event.vcpu, event.conduit, event.is_tee) == (1, 0, "hvc", True)
    assert event.regs[:3] == (0x32000004, 0, ARG_IPA)
    page = event.block(BlockKind.GUEST_ARG)
    assert page is not None and page.p2m is P2mType.RAM_RW and len(page.page()) == 4096
    translations = event.block(BlockKind.TRANSLATIONS)
    assert translations is not None
    named = list(translations.translations())
    assert [t.ma for t in named] == [0xEC00_0000, 0xEC00_1000]
    assert all(t.level == 3 and t.writable and t.p2m is P2mType.RAM_RW for t in named)


@pytest.mark.parametrize("codec", list(Codec))
def test_a_file_cut_at_any_byte_gives_its_whole_records(tmp_path: Path, codec: Codec) -> None:
    talk = sample()
    del talk.records[12:]
    write(tmp_path / "t", talk, codec=codec, chunk_bytes=1500)
    whole = (tmp_path / "t").read_bytes()
    header = SEGMENT.size + SEGMENT.unpack_from(whole)[5]
    best = -1
    for size in range(header, len(whole), 1 if codec == Codec.NONE else 3):
        _again(tmp_path / "cut", whole[:size])
        reader = Reader(tmp_path / "cut")
        read = [event.raw for event in reader.events()]
        assert read == [*talk.records, *read[len(talk.records) :]][: len(read)]
        assert len(read) >= best, f"cut at {size} gives fewer records than a shorter file"
        assert reader.truncated or size == _chunk_end(whole, size)
        best = len(read)
        if codec == Codec.NONE and len(read) < len(talk.records):
            assert _next_record_is_missing_a_byte(whole, size, talk, len(read))
    for size in range(header):
        _again(tmp_path / "cut", whole[:size])
        with pytest.raises(TraceError):
            Reader(tmp_path / "cut")


def _again(path: Path, data: bytes) -> None:
    # A new file each time: ext4 writes one that is emptied and filled to the disk at once.
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _chunk_end(whole: bytes, size: int) -> int:
    """The end of the last chunk that ends at or before ``size``: a cut there cannot be told from a short
    trace."""
    at = SEGMENT.size + SEGMENT.unpack_from(whole)[5]
    while at < size:
        at += CHUNK.size + CHUNK.unpack_from(whole, at)[2]
    return at


def _next_record_is_missing_a_byte(whole: bytes, size: int, talk: Conversation, count: int) -> bool:
    at = whole.find(talk.records[count])
    return at + len(talk.records[count]) > size


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, codec: Codec) -> None:
    write(tmp_path / "t", sample(), codec=codec)
    whole = (tmp_path / "t").read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        _again(tmp_path / "bad", damaged)
        with pytest.raises(TraceError) as caught:
            reader = Reader(tmp_path / "bad")
            list(reader.events())
            if reader.truncated:  # a length that grew looks like a file that was cut
                raise TraceError("cut")
        assert str(caught.value)


def test_recovery_skips_the_damage_and_says_what_is_missing(tmp_path: Path) -> None:
    talk = sample()
    write(tmp_path / "t", talk)
    whole = bytearray((tmp_path / "t").read_bytes())
    second = whole.find(b"MTCK", whole.find(b"MTCK") + 1)
    whole[second + CHUNK.size + 10] ^= 1
    (tmp_path / "t").write_bytes(whole)
    reader = Reader(tmp_path / "t", recover=True)
    read = [event.raw for event in reader.events()]
    assert 0 < len(read) - 1 < len(talk.records)
    assert set(read[:-1]) < set(talk.records)
    texts = " / ".join(problem.text for problem in reader.problems)
    assert "CRC does not match" in texts and "are missing" in texts and "were read" in texts


def test_a_destroyed_chunk_header_is_skipped_to_the_next_chunk(tmp_path: Path) -> None:
    write(tmp_path / "t", sample())
    whole = bytearray((tmp_path / "t").read_bytes())
    second = whole.find(b"MTCK", whole.find(b"MTCK") + 1)
    whole[second : second + 4] = b"XXXX"
    (tmp_path / "t").write_bytes(whole)
    with pytest.raises(TraceError, match=f"t@{second}"):
        list(Reader(tmp_path / "t").events())
    reader = Reader(tmp_path / "t", recover=True)
    assert [event.kind for event in reader.events()][-1] == Kind.COUNTERS


def test_a_lost_record_is_noticed_in_the_middle_and_at_the_end(tmp_path: Path) -> None:
    talk = sample()
    del talk.records[5]
    write(tmp_path / "middle", talk)
    with pytest.raises(TraceError, match="records 6 to 6 are missing"):
        list(Reader(tmp_path / "middle").events())

    records = sample().records
    with Writer(tmp_path / "end", counters=False) as writer:
        for record in records[:-1]:
            writer.append(record)
        counts = [0] * 24
        counts[0] = len(records) + 1
        writer.append(pack_record(Kind.COUNTERS, len(records), counts))
    with pytest.raises(TraceError, match=f"the plugin wrote {len(records) + 1} records, {len(records)} were read"):
        list(Reader(tmp_path / "end").events())


def test_a_whole_chunk_that_vanished_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "t", sample())
    whole = (tmp_path / "t").read_bytes()
    first = whole.find(b"MTCK")
    second = whole.find(b"MTCK", first + 1)
    (tmp_path / "t").write_bytes(whole[:first] + whole[second:])
    with pytest.raises(TraceError, match="are missing"):
        list(Reader(tmp_path / "t").events())


def test_segments_are_appended_even_behind_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, sample(), counters=False)
    path.write_bytes(path.read_bytes()[:-20])
    with Writer(path, {"run": 2}, append=True) as writer:
        writer.append(pack_record(Kind.DOORBELL, 1, [1]))
    with pytest.raises(TraceError):
        list(Reader(path).events())
    reader = Reader(path, recover=True)
    assert [event.kind for event in reader.events()][-2:] == [Kind.DOORBELL, Kind.COUNTERS]
    assert [segment.meta for segment in reader.segments] == [{"clock": "test"}, {"run": 2}]
    assert reader.segments[1].complete and not reader.segments[0].complete


def test_foreign_newer_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(TraceError, match="not a medcheck trace"):
        Reader(tmp_path / "foreign")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(TraceError, match="not a medcheck trace"):
        Reader(tmp_path / "empty")
    write(tmp_path / "newer", sample())
    raw = bytearray((tmp_path / "newer").read_bytes())
    raw[8] = 2
    (tmp_path / "newer").write_bytes(raw)
    with pytest.raises(TraceError, match=r"version 2\.3, this medcheck reads 1\.x"):
        Reader(tmp_path / "newer")
    with pytest.raises(TraceError, match="cannot open"):
        Reader(tmp_path / "missing")


numbers = st.integers(0, 2**64 - 1)
blocks = st.builds(
    pack_block,
    st.sampled_from(BlockKind),
    st.binary(max_size=64),
    flags=st.integers(0, 31),
    level=st.integers(0, 3),
    index=st.integers(0, 127),
    count=st.integers(0, 600),
    ipa=numbers,
    ma=numbers,
    pte=numbers,
    cookie=numbers,
)
records = st.builds(
    pack_record,
    st.sampled_from(Kind),
    st.integers(1, 2**63),
    st.lists(numbers, max_size=31),
    st.lists(blocks, max_size=3),
    flags=st.integers(0, 31),
    cpu=st.integers(0, 63),
    el=st.integers(0, 3),
    time_ns=numbers,
    domain=st.none() | st.integers(0, 0x7FFF),
    vmid=st.integers(0, 0xFFFF),
    vcpu=st.none() | st.integers(0, 127),
    parent=numbers,
    pc=numbers,
    esr=numbers,
    imm=st.integers(0, 0xFFFF),
)


@given(records)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_json_keeps_every_bit(record: bytes) -> None:
    assert json_to_record(event_to_json(Event(record))) == record


def test_export_writes_one_line_for_each_event(tmp_path: Path) -> None:
    talk = sample()
    with (tmp_path / "x").open("w") as stream:
        assert export(talk.events(), stream) == len(talk.records)
    assert len((tmp_path / "x").read_text().splitlines()) == len(talk.records)


def test_a_block_that_does_not_fit_its_record_is_an_error() -> None:
    record = bytearray(pack_record(Kind.GUEST_CALL, 1, [0], [pack_block(BlockKind.GUEST_ARG, b"12345678")]))
    record[64 + 8 + 8 : 64 + 8 + 12] = (4096).to_bytes(4, "little")
    with pytest.raises(TraceError, match="outside"):
        Event(bytes(record)).blocks()


@given(st.binary(min_size=RECORD.size, max_size=400), st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_gibberish_in_a_record_is_a_trace_error_and_nothing_else(raw: bytes, blocks: int) -> None:
    garbled = bytearray(raw)
    garbled[56:60] = blocks.to_bytes(4, "little")  # else nearly no record would get as far as its blocks
    event = Event(bytes(garbled))
    for look in (
        lambda: event.regs,
        event.counters,
        lambda: [list(block.translations()) for block in event.blocks() if block.kind == BlockKind.TRANSLATIONS],
    ):
        try:
            look()
        except TraceError as error:
            assert "translations" in error.what or f"record {event.seq} is malformed" in error.what
    assert repr(event)


def test_too_few_bytes_for_a_record_are_an_error() -> None:
    with pytest.raises(TraceError, match="shorter than its header"):
        Event(bytes(RECORD.size - 1))


@pytest.mark.parametrize("nregs", [0, 3, len(COUNTERS) - 1, 63, 64, 0xFFFF])
def test_a_record_that_only_claims_to_be_the_counters_is_a_problem(tmp_path: Path, nregs: int) -> None:
    talk = sample()
    closing = bytearray(pack_record(Kind.COUNTERS, len(talk.records) + 1, [1] * min(nregs, len(COUNTERS) - 1)))
    at = 30  # nregs
    closing[at : at + 2] = nregs.to_bytes(2, "little")
    assert Event(bytes(closing)).nregs == nregs
    with Writer(tmp_path / "t", counters=False) as writer:
        for record in [*talk.records, bytes(closing)]:
            writer.append(record)
    with pytest.raises(TraceError, match="is malformed"):
        list(Reader(tmp_path / "t").events())
    reader = Reader(tmp_path / "t", recover=True)
    assert len(list(reader.events())) == len(talk.records) + 1
    assert ["is malformed" in problem.text for problem in reader.problems] == [True]
    assert not reader.segments[0].complete

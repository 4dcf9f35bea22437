"""Trace files, read as a stream: nothing is kept but the current chunk."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import zstandard

from framework.common.errors import TraceError, UsageError
from framework.trace.event import Event
from framework.trace.format import (
    CHUNK,
    CHUNK_MAGIC,
    COUNTERS,
    MAJOR,
    RECORD,
    RECORD_LIMIT,
    SEGMENT,
    SEGMENT_MAGIC,
    Codec,
    Kind,
)

_NAMED = "a run leaves its trace in reports/latest/trace/board.trace"
_SCAN = 1 << 20
_ESSENTIALS = struct.Struct("<IB3xQ")
"""Length, kind and sequence number of a record."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file that reading survived: ``offset`` in bytes, and one sentence."""

    offset: int
    text: str


@dataclass(slots=True)
class Segment:
    """One run of the plugin in a file: its JSON description, and what was seen of it."""

    meta: dict[str, Any]
    started_ns: int
    minor: int
    offset: int
    records: int = 0
    by_kind: dict[int, int] = field(default_factory=dict)
    last_seq: int = 0
    counters: dict[str, int] | None = None

    @property
    def complete(self) -> bool:
        """Whether the plugin wrote its last record and its counts agree with what was read."""
        return self.counters is not None and not self.disagreements()

    def disagreements(self) -> list[str]:
        """Where the plugin's counters and the records read differ; empty when they agree or none were
        written."""
        if self.counters is None:
            return []
        found = []
        if self.counters["records"] != self.records:
            found.append(f"the plugin wrote {self.counters['records']} records, {self.records} were read")
        for kind in Kind:
            wrote, read = self.counters[f"kind_{int(kind)}"], self.by_kind.get(int(kind), 0)
            if wrote != read:
                found.append(f"the plugin wrote {wrote} {kind.name} records, {read} were read")
        if self.counters["lost"]:
            found.append(f"the plugin lost {self.counters['lost']} records: the file could not be written")
        return found


def named_trace(path: Path) -> Path:
    """``path``, which a user gave, if it can be a trace at all: a file that can be read and begins as one.

    :raises UsageError: it is something else.
    """
    try:
        # A pipe or device has no end to begin with.
        if not path.is_file():
            what = "there is no such file" if not path.exists() else "this is not a file"
            raise UsageError(what, where=str(path), hint=_NAMED)
        with path.open("rb") as stream:
            if stream.read(len(SEGMENT_MAGIC)) != SEGMENT_MAGIC:
                raise UsageError("this is not a medcheck trace", where=str(path), hint=_NAMED)
    except OSError as error:
        raise UsageError(f"the trace cannot be opened: {error.strerror}", where=str(path), hint=_NAMED) from error
    return path


class Reader:
    """Reads a trace file.

    ``recover=False`` (the default) raises :class:`TraceError` at the first damage, except that a file which
    was cut off simply ends after its last whole record, with :attr:`truncated` set. ``recover=True`` goes on
    after damage and notes it in :attr:`problems`, as it does for lost records.

    :attr:`segments` grows while reading; each one's :meth:`Segment.disagreements` proves whether a record was
    lost.
    """

    def __init__(self, path: Path | str, *, recover: bool = False) -> None:
        self.path = Path(path)
        self.recover = recover
        self.segments: list[Segment] = []
        self.problems: list[Problem] = []
        self.truncated = False
        self._offset = 0
        self._zstd = zstandard.ZstdDecompressor()
        with self._open() as stream:
            self._segment_header(stream)

    @property
    def meta(self) -> dict[str, Any]:
        """The first segment's description."""
        return self.segments[0].meta

    def events(self) -> Iterator[Event]:
        """All records, in order. May be called again; each call reads the file anew."""
        return map(Event, self.records())

    def sound(self) -> Iterator[Event]:
        """All records that are what they claim to be; one that is not is damage."""
        for event in self.events():
            try:
                event.check()
            except TraceError as error:
                self._damage(error.what)
            else:
                yield event

    def records(self) -> Iterator[bytes]:
        """All records as bytes, in order, checked for completeness and sequence."""
        self.segments, self.problems, self.truncated = [], [], False
        with self._open() as stream:
            self._segment_header(stream)
            while True:
                self._offset = stream.tell()
                magic = stream.read(len(CHUNK_MAGIC))
                if not magic:
                    break
                stream.seek(self._offset)
                if magic == CHUNK_MAGIC:
                    chunk, whole = self._chunk(stream)
                    yield from self._split(chunk, whole)
                elif magic == SEGMENT_MAGIC[:4]:
                    self._segment_header(stream)
                elif CHUNK_MAGIC.startswith(magic):
                    self._cut("in the middle of a chunk's header")
                    break
                else:
                    self._damage("neither a chunk nor a segment begins here")
                    self._resync(stream, self._offset + 1)
        self._compare()

    def _open(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise TraceError(f"cannot open the trace: {error.strerror}", where=str(self.path)) from error

    def _where(self) -> str:
        return f"{self.path}@{self._offset}"

    def _damage(self, text: str) -> None:
        if not self.recover:
            raise TraceError(text, where=self._where(), hint="--recover (recover=True) reads on behind the damage")
        self.problems.append(Problem(self._offset, text))

    def _cut(self, text: str) -> None:
        self.truncated = True
        self.problems.append(Problem(self._offset, f"the file ends {text}"))

    def _segment_header(self, stream: IO[bytes]) -> None:
        raw = stream.read(SEGMENT.size)
        if len(raw) < SEGMENT.size or not raw.startswith(SEGMENT_MAGIC):
            if self.segments and SEGMENT_MAGIC.startswith(raw[:8]):
                self._cut("in the middle of a segment's header")
                return
            raise TraceError(
                "this is not a medcheck trace",
                where=self._where(),
                hint="traces begin with the bytes MEDTRACE",
            )
        _, major, minor, length, started, text_length, crc = SEGMENT.unpack(raw)
        if major != MAJOR:
            raise TraceError(
                f"the trace has format version {major}.{minor}, this medcheck reads {MAJOR}.x",
                where=self._where(),
                hint="read it with the medcheck that wrote it, or a newer one",
            )
        text = stream.read(min(length - SEGMENT.size, _SCAN)) if length >= SEGMENT.size else b""
        if len(text) < text_length:
            if self.segments:
                self._cut("in the middle of a segment's header")
                return
            raise TraceError("the trace ends within its header", where=self._where())
        body = raw[: SEGMENT.size - 4] + b"\0\0\0\0" + text
        if zlib.crc32(body) != crc:
            raise TraceError("the segment header is damaged: its CRC does not match", where=self._where())
        try:
            meta = json.loads(text[:text_length])
        except (ValueError, RecursionError) as error:
            raise TraceError(f"the segment header holds no JSON: {error}", where=self._where()) from error
        self.segments.append(Segment(meta, started, minor, self._offset))

    def _chunk(self, stream: IO[bytes]) -> tuple[bytes, bool]:
        """The next chunk's records in one piece, and whether they are all it held."""
        header = stream.read(CHUNK.size)
        if len(header) < CHUNK.size:
            self._cut("in the middle of a chunk's header")
            return b"", False
        _, codec, stored, raw_size, count, crc, first, _, header_crc = CHUNK.unpack(header)
        if zlib.crc32(header[:-4]) != header_crc or raw_size > RECORD_LIMIT:
            self._damage("a chunk's header is damaged: its CRC does not match")
            self._resync(stream, self._offset + 1)
            return b"", False
        payload = stream.read(stored)
        whole = len(payload) == stored
        torn = -1 if whole else payload.find(SEGMENT_MAGIC)
        if torn >= 0:
            self._damage("a chunk is torn: a later run was appended behind its first half")
            stream.seek(self._offset + CHUNK.size + torn)
            payload = payload[:torn]
        elif not whole:
            self._cut("in the middle of a chunk")
        elif zlib.crc32(payload) != crc:
            self._damage(f"a chunk of {count} records, from {first}, is damaged: its CRC does not match")
            self._resync(stream, self._offset + CHUNK.size)  # its length may be what is damaged
            return b"", False
        return self._unpack(codec, payload, raw_size, whole), whole

    def _unpack(self, codec: int, payload: bytes, raw_size: int, whole: bool) -> bytes:
        """The chunk's records; of a chunk that was cut, all that its remaining bytes give."""
        unpackers: dict[int, Callable[[], bytes]] = {
            Codec.NONE: lambda: payload,
            Codec.ZSTD: lambda: (
                self._zstd.decompress(payload, max_output_size=raw_size)
                if whole
                else self._zstd.decompressobj().decompress(payload)
            ),
            Codec.ZLIB: lambda: zlib.decompressobj().decompress(payload),
        }
        if codec not in unpackers:
            raise TraceError(
                f"a chunk is packed with codec {codec}, which this medcheck does not know",
                where=self._where(),
            )
        try:
            raw = unpackers[codec]()
        except (zstandard.ZstdError, zlib.error) as error:
            if whole:
                self._damage(f"a chunk cannot be unpacked: {error}")
            return b""
        if whole and len(raw) != raw_size:
            self._damage(f"a chunk unpacks to {len(raw)} bytes, its header says {raw_size}")
        return raw

    def _split(self, raw: bytes, whole: bool) -> Iterator[bytes]:
        segment = self.segments[-1]
        by_kind = segment.by_kind
        at, end, head, unpack, counters = 0, len(raw), RECORD.size, _ESSENTIALS.unpack_from, int(Kind.COUNTERS)
        last = end - head
        while at <= last:
            length, kind, seq = unpack(raw, at)
            if length < head or length & 7 or at + length > end:
                if whole:
                    self._damage(f"a record after number {segment.last_seq} has the impossible length {length}")
                return
            record = raw[at : at + length]
            at += length
            if seq != segment.last_seq + 1:
                self._damage(
                    f"records {segment.last_seq + 1} to {seq - 1} are missing"
                    if seq > segment.last_seq
                    else f"record {seq} follows record {segment.last_seq}"
                )
            segment.last_seq = seq
            segment.records += 1
            by_kind[kind] = by_kind.get(kind, 0) + 1
            if kind == counters:
                self._closing(segment, Event(record))
            yield record

    def _closing(self, segment: Segment, event: Event) -> None:
        """Take the plugin's counters; a record of gibberish that only claims to hold them is damage."""
        try:
            counters = event.counters()
        except TraceError as error:
            self._damage(error.what)
            return
        if missing := [name for name in COUNTERS if name not in counters]:
            self._damage(f"record {event.seq} is malformed: it lacks {len(missing)} counters")
            return
        segment.counters = counters

    def _resync(self, stream: IO[bytes], start: int) -> None:
        """Move to the next byte that may begin a chunk or a segment, or to the end."""
        stream.seek(start)
        base, window = start, b""
        while True:
            block = stream.read(_SCAN)
            window += block
            hits = [at for at in (window.find(CHUNK_MAGIC), window.find(SEGMENT_MAGIC)) if at >= 0]
            if hits or not block:
                stream.seek(base + min(hits) if hits else base + len(window))
                return
            keep = len(SEGMENT_MAGIC) - 1
            base += len(window) - keep
            window = window[-keep:]

    def _compare(self) -> None:
        for segment in self.segments:
            for text in segment.disagreements():
                if not self.recover and not self.truncated:
                    raise TraceError(text, where=str(self.path))
                self.problems.append(Problem(segment.offset, text))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace files, read as a stream: only the current chunk is in memory."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
from framework.trace.unpack import LONGEST_BEGINNING, beginnings, most_stored, segment_begins, unpack

_NAMED = "a run leaves its trace in reports/latest/trace/board.trace"
_SCAN = 1 << 20
_FIRST_SCAN = 1 << 14
_MOST_PROBLEMS = 1000
_SLACK = 64 << 20
_REREAD = 4
"""How many times the file's bytes may be read, beside the slack: each false beginning reads some of them again."""
_MOST_RATIO = 512
"""How many times its size a file may unpack to, beside the slack: records differ, the best traces reach about 100."""
_CODECS = frozenset(Codec)
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

    @property
    def continues(self) -> bool:
        """Whether it goes on where the segment before it ended: a board that was saved there and restored."""
        return self.meta.get("continues") is True

    def disagreements(self) -> list[str]:
        """Return the differences between the plugin's counters and the records read; empty when they agree or none were
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
            found.append(
                f"the plugin lost {self.counters['lost']} records: the file could not be written, or {self._limit()}"
            )
        return found

    def _limit(self) -> str:
        most = self.meta.get("max_mib")
        return f"it reached its limit of {most} MiB (max_mib)" if isinstance(most, int) and most else "it was full"


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
    was cut off simply ends after its last whole record, with :attr:`truncated` set; so does one that reached the
    limit its plugin was given. ``recover=True`` goes on after damage and notes it in :attr:`problems`, as it does
    for lost records.

    :attr:`segments` grows while reading; each one's :meth:`Segment.disagreements` proves whether a record was
    lost.

    Whatever the file holds: memory is bounded by the longest record, time by the file's size, and nothing is
    raised but :class:`TraceError`.
    """

    def __init__(self, path: Path | str, *, recover: bool = False) -> None:
        self.path = Path(path)
        self.recover = recover
        self.segments: list[Segment] = []
        self.truncated = False
        self._problems: list[Problem] = []
        self._unlisted = 0
        self._offset = 0
        self._read = self._unpacked = 0
        with self._open() as stream:
            self._segment_header(stream)

    @property
    def meta(self) -> dict[str, Any]:
        """The first segment's description."""
        return self.segments[0].meta

    @property
    def problems(self) -> list[Problem]:
        """Return the damage found so far; of more than a thousand problems the first, and a count of the rest."""
        if not self._unlisted:
            return list(self._problems)
        return [*self._problems, Problem(self._offset, f"{self._unlisted} more problems are not listed")]

    def events(self) -> Iterator[Event]:
        """Yield all records, in order. May be called again; each call reads the file anew."""
        return map(Event, self.records())

    def valid_events(self) -> Iterator[Event]:
        """Yields well-formed records; malformed ones are counted as damage."""
        for event in self.events():
            try:
                event.check()
            except TraceError as error:
                self._damage(error.what)
            else:
                yield event

    def records(self) -> Iterator[bytes]:
        """Yield all records as bytes, in order, checked for completeness and sequence."""
        self.segments, self._problems, self.truncated = [], [], False
        self._unlisted = self._read = self._unpacked = 0
        with self._open() as stream:
            self._segment_header(stream)
            while True:
                self._offset = stream.tell()
                magic = stream.read(len(CHUNK_MAGIC))
                if not magic or self._is_too_much(stream):
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
        self._note(text)

    def _cut(self, text: str) -> None:
        self.truncated = True
        self._note(f"the file ends {text}")

    def _note(self, text: str, offset: int | None = None) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append(Problem(self._offset if offset is None else offset, text))
        else:
            self._unlisted += 1

    def _is_too_much(self, stream: IO[bytes]) -> bool:
        """Whether reading on would take time out of all proportion to the file's size."""
        size = os.fstat(stream.fileno()).st_size
        if self._read <= _REREAD * size + _SLACK and self._unpacked <= _MOST_RATIO * size + _SLACK:
            return False
        self._damage("this was made to take long to read: the rest is left")
        self.truncated = True
        return True

    def _segment_header(self, stream: IO[bytes]) -> None:
        """Begin the next segment. Only behind the first one there is something to go on with."""
        raw = stream.read(SEGMENT.size)
        if len(raw) < SEGMENT.size or not raw.startswith(SEGMENT_MAGIC):
            if not self.segments:
                raise TraceError(
                    "this is not a medcheck trace",
                    where=self._where(),
                    hint="traces begin with the bytes MEDTRACE",
                )
            if SEGMENT_MAGIC.startswith(raw[:8]) or raw.startswith(SEGMENT_MAGIC):
                self._cut("in the middle of a segment's header")
            else:
                self._damage("neither a chunk nor a segment begins here")
                self._resync(stream, self._offset + 1)
            return
        _, major, minor, length, started, text_length, crc = SEGMENT.unpack(raw)
        if major != MAJOR:
            raise TraceError(
                f"the trace has format version {major}.{minor}, this medcheck reads {MAJOR}.x",
                where=self._where(),
                hint="read it with the medcheck that wrote it, or a newer one",
            )
        text = stream.read(min(length - SEGMENT.size, _SCAN)) if length >= SEGMENT.size else b""
        self._read += len(text)
        if len(text) < text_length:
            if not self.segments:
                raise TraceError("the trace ends within its header", where=self._where())
            self._cut("in the middle of a segment's header")
            return
        wrong, meta = self._meta(raw, text, text_length, crc)
        if wrong and not self.segments:
            raise TraceError(wrong, where=self._where())
        if wrong:
            self._damage(wrong)
            self._resync(stream, self._offset + 1)
            return
        self.segments.append(Segment(meta, started, minor, self._offset))

    @staticmethod
    def _meta(raw: bytes, text: bytes, text_length: int, crc: int) -> tuple[str, dict[str, Any]]:
        """Return the error in a segment's header (empty if there is none), and its JSON object."""
        if zlib.crc32(text, zlib.crc32(raw[: SEGMENT.size - 4] + bytes(4))) != crc:
            return "the segment header is damaged: its CRC does not match", {}
        try:
            meta = json.loads(text[:text_length])
        except (ValueError, RecursionError) as error:
            return f"the segment header holds no JSON: {error}", {}
        return ("", meta) if isinstance(meta, dict) else ("the segment header holds no JSON object", {})

    def _chunk(self, stream: IO[bytes]) -> tuple[bytes, bool]:
        """The next chunk's records in one piece, and whether they are all it held."""
        header = stream.read(CHUNK.size)
        if len(header) < CHUNK.size:
            self._cut("in the middle of a chunk's header")
            return b"", False
        _, codec, stored, raw_size, count, crc, first, _, header_crc = CHUNK.unpack(header)
        if zlib.crc32(header[:-4]) != header_crc or raw_size > RECORD_LIMIT or stored > most_stored(raw_size):
            self._damage("a chunk's header is damaged: its CRC does not match, or its sizes are impossible")
            self._resync(stream, self._offset + 1)
            return b"", False
        if codec not in _CODECS:
            raise TraceError(
                f"a chunk is packed with codec {codec}, which this medcheck does not know",
                where=self._where(),
            )
        left = os.fstat(stream.fileno()).st_size - self._offset - CHUNK.size
        payload = stream.read(min(stored, max(left, 0)))
        self._read += len(payload)
        whole = len(payload) == stored
        torn = -1 if whole else next((at for at in beginnings(payload) if segment_begins(payload, at)), -1)
        if torn >= 0:
            self._damage("a chunk is torn: a later run was appended behind its first half")
            stream.seek(self._offset + CHUNK.size + torn)
            payload = payload[:torn]
        elif not whole:
            self._cut("in the middle of a chunk")
        elif zlib.crc32(payload) != crc:
            self._damage(f"a chunk of {count} records, from {first}, is damaged: its CRC does not match")
            self._resync(stream, self._offset + CHUNK.size)  # a later run may be what follows the half of it
            return b"", False
        return self._records_of(codec, payload, raw_size, whole), whole

    def _records_of(self, codec: int, payload: bytes, raw_size: int, whole: bool) -> bytes:
        """The chunk's records; of a chunk that was cut, all that its remaining bytes give."""
        try:
            raw = unpack(codec, payload, raw_size)
        except TraceError as error:
            if whole:
                self._damage(error.what)
            return b""
        self._unpacked += len(raw)
        if len(raw) > raw_size:
            self._damage(f"a chunk unpacks to more than the {raw_size} bytes that its header says")
            return raw[:raw_size]
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
                self._gap(segment, seq, Event(record))
            segment.last_seq = seq
            segment.records += 1
            by_kind[kind] = by_kind.get(kind, 0) + 1
            if kind == counters:
                self._closing(segment, Event(record))
            yield record

    def _gap(self, segment: Segment, seq: int, event: Event) -> None:
        """A record that does not follow the last one: damage, unless it is the plugin's own word for where it ended."""
        missing = seq - segment.last_seq - 1
        if missing < 0:
            self._damage(f"record {seq} follows record {segment.last_seq}")
        elif event.kind == Kind.COUNTERS and self._lost(event) == missing:
            self._cut(f"before its time: records {segment.last_seq + 1} to {seq - 1} were not written any more")
        else:
            self._damage(f"records {segment.last_seq + 1} to {seq - 1} are missing")

    @staticmethod
    def _lost(event: Event) -> int:
        try:
            return event.counters().get("lost", 0)
        except TraceError:
            return 0

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
        """Move to the next header whose CRC is right, or to the end."""
        stream.seek(start)
        base, window, step = start, b"", _FIRST_SCAN
        while block := stream.read(step):
            self._read += len(block)
            window += block
            sure = len(window) - (LONGEST_BEGINNING if len(block) == step else 0)
            for at in beginnings(window):
                if at >= sure:
                    break  # one that lies in this window only in part may lie before it
                stream.seek(base + at)
                return
            base, window, step = base + sure, window[sure:], min(2 * step, _SCAN)
        stream.seek(0, os.SEEK_END)

    def _compare(self) -> None:
        for segment in self.segments:
            for text in segment.disagreements():
                if not self.recover and not self.truncated:
                    raise TraceError(text, where=str(self.path))
                self._note(text, segment.offset)

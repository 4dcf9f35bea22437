# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacking and recovery of a trace file's chunks, at a cost bounded by the bytes at hand, not by what headers
claim."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import zstandard

from framework.common.errors import TraceError
from framework.trace.format import CHUNK, CHUNK_MAGIC, RECORD_LIMIT, SEGMENT, SEGMENT_MAGIC, Codec

LONGEST_BEGINNING = SEGMENT.size + 4096
"""Bytes that :func:`beginnings` needs to recognise a header: a segment's with its text, which is about 300 long."""

_MAGIC = re.compile(b"|".join(map(re.escape, (CHUNK_MAGIC, SEGMENT_MAGIC))))
_ZSTD = zstandard.ZstdDecompressor(max_window_size=RECORD_LIMIT)


def unpack(codec: int, payload: bytes, limit: int) -> bytes:
    """Unpack ``payload``, or the beginning of one; never more than ``limit`` + 1 bytes, which is too much already.

    Raises :class:`TraceError` when it is not what ``codec`` (:class:`Codec`) makes.
    """
    try:
        if codec == Codec.ZSTD:
            with _ZSTD.stream_reader(payload) as stream:
                return stream.read(limit + 1)
        if codec == Codec.ZLIB:
            return zlib.decompressobj().decompress(payload, limit + 1)
    except (zstandard.ZstdError, zlib.error, MemoryError) as error:
        raise TraceError(f"a chunk cannot be unpacked: {error}") from error
    return payload[: limit + 1]


def most_stored(raw: int) -> int:
    """The most bytes that ``raw`` bytes of records take when packing does not pay."""
    return raw + raw // 64 + 1024


def beginnings(data: bytes, start: int = 0) -> Iterator[int]:
    """Offsets at which a chunk's or segment's header lies whole in ``data`` and its CRC is right."""
    for match in _MAGIC.finditer(data, start):
        at = match.start()
        if _chunk_begins(data, at) if match[0] == CHUNK_MAGIC else segment_begins(data, at):
            yield at


def segment_begins(data: bytes, at: int) -> bool:
    """Whether a whole segment header with its text lies at ``at``."""
    if at + SEGMENT.size > len(data):
        return False
    _, _, _, length, _, text_length, crc = SEGMENT.unpack_from(data, at)
    if length != SEGMENT.size + text_length or length > LONGEST_BEGINNING or at + length > len(data):
        return False
    head = data[at : at + SEGMENT.size - 4] + bytes(4)
    return bool(zlib.crc32(data[at + SEGMENT.size : at + length], zlib.crc32(head)) == crc)


def _chunk_begins(data: bytes, at: int) -> bool:
    header = data[at : at + CHUNK.size]
    return len(header) == CHUNK.size and zlib.crc32(header[:-4]) == int.from_bytes(header[-4:], "little")

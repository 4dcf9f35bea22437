# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing trace files from Python: for tests, for cutting and filtering traces, and for synthetic ones."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zstandard

from framework.trace.event import Event
from framework.trace.format import (
    BLOCK,
    CHUNK,
    CHUNK_MAGIC,
    COUNTERS,
    MAJOR,
    MINOR,
    RECORD,
    SEGMENT,
    SEGMENT_MAGIC,
    UNKNOWN,
    BlockKind,
    Codec,
    Kind,
)

_CHUNK_BYTES = 256 * 1024


def pack_block(
    kind: BlockKind,
    data: bytes = b"",
    *,
    flags: int = 0,
    level: int = 3,
    index: int = 0,
    size: int | None = None,
    count: int = 0,
    ipa: int = 0,
    ma: int = 0,
    pte: int = 0,
    cookie: int = 0,
) -> bytes:
    """One block. ``size`` defaults to the data's length; trailing zeros may be left out of ``data``."""
    head = BLOCK.pack(
        kind, flags, level, index, len(data) if size is None else size, len(data), count, ipa, ma, pte, cookie
    )
    return head + data + bytes(-len(data) % 8)


def pack_record(
    kind: Kind,
    seq: int,
    regs: Sequence[int],
    blocks: Iterable[bytes] = (),
    *,
    flags: int = 0,
    cpu: int = 0,
    el: int = 0,
    time_ns: int = 0,
    domain: int | None = None,
    vmid: int = 0,
    vcpu: int | None = None,
    parent: int = 0,
    pc: int = 0,
    esr: int = 0,
    imm: int = 0,
) -> bytes:
    """One record, blocks included."""
    packed = list(blocks)
    body = b"".join(value.to_bytes(8, "little") for value in regs) + b"".join(packed)
    head = RECORD.pack(
        RECORD.size + len(body),
        kind,
        flags,
        cpu,
        el,
        seq,
        time_ns,
        UNKNOWN if domain is None else domain,
        vmid,
        UNKNOWN if vcpu is None else vcpu,
        len(regs),
        parent,
        pc,
        esr,
        len(packed),
        imm,
    )
    return head + body


class Writer:
    """Writes one segment; appends it when the file exists and ``append`` is set.

    Records must be numbered 1, 2, 3, ...; :meth:`close` adds the closing counters, as the plugin does, unless
    ``counters`` is False. A context manager.
    """

    def __init__(
        self,
        path: Path | str,
        meta: Mapping[str, Any] | None = None,
        *,
        codec: Codec = Codec.ZSTD,
        append: bool = False,
        counters: bool = True,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        self._stream = Path(path).open("ab" if append else "wb")  # noqa: SIM115 - close() is the end
        self._codec, self._counters, self._chunk_bytes = codec, counters, chunk_bytes
        self._pending: list[bytes] = []
        self._size = self._first = self._last = 0
        self._by_kind: dict[int, int] = {}
        text = json.dumps(dict(meta or {})).encode()
        head = SEGMENT.pack(SEGMENT_MAGIC, MAJOR, MINOR, SEGMENT.size + len(text), time.time_ns(), len(text), 0)
        self._stream.write(head[:-4] + zlib.crc32(head + text).to_bytes(4, "little") + text)

    def append(self, record: bytes) -> None:
        """Add one record (:func:`pack_record`)."""
        seq = int.from_bytes(record[8:16], "little")
        if not self._pending:
            self._first = seq
        self._last = seq
        self._by_kind[record[4]] = self._by_kind.get(record[4], 0) + 1
        self._pending.append(record)
        self._size += len(record)
        if self._size >= self._chunk_bytes:
            self.flush()

    def copy(self, event: Event) -> None:
        """Add an event of another trace under the next number. Its ``parent`` keeps the other trace's
        number."""
        self.append(event.raw[:8] + (self._last + 1).to_bytes(8, "little") + event.raw[16:])

    def flush(self) -> None:
        """Write what is pending as one chunk."""
        if not self._pending:
            return
        raw = b"".join(self._pending)
        stored = {
            Codec.NONE: lambda: raw,
            Codec.ZSTD: lambda: zstandard.ZstdCompressor(level=1).compress(raw),
            Codec.ZLIB: lambda: zlib.compress(raw, 1),
        }[self._codec]()
        head = CHUNK.pack(
            CHUNK_MAGIC,
            self._codec,
            len(stored),
            len(raw),
            len(self._pending),
            zlib.crc32(stored),
            self._first,
            0,
            0,
        )[:-4]
        self._stream.write(head + zlib.crc32(head).to_bytes(4, "little") + stored)
        self._stream.flush()
        self._pending, self._size = [], 0

    def close(self) -> None:
        """Write the closing counters and what is pending, and close the file."""
        if self._stream.closed:
            return
        if self._counters:
            counts = dict.fromkeys(COUNTERS, 0)
            counts |= {f"kind_{kind}": n for kind, n in self._by_kind.items()}
            counts[f"kind_{int(Kind.COUNTERS)}"] = counts.get(f"kind_{int(Kind.COUNTERS)}", 0) + 1
            counts["records"] = sum(self._by_kind.values()) + 1
            self.append(pack_record(Kind.COUNTERS, self._last + 1, list(counts.values())))
        self.flush()
        self._stream.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

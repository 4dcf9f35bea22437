# SPDX-License-Identifier: GPL-2.0-or-later
"""One record of a trace, decoded on demand."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from framework.common.errors import TraceError
from framework.trace.format import (
    ACCESS,
    BLOCK,
    COUNTERS,
    PAGE,
    RECORD,
    TRANSLATION,
    UNKNOWN,
    BlockFlag,
    BlockKind,
    Flag,
    Kind,
    P2mType,
    p2m_type,
)

_REGS = [struct.Struct(f"<{n}Q") for n in range(64)]
_PAGE_MASK = PAGE - 1
_NO_TRANSLATION = 0xF
_BLOCK_KINDS = frozenset(BlockKind)
_KINDS = frozenset(Kind)
_WORDS = frozenset({BlockKind.BOOKS, BlockKind.FRAMES, BlockKind.HEAP, BlockKind.PARTITION})
_PAGES = frozenset(BlockKind) - _WORDS - {
    BlockKind.TRANSLATIONS, BlockKind.GUEST_ALLOC, BlockKind.TEXT, BlockKind.ACCESSES, BlockKind.INSTRUCTIONS,
}  # fmt: skip
_NUMBER = struct.Struct("<Q")
_REGS_OF: dict[int, int] = {
    Kind.GUEST_CALL: 8, Kind.EL3_CALL: 8, Kind.EL3_RETURN: 8, Kind.GUEST_RETURN: 8, Kind.DOORBELL: 1,
    Kind.COUNTERS: len(COUNTERS),
}  # fmt: skip
"""Number of registers that every convention of such a call passes; the plugin records more of a guest's."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Result of the stage-2 translation of one guest page. ``ma`` is None when it is not mapped; ``pte`` is the last
    entry walked."""

    ipa: int
    ma: int | None
    pte: int
    level: int

    @property
    def p2m(self) -> P2mType | None:
        """Xen's type of the page, from the entry's software bits."""
        return p2m_type(self.pte) if self.ma is not None else None

    @property
    def writable(self) -> bool:
        """Whether stage 2 lets the guest write."""
        return self.ma is not None and bool(self.pte & 0x80)


@dataclass(frozen=True, slots=True)
class Access:
    """EL2 loaded, or stored, ``length`` bytes from machine address ``ma`` on, within a page and in that order; ``pc``
    is the first instruction that did."""

    ma: int
    pc: int
    length: int
    store: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Memory at the time of an event.

    ``data`` lacks the trailing zeros of the ``size`` bytes that were read; :meth:`page` has them. ``ipa`` is
    0 for shadow pages, ``ma`` is 0 when nothing is mapped. ``index`` is the parameter that a list belongs to,
    ``count`` the ordinal of a list page.
    """

    kind: BlockKind
    flags: BlockFlag
    level: int
    index: int
    size: int
    count: int
    ipa: int
    ma: int
    pte: int
    cookie: int
    data: bytes

    @property
    def readable(self) -> bool:
        """Whether ``data`` is what the memory held."""
        return self.size > 0

    @property
    def is_page(self) -> bool:
        """Whether it is a whole page, as the plugin reads them."""
        return self.size == PAGE and len(self.data) <= PAGE

    def page(self) -> bytes:
        """The bytes that were read, whole; empty when nothing could be read."""
        return self.data.ljust(self.size, b"\0")

    @property
    def p2m(self) -> P2mType | None:
        """Xen's type of a guest page; None when unmapped or not a guest's."""
        return p2m_type(self.pte) if self.ipa and not self.flags & BlockFlag.UNMAPPED else None

    def translations(self) -> Iterator[Translation]:
        """The entries of a TRANSLATIONS block: every data page that a page list names, in order."""
        if len(self.data) % TRANSLATION.size:
            raise TraceError(f"{len(self.data)} bytes are no whole number of translations")
        for ipa, ma, pte in TRANSLATION.iter_unpack(self.data):
            level = ma & _PAGE_MASK
            yield Translation(ipa, None if level == _NO_TRANSLATION else ma & ~_PAGE_MASK, pte, level & 3)

    def accesses(self) -> list[Access]:
        """The entries of an ACCESSES block."""
        if len(self.data) % ACCESS.size:
            raise TraceError(f"{len(self.data)} bytes are no whole number of accesses")
        return [Access(ma, pc, length, bool(store)) for ma, pc, length, store in ACCESS.iter_unpack(self.data)]

    def instructions(self) -> int:
        """The number in an INSTRUCTIONS block."""
        if len(self.data) != _NUMBER.size:
            raise TraceError(f"{len(self.data)} bytes are no number of instructions")
        return int(_NUMBER.unpack(self.data)[0])


class Event:
    """One record. Header fields are attributes; registers and memory are decoded when asked for.

    ``seq`` is total across CPUs and starts at 1 in each segment, ``time_ns`` is the board's virtual time.
    ``domain`` and ``vcpu`` are Xen's ids of what ran, None when unknown. ``parent`` is the ``seq`` of the
    guest call that an EL3 call or guest return belongs to, and of the EL3 call that an EL3 return answers; 0:
    none.

    Whatever bytes a record holds, decoding them raises nothing but :class:`TraceError`.
    """

    __slots__ = (
        "_domain",
        "_vcpu",
        "cpu",
        "el",
        "esr",
        "imm",
        "kind",
        "nblocks",
        "nregs",
        "parent",
        "pc",
        "raw",
        "raw_flags",
        "seq",
        "time_ns",
        "vmid",
    )
    kind: int
    raw_flags: int
    cpu: int
    el: int
    seq: int
    time_ns: int
    vmid: int
    parent: int
    pc: int
    esr: int
    imm: int

    def __init__(self, raw: bytes) -> None:
        if len(raw) < RECORD.size:
            raise TraceError(f"a record of {len(raw)} bytes is shorter than its header")
        self.raw = raw
        (
            _,
            self.kind,
            self.raw_flags,
            self.cpu,
            self.el,
            self.seq,
            self.time_ns,
            self._domain,
            self.vmid,
            self._vcpu,
            self.nregs,
            self.parent,
            self.pc,
            self.esr,
            self.nblocks,
            self.imm,
        ) = RECORD.unpack_from(raw)

    @property
    def domain(self) -> int | None:
        """Xen's id of the domain that ran."""
        return None if self._domain == UNKNOWN else self._domain

    @property
    def vcpu(self) -> int | None:
        """Xen's id of the vCPU that ran."""
        return None if self._vcpu == UNKNOWN else self._vcpu

    @property
    def flags(self) -> Flag:
        """The record's flags."""
        return Flag(self.raw_flags)

    @property
    def conduit(self) -> str:
        """Instruction by which a guest called: ``smc`` or ``hvc``."""
        return "hvc" if self.raw_flags & Flag.HVC else "smc"

    @property
    def is_tee(self) -> bool:
        """Whether the function belongs to a trusted application or trusted OS."""
        return not self.raw_flags & Flag.NOT_TEE

    @property
    def regs(self) -> tuple[int, ...]:
        """x0, x1, ...: 18 of a guest's, 8 at EL3; a domain event's struct domain; the counters."""
        try:
            found: tuple[int, ...] = _REGS[self.nregs].unpack_from(self.raw, RECORD.size)
        except (IndexError, struct.error) as error:
            raise self._malformed(f"{self.nregs} registers do not fit a record of {len(self.raw)} bytes") from error
        return found

    @property
    def subject(self) -> int:
        """The domain that a DOMAIN_* event is about."""
        return self.imm

    def counters(self) -> dict[str, int]:
        """A COUNTERS record by name (:data:`framework.trace.format.COUNTERS`)."""
        return dict(zip(COUNTERS, self.regs, strict=False))

    def blocks(self) -> list[Block]:
        """The memory of this event."""
        at = RECORD.size + self.nregs * 8
        found = []
        for _ in range(self.nblocks):
            if at + BLOCK.size > len(self.raw):
                raise self._malformed("a block lies outside it")
            kind, flags, level, index, size, length, count, ipa, ma, pte, cookie = BLOCK.unpack_from(self.raw, at)
            start = at + BLOCK.size
            at = start + (length + 7 & ~7)
            if at > len(self.raw):
                raise self._malformed("a block lies outside it")
            if kind not in _BLOCK_KINDS:
                continue  # of a newer minor version
            found.append(
                Block(
                    BlockKind(kind),
                    BlockFlag(flags),
                    level,
                    index,
                    size,
                    count,
                    ipa,
                    ma,
                    pte,
                    cookie,
                    self.raw[start : start + length],
                )
            )
        return found

    def accesses(self) -> list[Access] | None:
        """What EL2 read and wrote of the guest's pages since the last border, in order; None when that was not seen,
        or not all of it."""
        block = self.block(BlockKind.ACCESSES)
        if block is None or block.flags & BlockFlag.LIMIT:
            return None
        return block.accesses()

    def instructions(self) -> int | None:
        """The instructions that EL2 executed since the last border; None when that was not seen."""
        block = self.block(BlockKind.INSTRUCTIONS)
        return None if block is None else block.instructions()

    def block(self, kind: BlockKind) -> Block | None:
        """The first block of this kind."""
        return next((b for b in self.blocks() if b.kind == kind), None)

    def check(self) -> None:
        """Raise :class:`TraceError` unless the kind is known, its registers are there and every block is whole: a page
        or nothing, or translations."""
        if self.kind not in _KINDS:
            raise self._malformed(f"there is no kind {self.kind}")
        if len(self.regs) < _REGS_OF.get(self.kind, 0):
            raise self._malformed(f"it has {self.nregs} registers")
        for block in self.blocks():
            if block.kind == BlockKind.TRANSLATIONS:
                list(block.translations())
            elif block.kind == BlockKind.ACCESSES:
                block.accesses()
            elif block.kind == BlockKind.INSTRUCTIONS:
                block.instructions()
            elif block.kind in _WORDS and len(block.data) % 8:
                raise self._malformed(
                    f"a {block.kind.name} block of {len(block.data)} bytes is no whole number of words"
                )
            elif block.kind in _PAGES and block.readable and not block.is_page:
                raise self._malformed(f"a {block.kind.name} block holds {block.size} bytes, which are no page")

    def _malformed(self, what: str) -> TraceError:
        return TraceError(f"record {self.seq} is malformed: {what}", where=f"record {self.seq}")

    def __repr__(self) -> str:
        name = Kind(self.kind).name if self.kind in Kind.__members__.values() else str(self.kind)
        return f"<Event {self.seq} {name} domain={self.domain} {self.nregs} registers>"

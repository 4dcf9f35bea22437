# SPDX-License-Identifier: GPL-2.0-or-later
"""Observer: turns records of a trace into events of the reference, one record at a time.

Nothing is judged here and nothing is made up. What a record does not show is absent from the event, and what
does not follow from the record before becomes a :class:`~mediator_ref.events.Gap`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from framework.common.errors import TraceError
from framework.conformance.books import BOOK_KINDS, PARTITION, Found, books, partition
from framework.trace.event import Event
from framework.trace.format import ACCESS, BLOCK, PAGE, RECORD, TRANSLATION, BlockFlag, BlockKind, Flag, Kind
from mediator_ref import abi
from mediator_ref.books import Books
from mediator_ref.events import (
    Access,
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    Gap,
    GuestCall,
    GuestReturn,
    PageKind,
    PageView,
    Start,
)
from mediator_ref.events import Event as RefEvent

_CALL, _EL3_CALL, _EL3_RETURN, _RETURN = (
    int(kind) for kind in (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
)
_CREATE, _KILL, _DESTROY = (int(k) for k in (Kind.DOMAIN_CREATE, Kind.DOMAIN_KILL, Kind.DOMAIN_DESTROY))
_COUNTERS, _DOORBELL = int(Kind.COUNTERS), int(Kind.DOORBELL)
_NOT_TEE, _AARCH32, _HVC = int(Flag.NOT_TEE), int(Flag.AARCH32), int(Flag.HVC)
_SMC_KINDS = frozenset((_CALL, _EL3_CALL, _EL3_RETURN, _RETURN))
_DOMAIN_KINDS = frozenset((_CREATE, _KILL, _DESTROY))
_GUEST = frozenset(
    int(k) for k in (BlockKind.GUEST_ARG, BlockKind.GUEST_LIST, BlockKind.GUEST_RPC, BlockKind.GUEST_ALLOC)
)
_SHADOW = frozenset(int(k) for k in (BlockKind.SHADOW_ARG, BlockKind.SHADOW_LIST, BlockKind.SHADOW_RPC))
_TRANSLATIONS = int(BlockKind.TRANSLATIONS)
_UNMAPPED = int(BlockFlag.UNMAPPED)
_LIMIT = int(BlockFlag.LIMIT)
_ACCESSES, _INSTRUCTIONS = int(BlockKind.ACCESSES), int(BlockKind.INSTRUCTIONS)
_NUMBER = struct.Struct("<Q")
_OFFSET = PAGE - 1
_NO_TRANSLATION = 0xF
_EMPTY: dict[int, PageView] = {}
_NO_SHADOW: dict[int, bytes] = {}
_UNMAPPED_PAGE = PageView(PageKind.UNMAPPED)
_P2M_RAM_RW, _P2M_RAM_RO, _P2M_LAST = 1, 2, 11
_INSTRUCTION = 4

_OfOptee = tuple[int, int, int, bytes]
Malformed = (struct.error, IndexError, ValueError, TraceError)
"""Exceptions that decoding a malformed record may raise."""


def page_kind(pte: int) -> PageKind | None:
    """A page's kind from its stage-2 leaf entry; None for a p2m type this version of Xen does not have."""
    number = pte >> 55 & 0xF
    if number == _P2M_RAM_RW:
        return PageKind.RAM_RW
    if number == _P2M_RAM_RO:
        return PageKind.RAM_RO
    return PageKind.OTHER if number <= _P2M_LAST else None


class Observer:
    """Turns the records of one trace, in order, into events of the reference.

    ``seq`` of an event is the record's number plus the numbers of all runs of the plugin before
    (:meth:`place` takes it apart again). :attr:`gaps` says in words what is missing. What it remembers is one
    entry per vCPU in a call and per domain being created.
    """

    def __init__(self) -> None:
        self.gaps: list[str] = []
        self._bases = [0]
        self._base = 0
        self._last = 0
        self._begun = False
        self._lost_attribution = False
        self._calls: dict[tuple[int, int], int] = {}
        self._unannounced: dict[int, bool] = {}  # whether OP-TEE was told of them
        self._killed: dict[int, int] = {}

    @property
    def last(self) -> int:
        """The number of the latest record in its run of the plugin; 0 before the first."""
        return self._last

    def place(self, seq: int) -> tuple[int, int]:
        """Return the plugin's run (from 1) and the record number behind an event's ``seq``."""
        segment = len(self._bases)
        while segment > 1 and seq <= self._bases[segment - 1]:
            segment -= 1
        return segment, seq - self._bases[segment - 1]

    def gap(self, reason: str) -> Gap:
        """Note that something is missing before the next record; return the event for the reference."""
        if len(self.gaps) < 100:
            self.gaps.append(reason)
        self._calls.clear()
        self._killed.clear()
        self._unannounced.clear()  # what OP-TEE said to their creation may be missing
        return Gap(self._base + self._last, reason)

    def resume(self) -> None:
        """Take the next record, number 1 of a new run of the plugin, as what follows the last one: its board was saved
        there and restored."""
        self._next_run(self._last)
        self._last = 0

    def unburied(self) -> list[str]:
        """Domains that were killed and are not gone: still being torn down, or zombies."""
        return [
            f"domain {domid} was killed at record {self.place(seq)[1]} and is not gone at the end of the trace"
            for domid, seq in self._killed.items()
        ]

    def observe(self, record: Event) -> Sequence[RefEvent]:
        """The events one record stands for: usually one."""
        number = record.seq
        events: list[RefEvent] = []
        if number != self._last + 1 or not self._begun:
            self._discontinuity(record, events)
        self._last = number
        kind = record.kind
        try:
            if kind not in _SMC_KINDS:
                self._rare(record, kind, self._base + number, events)
            elif not record.raw_flags & _NOT_TEE:
                self._smc(record, kind, self._base + number, events)
        except Malformed as error:
            events.append(self.gap(f"record {number} is malformed: {error}"))
        return events

    def _rare(self, record: Event, kind: int, seq: int, events: list[RefEvent]) -> None:
        if kind in _DOMAIN_KINDS:
            self._domain(kind, record, seq, events)
        elif kind == _COUNTERS:
            self._counters(record)
        elif kind == _DOORBELL:
            self._announce(record.domain, seq, events)
        else:
            raise ValueError(f"there is no kind {kind}")

    def _discontinuity(self, record: Event, events: list[RefEvent]) -> None:
        number, last = record.seq, self._last
        if not self._begun:
            self._begun = True
            mid = not _at_boot(record)
            self._last = number - 1
            if mid:
                self.gaps.append(
                    f"the trace starts in the middle, at record {number}: domains, calls, RPC pages and "
                    "shared buffers may exist that were never seen to come; what rests on them is not checked"
                )
            events.append(Start(number, mid))
        elif number == 1 and last:
            self._next_run(last)
            self._last = 0
            events.append(self.gap("a new run of the trace plugin begins; what happened before is not known"))
        elif number > last:
            events.append(self.gap(f"records {last + 1} to {number - 1} are missing"))
        else:
            events.append(self.gap(f"record {number} follows record {last}"))
            self._next_run(last - number + 1)  # numbers go on growing, whatever the file says

    def _next_run(self, offset: int) -> None:
        self._base += offset
        self._bases.append(self._base)

    def _counters(self, record: Event) -> None:
        """Note the gaps that the plugin's closing counters show: what it could not record."""
        counts = record.counters()
        for name, what in (
            ("lost", "records were lost"),
            ("table_full", "times the plugin lost track of a call"),
        ):
            if counts.get(name):
                self.gaps.append(f"{counts[name]} {what} while recording")

    def _smc(self, record: Event, kind: int, seq: int, events: list[RefEvent]) -> None:
        domid, vcpu = record.domain, record.vcpu
        regs = record.regs
        if len(regs) < 8:
            raise ValueError(f"it has {len(regs)} registers")
        if domid is None or vcpu is None:
            if kind in (_CALL, _RETURN):
                self._unattributed(record, events)
                return
            vcpu = -1 - record.cpu  # Xen's own calls while no domain runs: one at a time on each processor
            mem, shadow, _, _ = _memory(record)
            made = El3Call if kind == _EL3_CALL else El3Return
            events.append(made(seq, vcpu, None, regs, shadow, mem))
            return
        self._lost_attribution = False
        mem, shadow, own, of_optee = _memory(record) if record.nblocks else (_EMPTY, _NO_SHADOW, None, None)
        if kind == _EL3_CALL:
            if regs[0] & abi.U32 == abi.VM_CREATED and regs[1] - 1 in self._unannounced:
                self._unannounced[regs[1] - 1] = True
            events.append(El3Call(seq, vcpu, domid, regs, shadow, mem, *_stretch(record), own))
        elif kind == _EL3_RETURN:
            events.append(El3Return(seq, vcpu, domid, regs, shadow, mem, partition(*of_optee) if of_optee else None))
        elif kind == _CALL:
            self._announce(domid, seq, events)
            self._calls[domid, vcpu] = record.pc
            events.append(
                GuestCall(
                    seq,
                    vcpu,
                    domid,
                    regs,
                    mem,
                    "hvc" if record.raw_flags & _HVC else "smc",
                    record.imm,
                    bool(record.raw_flags & _AARCH32),
                    own,
                )
            )
        else:
            called_at = self._calls.pop((domid, vcpu), None)
            # Xen steps over a trapped SMC, the architecture over HVC; anywhere else is an exception vector.
            undef = called_at is not None and record.pc not in (called_at, called_at + _INSTRUCTION)
            events.append(GuestReturn(seq, vcpu, domid, regs, mem, undef, *_stretch(record), own))

    def _announce(self, domid: int | None, seq: int, events: list[RefEvent]) -> None:
        """Say, once, that a domain exists whose creation was seen; without VM_CREATED it has no mediator."""
        if domid is not None and domid in self._unannounced:
            told = self._unannounced.pop(domid)
            events.append(DomainCreated(seq, domid, None if told else False))

    def _unattributed(self, record: Event, events: list[RefEvent]) -> None:
        """Note a gap, once, for guests' calls without a domain, which cannot be paired with anything."""
        if self._lost_attribution:
            return
        self._lost_attribution = True
        events.append(
            self.gap(
                f"from record {record.seq} on, calls of guests whose domain is not known "
                "(a trace without Xen's symbols says nothing about domains)"
            )
        )

    def _domain(self, kind: int, record: Event, seq: int, events: list[RefEvent]) -> None:
        domid = record.subject
        own = _memory(record)[2] if record.nblocks else None
        if kind == _CREATE:
            # Xen has only begun to create it; OP-TEE may still refuse. It exists once it runs, or is killed.
            self._unannounced[domid] = False
            return
        if kind == _KILL:
            self._killed.setdefault(domid, seq)
            self._announce(domid, seq, events)
            events.append(DomainDying(seq, domid, own))
        if kind == _DESTROY:
            self._unannounced.pop(domid, None)
            self._killed.pop(domid, None)
            for key in [key for key in self._calls if key[0] == domid]:
                del self._calls[key]
            left = own.heap.domain_pages if own is not None and own.heap is not None else None
            events.append(DomainDestroyed(seq, domid, left, books=own))


def _at_boot(record: Event) -> bool:
    """Whether a trace that begins with this record saw Xen boot: first comes the mediator's probe or dom0."""
    if record.seq != 1:
        return False
    if record.kind == _EL3_CALL and not record.parent:
        try:
            return bool(record.raw_flags & _NOT_TEE) or abi.fid_of(record.regs[0]) in abi.PROBE_FIDS
        except Malformed:
            return False
    return record.kind == _CREATE and record.subject == 0


def _memory(record: Event) -> tuple[dict[int, PageView], dict[int, bytes], Books | None, _OfOptee | None]:
    """Guest pages by IPA, pages of the hypervisor by MA, its own books, and what :func:`partition` reads."""
    raw = record.raw
    at, end = RECORD.size + record.nregs * 8, len(raw)
    mem: dict[int, PageView] = {}
    shadow: dict[int, bytes] = {}
    own: list[Found] = []
    of_optee: _OfOptee | None = None
    unpack, head = BLOCK.unpack_from, BLOCK.size
    for _ in range(record.nblocks):
        kind, flags, _level, _index, size, length, _count, ipa, ma, pte, cookie = unpack(raw, at)
        start = at + head
        at = start + (length + 7 & ~7)
        if at > end or (length > size and (kind in _GUEST or kind in _SHADOW)):
            raise ValueError("a block lies outside it")
        if kind in BOOK_KINDS:
            own.append((kind, flags, ma, pte, cookie, raw[start : start + length]))
        elif kind in _SHADOW:
            if size == PAGE:
                shadow[ma & ~_OFFSET] = raw[start : start + length].ljust(PAGE, b"\0")
        elif kind in _GUEST:
            page = ipa & ~_OFFSET
            if flags & _UNMAPPED:
                mem[page] = _UNMAPPED_PAGE
            else:
                data = raw[start : start + length].ljust(PAGE, b"\0") if size == PAGE else None
                mem[page] = PageView(page_kind(pte), ma >> 12, data)
        elif kind == _TRANSLATIONS:
            _translations(raw[start : start + length], mem)
        elif kind == PARTITION and of_optee is None:
            of_optee = flags, pte, cookie, raw[start : start + length]
    return mem, shadow, books(own) if own else None, of_optee


def _translations(data: bytes, mem: dict[int, PageView]) -> None:
    for ipa, ma, pte in TRANSLATION.iter_unpack(data):
        page = ipa & ~_OFFSET
        if page in mem:
            continue
        if ma & _OFFSET == _NO_TRANSLATION:
            mem[page] = _UNMAPPED_PAGE
        else:
            mem[page] = PageView(page_kind(pte), ma >> 12)


def _stretch(record: Event) -> tuple[list[Access] | None, int | None]:
    """What the hypervisor read and wrote of the guest's pages since the call's last border, and how many instructions
    it took; None for what was not seen, or not all of it."""
    at = RECORD.size + record.nregs * 8
    accesses, instructions = None, None
    for _ in range(record.nblocks):
        kind, flags, _level, _index, _size, length, *_rest = BLOCK.unpack_from(record.raw, at)
        start = at + BLOCK.size
        if kind == _ACCESSES and not flags & _LIMIT:
            entries = ACCESS.iter_unpack(record.raw[start : start + length])
            accesses = [Access(ma, size, bool(store), pc) for ma, pc, size, store in entries]
        elif kind == _INSTRUCTIONS:
            (instructions,) = _NUMBER.unpack(record.raw[start : start + length])
        at = start + (length + 7 & ~7)
    return accesses, instructions

# SPDX-License-Identifier: GPL-2.0-or-later
"""Writer of synthetic traces: events of the reference as records, for tests and measurements without a board."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from framework.conformance.books import blocks_of, partition_block
from framework.trace.format import ACCESS, PAGE, TRANSLATION, BlockFlag, BlockKind, Flag, Kind
from framework.trace.writer import Writer, pack_block, pack_record
from mediator_ref import abi
from mediator_ref.events import (
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    Event,
    GuestCall,
    GuestReturn,
    PageKind,
    PageView,
)

_P2M = {PageKind.RAM_RW: 1, PageKind.RAM_RO: 2, PageKind.OTHER: 8}
_UNKNOWN_P2M = 15
_LEAF = 0x7C3  # valid page, normal memory, readable and writable
_PC, _VECTOR = 0x4008_0000, 0x4009_0000


def record_of(event: Event, seq: int) -> bytes | None:
    """One record numbered ``seq``; None for what a trace has no record of (the end, a frame released)."""
    match event:
        case GuestCall():
            flags = (Flag.HVC if event.conduit == "hvc" else 0) | (Flag.AARCH32 if event.aarch32 else 0)
            return pack_record(
                Kind.GUEST_CALL,
                seq,
                event.regs,
                _blocks(_named(event), {}) + blocks_of(event.books),
                flags=flags,
                domain=event.domid,
                vcpu=event.vcpu,
                pc=_PC,
                imm=event.imm,
            )
        case GuestReturn():
            pc = _VECTOR if event.undef else _PC
            return pack_record(
                Kind.GUEST_RETURN,
                seq,
                event.regs,
                _stretch(event) + _blocks(event.mem, {}) + blocks_of(event.books),
                domain=event.domid,
                vcpu=event.vcpu,
                pc=pc,
            )
        case El3Call() | El3Return():
            vcpu = event.vcpu if event.domid is not None else None
            kind = Kind.EL3_CALL if isinstance(event, El3Call) else Kind.EL3_RETURN
            blocks = _blocks(event.mem, event.shadow)
            if isinstance(event, El3Call):
                blocks = _stretch(event) + blocks + blocks_of(event.books)
            else:
                blocks += partition_block(event.partition)
            return pack_record(kind, seq, event.regs, blocks, domain=event.domid, vcpu=vcpu)
        case DomainCreated():
            return pack_record(Kind.DOMAIN_CREATE, seq, (0,), imm=event.domid)
        case DomainDying():
            return pack_record(Kind.DOMAIN_KILL, seq, (0,), blocks_of(event.books), imm=event.domid)
        case DomainDestroyed():
            return pack_record(Kind.DOMAIN_DESTROY, seq, (0,), blocks_of(event.books), imm=event.domid)
        case _:
            return None


def write_trace(path: Path, events: Iterable[Event], meta: Mapping[str, object] | None = None) -> int:
    """Write events as a trace file; returns the number of records. Records are numbered from 1."""
    seq = 0
    with Writer(path, meta) as writer:
        for event in events:
            record = record_of(event, seq + 1)
            if record is not None:
                writer.append(record)
                seq += 1
    return seq


def _named(call: GuestCall) -> dict[int, PageView]:
    """The pages a call shows, and those it names that its mapping only answers for when asked."""
    found = dict(call.mem)
    wanted = [abi.pair(call.regs[1], call.regs[2]) & ~(PAGE - 1)]
    for view in call.mem.values():
        if view.data is not None:
            params = abi.decode_arg(view.data).params
            wanted += [param.a & ~(PAGE - 1) for param in params if param.type in abi.TMEM_TYPES]
            wanted += [word & ~(PAGE - 1) for word in abi.LIST_PAGE.unpack(view.data) if word]
    for ipa in wanted:
        answered = call.mem.get(ipa)
        if answered is not None:
            found[ipa] = answered
    return found


def _stretch(event: El3Call | GuestReturn) -> list[bytes]:
    blocks = []
    if event.instructions is not None:
        blocks.append(pack_block(BlockKind.INSTRUCTIONS, event.instructions.to_bytes(8, "little"), count=1))
    if event.accesses is not None:
        data = b"".join(ACCESS.pack(a.ma, a.pc, a.length, a.store) for a in event.accesses)
        blocks.append(pack_block(BlockKind.ACCESSES, data, count=len(event.accesses)))
    return blocks


def _pte(view: PageView) -> int:
    kind = _UNKNOWN_P2M if view.kind is None else _P2M[view.kind]
    return (view.mfn or 0) << 12 | kind << 55 | _LEAF


def _blocks(mem: Mapping[int, PageView], shadow: Mapping[int, bytes]) -> list[bytes]:
    blocks = []
    bare = b""
    for ipa, view in mem.items():
        if view.data is not None:
            blocks.append(
                pack_block(
                    BlockKind.GUEST_ARG,
                    view.data.rstrip(b"\0"),
                    size=PAGE,
                    ipa=ipa,
                    ma=(view.mfn or 0) << 12,
                    pte=_pte(view),
                )
            )
        elif view.kind is PageKind.UNMAPPED:
            blocks.append(pack_block(BlockKind.GUEST_ARG, flags=BlockFlag.UNMAPPED, ipa=ipa))
        elif view.mfn is not None:
            bare += TRANSLATION.pack(ipa, view.mfn << 12 | 3, _pte(view))
    if bare:
        blocks.append(pack_block(BlockKind.TRANSLATIONS, bare, count=len(bare) // TRANSLATION.size))
    for ma, page in shadow.items():
        blocks.append(pack_block(BlockKind.SHADOW_ARG, page.rstrip(b"\0"), size=PAGE, ma=ma))
    return blocks

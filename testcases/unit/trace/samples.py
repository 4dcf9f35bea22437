# SPDX-License-Identifier: GPL-2.0-or-later
"""Synthetic conversations for the trace tests: what a guest, Xen and OP-TEE would say, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.trace.event import Event
from framework.trace.format import BlockKind as B
from framework.trace.format import Codec, Flag, Kind
from framework.trace.writer import Writer, pack_block, pack_record
from mediator_ref import abi

ARG_IPA = 0x4800_0000
SHADOW = 0xE000_0000
RPC_IPA = 0x4900_0000
RAM_RW = 1 << 55 | 0x7FF


class Conversation:
    """Builds records with rising sequence numbers and times, 10 us apart."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def add(self, kind: Kind, regs: Sequence[int], blocks: Sequence[bytes] = (), **fields: int) -> int:
        """One record; returns its number. Registers are filled up with zeros to 8."""
        seq = len(self.records) + 1
        values = [*regs, *[0] * (8 - len(regs))]
        self.records.append(pack_record(kind, seq, values, blocks, time_ns=seq * 10_000, **fields))
        return seq

    def exchange(
        self,
        fid: int,
        args: Sequence[int],
        answer: Sequence[int],
        *,
        domain: int = 1,
        there: Sequence[bytes] = (),
        back: Sequence[bytes] = (),
        flags: int = Flag.HVC,
    ) -> None:
        """A guest call that Xen forwards to EL3 and answers."""
        call = self.add(Kind.GUEST_CALL, [fid, *args], there, domain=domain, vcpu=0, flags=flags)
        el3 = self.add(Kind.EL3_CALL, [fid, *args], domain=domain, vcpu=0, parent=call)
        self.add(Kind.EL3_RETURN, answer, domain=domain, vcpu=0, parent=el3)
        self.add(Kind.GUEST_RETURN, answer, back, domain=domain, vcpu=0, parent=call, flags=flags)

    def standard_call(self, domain: int = 1, thread: int = 0) -> None:
        """OPEN_SESSION with a page list, a foreign interrupt, an RPC for SHM_ALLOC, and success."""
        ask = abi.message(0, abi.Param(0x209, 0x4A00_0000, 0x2000, 0xC0), abi.Param(abi.Attr.VALUE_INPUT, 7), session=0)
        done = abi.message(0, abi.Param(0x209, 0x4A00_0000, 0x2000, 0xC0), session=5)
        rpc = abi.message(abi.RpcCmd.SHM_ALLOC, abi.Param(abi.Attr.VALUE_INPUT, 0, 0x1000, 8))
        reply = abi.message(abi.RpcCmd.SHM_ALLOC, abi.Param(0x20A, 0x4B00_0000, 0x1000, 0xC1))
        names = b"".join(
            v.to_bytes(8, "little")
            for page in range(2)
            for v in (0x4C00_0000 + page * 4096, 0xEC00_0000 + page * 4096 | 3, RAM_RW)
        )
        call = [
            guest_page(B.GUEST_ARG, ARG_IPA, ask),
            pack_block(B.GUEST_LIST, b"\1" * 16, ipa=0x4A00_0000, size=4096),
            pack_block(B.TRANSLATIONS, names, count=2),
        ]
        rpc_return = abi.RPC_PREFIX
        self.exchange(
            abi.CALL_WITH_ARG,
            [0, ARG_IPA, 1],
            [rpc_return | abi.RpcFunc.FOREIGN_INTR, 0, 0, thread],
            domain=domain,
            there=call,
        )
        self.exchange(
            abi.RETURN_FROM_RPC,
            [0, 0, thread],
            [rpc_return | abi.RpcFunc.CMD, 0, 0xC2, thread],
            domain=domain,
            back=[guest_page(B.GUEST_RPC, RPC_IPA, rpc)],
        )
        self.exchange(
            abi.RETURN_FROM_RPC,
            [0, 0xC2, thread],
            [0],
            domain=domain,
            there=[guest_page(B.GUEST_RPC, RPC_IPA, reply)],
            back=[guest_page(B.GUEST_ARG, ARG_IPA, done)],
        )

    def events(self) -> Iterator[Event]:
        """The records, decoded."""
        return map(Event, self.records)


def guest_page(kind: B, ipa: int, page: bytes) -> bytes:
    """A mapped, readable guest page without its trailing zeros."""
    return pack_block(
        kind,
        page.rstrip(b"\0").ljust(-(-len(page.rstrip(b"\0")) // 8) * 8, b"\0"),
        size=4096,
        ipa=ipa,
        ma=ipa + 0xA000_0000,
        pte=RAM_RW,
    )


def sample() -> Conversation:
    """A little of everything."""
    talk = Conversation()
    talk.add(Kind.DOMAIN_CREATE, [0xFFFF_0000_1234_5678], imm=1, domain=0, vcpu=0)
    talk.exchange(abi.CALLS_UID, [], [0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B])
    talk.standard_call()
    talk.exchange(abi.CALLS_UID, [], [0x384FB3E0], domain=0, flags=0)
    talk.add(Kind.DOORBELL, [0x4D00_0000], domain=1, vcpu=0)
    talk.add(Kind.DOMAIN_KILL, [0xFFFF_0000_1234_5678], imm=1, domain=0, vcpu=0)
    talk.add(Kind.DOMAIN_DESTROY, [0xFFFF_0000_1234_5678], imm=1, domain=0, vcpu=0)
    return talk


def write(
    path: Path,
    talk: Conversation,
    *,
    codec: Codec = Codec.ZSTD,
    chunk_bytes: int = 512,
    counters: bool = True,
) -> None:
    """Store a conversation in several chunks."""
    with Writer(path, {"clock": "test"}, codec=codec, chunk_bytes=chunk_bytes, counters=counters) as writer:
        for record in talk.records:
            writer.append(record)

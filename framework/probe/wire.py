# SPDX-License-Identifier: GPL-2.0-or-later
"""Decoder of the records that come back from the probe guest.

A record is ``opcode | status << 16 | words << 32``, the word offset of the instruction it belongs to, and its
payload, in 64-bit little-endian words.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from framework.common.errors import GuestError
from framework.probe.ops import (
    CALL_REGS,
    NO_COMMAND,
    Call,
    Code,
    Drive,
    Hypercall,
    Join,
    Op,
    Read,
    Run,
    Scan,
)
from framework.probe.program import encode_ops, source_of
from mediator_ref.abi import RpcCmd, RpcFunc


class Status(IntEnum):
    """Outcome of an instruction."""

    OK = 0
    FAULT = 1
    TIMEOUT = 2
    BAD_PROGRAM = 3
    RESULTS_FULL = 4
    BUSY = 5


@dataclass(frozen=True)
class Rpc:
    """One request of OP-TEE: x0, the cookie in x1:x2, x3, and the command (``NO_COMMAND``: not known)."""

    x0: int
    cookie: int
    x3: int
    cmd: int

    @property
    def func(self) -> int:
        """OPTEE_SMC_RPC_FUNC_*."""
        return self.x0 & 0xFFFF

    def __str__(self) -> str:
        if self.func == RpcFunc.CMD and self.cmd != NO_COMMAND:
            return f"CMD {RpcCmd(self.cmd).name if self.cmd in set(RpcCmd) else self.cmd}"
        return RpcFunc(self.func).name if self.func in set(RpcFunc) else f"func {self.func}"


@dataclass(frozen=True)
class Fault:
    """An exception in the guest: where it happened and why."""

    esr: int
    elr: int
    far: int
    spsr: int
    vector: int

    @property
    def exception_class(self) -> int:
        """ESR_EL1.EC: 0 undefined instruction, 0x25 data abort, …"""
        return self.esr >> 26

    def __str__(self) -> str:
        place = f"at {self.elr:#x} (ESR {self.esr:#x}, FAR {self.far:#x})"
        return f"exception class {self.exception_class:#x} {place}"


@dataclass(frozen=True)
class Record:
    """Result of one instruction. Only the fields of its kind are set."""

    op: Op
    status: Status
    regs: tuple[int, ...] = ()
    ticks: int = 0
    data: bytes = b""
    rpcs: tuple[Rpc, ...] = ()
    rpc_count: int = 0
    fault: Fault | None = None
    inner: tuple[Record, ...] = field(default=(), repr=False)
    found: tuple[int, ...] = ()
    count: int = 0

    @property
    def ok(self) -> bool:
        """True when the instruction did what it should."""
        return self.status == Status.OK

    @property
    def x0(self) -> int:
        """The first register; raises GuestError when the instruction failed."""
        if not self.regs:
            raise GuestError(f"{self.op} ended with {self.status.name}: {self.fault}")
        return self.regs[0]

    def __str__(self) -> str:
        return f"{source_of(self.op)}: {self.status.name} {self.fault or ''}"


def decode(data: bytes, steps: Mapping[int, Op]) -> tuple[Record, ...]:
    """The records in a result buffer; ``steps`` is what :meth:`Program.encode` gave. Raises GuestError for what is no
    list of records: a guest wrote it."""
    try:
        return tuple(_records(struct.unpack(f"<{len(data) // 8}Q", data), steps))
    except (ValueError, IndexError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise GuestError(f"the probe's results are no records: {error!r}") from error


def _records(words: Sequence[int], steps: Mapping[int, Op]) -> Iterator[Record]:
    at = 0
    while at < len(words):
        head, step, length = words[at], words[at + 1], words[at] >> 32
        payload = words[at + 2 : at + 2 + length]
        if step not in steps or len(payload) != length:
            raise GuestError(f"a record for word {step} of the program does not fit it")
        op, status = steps[step], Status(head >> 16 & 0xFFFF)
        yield _record(op, status, payload, steps)
        at += 2 + length


def _record(op: Op, status: Status, payload: Sequence[int], steps: Mapping[int, Op]) -> Record:
    if status == Status.FAULT:
        return Record(op, status, fault=Fault(*payload))
    if status != Status.OK:
        return Record(op, status)
    return _PAYLOADS[type(op)](op, payload, steps)


_Payload = Callable[[Any, Sequence[int], Mapping[int, Op]], Record]


def _need(words: Sequence[int], count: int) -> None:
    """Raise ValueError for a payload shorter than its users rely on."""
    if len(words) < count:
        raise ValueError(f"a payload of {len(words)} words where {count} are due")


def _of_call(op: Call, words: Sequence[int], _: Mapping[int, Op]) -> Record:
    _need(words, CALL_REGS + 1)
    return Record(op, Status.OK, regs=tuple(words[:CALL_REGS]), ticks=words[CALL_REGS])


def _of_drive(op: Drive, words: Sequence[int], _: Mapping[int, Op]) -> Record:
    _need(words, CALL_REGS + 2)
    log = words[CALL_REGS + 2 :]
    rpcs = tuple(Rpc(*log[i : i + 4]) for i in range(0, len(log), 4))
    count, ticks = words[CALL_REGS + 1], words[CALL_REGS]
    return Record(op, Status.OK, regs=tuple(words[:CALL_REGS]), ticks=ticks, rpcs=rpcs, rpc_count=count)


def _of_read(op: Read, words: Sequence[int], _: Mapping[int, Op]) -> Record:
    _need(words, -(-op.length // 8))
    return Record(op, Status.OK, data=struct.pack(f"<{len(words)}Q", *words)[: op.length])


def _of_regs(op: Op, words: Sequence[int], _: Mapping[int, Op]) -> Record:
    _need(words, 1)
    return Record(op, Status.OK, regs=tuple(words))


def _of_scan(op: Scan, words: Sequence[int], _: Mapping[int, Op]) -> Record:
    return Record(op, Status.OK, count=words[0], found=tuple(words[1 : 1 + min(words[0], 15)]))


def _of_join(op: Join, words: Sequence[int], steps: Mapping[int, Op]) -> Record:
    here = [other.body for other in steps.values() if isinstance(other, Run) and other.vcpu == words[0]]
    started = [*([op.started] if op.started else []), *here]
    if not started:
        raise GuestError(f"vCPU {words[0]} was started by an earlier program; tell Join what it runs")
    _, own = encode_ops(started[-1], 0)
    return Record(op, Status.OK, inner=tuple(_records(words[1:], own)))


_PAYLOADS: Mapping[type[Op], _Payload] = {
    Call: _of_call,
    Drive: _of_drive,
    Read: _of_read,
    Hypercall: _of_regs,
    Code: _of_regs,
    Scan: _of_scan,
    Join: _of_join,
}

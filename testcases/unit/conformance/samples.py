# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces for the conformance tests: the reference's model as a board, its events as records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from framework.conformance.checker import Checker
from framework.conformance.result import ConformanceResult
from framework.conformance.synthesize import record_of, write_trace
from framework.trace.event import Event as Record
from mediator_ref import Deviation, Limits, abi
from mediator_ref.events import DomainCreated, DomainDestroyed, El3Call, Event
from mediator_ref.examples.calls import INVOKE
from mediator_ref.simulator.board import Board
from mediator_ref.simulator.optee import INTR, ask


def as_traced(events: Iterable[Event]) -> list[Event]:
    """As the trace plugin sees it: Xen begins to create a domain, then OP-TEE is told."""
    found: list[Event] = []
    for event in events:
        told = found[-2:-1]
        if isinstance(event, DomainCreated) and told and isinstance(told[0], El3Call):
            found.insert(-2, event)
        else:
            found.append(event)
    return found


def records_of(events: Iterable[Event]) -> list[Record]:
    """The records a trace has of these events, numbered from 1."""
    found: list[Record] = []
    for event in as_traced(events):
        record = record_of(event, len(found) + 1)
        if record is not None:
            found.append(Record(record))
    return found


def check_records(records: Iterable[Record], **options: object) -> ConformanceResult:
    """Feed records and end the trace."""
    checker = Checker(**options)  # type: ignore[arg-type]
    for record in records:
        checker.feed(record)
    checker.finish()
    return checker.result()


def check_events(
    events: Iterable[Event],
    limits: Limits | None = None,
    deviations: Mapping[str, Deviation] | None = None,
    *,
    alive: bool | None = None,
) -> ConformanceResult:
    """Events as records; what a trace has no record of (measurements from outside) is told instead."""
    checker = Checker(limits=limits, deviations=deviations)
    number = 0
    for event in events:
        record = None if isinstance(event, DomainCreated | DomainDestroyed) else record_of(event, number + 1)
        if record is not None:
            number += 1
            checker.feed(Record(record))
        elif number:
            checker.tell(event)
    checker.finish(alive)
    return checker.result()


def failed_rules(result: ConformanceResult) -> set[str]:
    """Rules that failed."""
    return {rule.id for rule in result.rules if rule.failed}


def busy_board() -> Board:
    """dom0 and two guests of two vCPUs each; calls of all four cross each other, with RPCs and a buffer."""
    board = Board()
    for domid in (0, 1, 2):
        board.create(domid)
    suspended: dict[tuple[int, int], tuple[int, ...]] = {}
    for domid in (1, 2):
        for vcpu in (0, 1):
            ipa = 0x4000_0000 + vcpu * 4096
            param = board.buffer(domid, 2, cookie=0xB0 + vcpu, ipa=0x4002_0000 + vcpu * 4096)
            board.world.write(domid, ipa, abi.message(abi.MsgCmd.INVOKE_COMMAND, param, func=vcpu))
            board.optee.plan = [INTR, ask(abi.RpcCmd.GET_TIME), INTR]
            board.trap(domid, vcpu, (abi.CALL_WITH_ARG, *abi.split(ipa)))
    pairs = [(1, 0), (2, 0), (1, 1), (2, 1)]
    while pairs:
        domid, vcpu = pair = pairs.pop(0)
        while pair in board.inflight:
            board.leave(domid, vcpu)
        regs = tuple(board.events[-1].regs)  # type: ignore[union-attr]
        suspended[pair] = regs
        if not abi.is_rpc(regs[0]):
            continue
        offer = regs[0] & 0xFFFF == abi.RpcFunc.ALLOC
        x4, x5 = abi.split(0xC0 + vcpu) if offer else (0, 0)
        x1, x2 = abi.split(0x4001_0000 + vcpu * 4096) if offer else regs[1:3]
        if regs[0] & 0xFFFF == abi.RpcFunc.CMD:
            board.reply(domid, abi.Param(abi.Attr.VALUE_OUTPUT, 5, 6), ipa=0x4001_0000 + vcpu * 4096)
        board.trap(domid, vcpu, (abi.RETURN_FROM_RPC, x1, x2, regs[3], x4, x5))
        pairs.append(pair)
    return board


def simple_trace(path: Path) -> int:
    """A file with one guest's call; returns the number of records without the closing one."""
    board = Board()
    board.create(0)
    board.create(1)
    board.message(1, INVOKE)
    return write_trace(path, as_traced(board.events))

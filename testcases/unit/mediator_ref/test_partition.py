# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE's list of shared memory against the mediator's: what OP-TEE keeps beyond its due is known to the frame."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mediator_ref import Outcome, State, Verdict, abi, step
from mediator_ref.books import Partition, SharedMemory
from mediator_ref.events import El3Call, El3Return, End, Event, GuestReturn, Start
from mediator_ref.examples.mutate import board
from mediator_ref.simulator.board import Board
from mediator_ref.simulator.optee import FREE_ARG, INTR, alloc

INVOKE, REGISTER = abi.MsgCmd.INVOKE_COMMAND, abi.MsgCmd.REGISTER_SHM
FOREIGN = 0x7FFFF
"""A frame that is no guest's."""


def found(events: list[Event]) -> list[Verdict]:
    """Verdicts of BOOK-6 that are no pass."""
    state = State()
    events = [*events, End(events[-1].seq + 1, True)]
    return [verdict for event in events for verdict in step(state, event) if verdict.rule == "BOOK-6"]


def fails(events: list[Event]) -> list[int]:
    return [verdict.seq for verdict in found(events) if verdict.outcome is Outcome.FAIL]


def with_partition(events: list[Event], at: int, **changes: object) -> list[Event]:
    """What OP-TEE's list is at the answer with this index, changed."""
    event = events[at]
    assert isinstance(event, El3Return) and event.partition is not None
    changed = replace(event, partition=replace(event.partition, **changes))  # type: ignore[arg-type]
    return [*events[:at], changed, *events[at + 1 :]]


def last(events: list[Event], kind: type[Event]) -> int:
    return max(n for n, event in enumerate(events) if isinstance(event, kind))


def shared(event: Event) -> tuple[SharedMemory, ...]:
    assert isinstance(event, El3Return) and event.partition is not None and event.partition.shared is not None
    return event.partition.shared


def registered(made: Board) -> Board:
    made.message(1, abi.message(REGISTER, made.buffer(1, 2)))
    return made


def test_what_optee_keeps_of_an_ended_call_is_o2_to_the_frame() -> None:
    made = board()
    made.optee.keeps = True
    for cookie in (0xB0, 0xB1):
        made.message(1, abi.message(INVOKE, made.buffer(1, 1, cookie=cookie)))
    assert not found(made.events)
    at = last(made.events, El3Return)
    other = (SharedMemory(0xB0, (FOREIGN,)), *shared(made.events[at])[1:])
    assert fails(with_partition(made.events, at, shared=other)) == [made.events[at].seq]


def test_a_page_asked_to_be_freed_is_let_go_of_when_optee_is_resumed() -> None:
    """Also when an interrupt comes first; but not once it has gone past the request."""
    made = board()
    regs = made.serve_alloc(1, made.message(1, abi.message(INVOKE), plan=[alloc(), FREE_ARG, INTR]))
    made.reply(1, made.buffer(1, 1, attr=abi.Attr.TMEM_OUTPUT))
    regs = made.resume(1, regs)
    assert regs[0] == abi.RPC_PREFIX | abi.RpcFunc.FREE
    freed = last(made.events, El3Return)
    (page,) = [memory for memory in shared(made.events[freed]) if memory.cookie not in (0, 0xB0)]
    regs = made.resume(1, regs)
    interrupted = last(made.events, El3Return)
    made.resume(1, regs)
    ended = last(made.events, El3Return)
    assert not found(made.events)
    kept = with_partition(made.events, interrupted, shared=(*shared(made.events[interrupted]), page))
    assert not found(kept)
    assert fails(with_partition(kept, ended, shared=(page,))) == [made.events[ended].seq]


def test_what_is_let_go_while_optee_works_is_found_though_it_is_back_for_the_guest() -> None:
    made = board()
    made.message(1, abi.message(INVOKE, made.buffer(1, 1)), plan=[INTR])
    at = last(made.events, El3Call)
    event = made.events[at]
    assert isinstance(event, El3Call) and event.books is not None and event.books.lists is not None
    emptied = tuple(replace(buffer, frames=()) for buffer in event.books.lists.buffers)
    lists = replace(event.books.lists, buffers=emptied, buffer_pages=0)
    events = [*made.events[:at], replace(event, books=replace(event.books, lists=lists)), *made.events[at + 1 :]]
    assert fails(events) == [made.events[at + 1].seq]


def test_a_difference_is_said_once_and_again_when_it_comes_back() -> None:
    made = registered(board())
    for _ in range(3):
        made.call(1, 0, (abi.CALLS_UID,))
    answers = [n for n, event in enumerate(made.events) if isinstance(event, El3Return) and event.domid == 1]
    foreign = SharedMemory(0xB7, (FOREIGN,))
    events = made.events
    for at in (answers[0], answers[1], answers[3]):
        events = with_partition(events, at, shared=(*shared(events[at]), foreign))
    assert fails(events) == [made.events[answers[0]].seq, made.events[answers[3]].seq]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"busy": True}, "another vCPU of the domain was in the mediator or in OP-TEE"),
        ({"shared": None}, "OP-TEE's list could not be read"),
    ],
)
def test_what_cannot_be_relied_on_is_not_checked(changes: dict[str, object], reason: str) -> None:
    made = registered(board())
    at = last(made.events, El3Return)
    foreign = {"shared": (SharedMemory(0xB7, (FOREIGN,)),)} | changes
    assert [(v.outcome, v.reason) for v in found(with_partition(made.events, at, **foreign))] == [
        (Outcome.NOT_CHECKED, reason)
    ]


def test_without_the_sense_it_is_not_checked_and_another_partition_is_not_the_domains() -> None:
    made = registered(board())
    at = last(made.events, El3Return)
    event = made.events[at]
    assert isinstance(event, El3Return)
    for partition in (None, Partition(3, (SharedMemory(0xB7, (FOREIGN,)),))):
        events = [*made.events[:at], replace(event, partition=partition), *made.events[at + 1 :]]
        (verdict,) = found(events)
        assert verdict.reason == "OP-TEE's list of shared memory was not recorded"


def test_what_optee_had_before_the_trace_is_taken_for_kept() -> None:
    made = board()
    made.optee.keeps = True
    made.message(1, abi.message(INVOKE, made.buffer(1, 3)))
    begin = len(made.events)
    registered(made).call(1, 0, (abi.CALLS_UID,))
    events = [Start(made.events[begin].seq - 1, mid_stream=True), *made.events[begin:]]
    assert {verdict.outcome for verdict in found(events)} == {Outcome.NOT_CHECKED}
    at = last(events, El3Return)
    assert fails(with_partition(events, at, shared=(*shared(events[at]), SharedMemory(9, (FOREIGN,))))) != []


def test_a_domain_that_optee_was_never_called_for_shares_nothing() -> None:
    made = board()
    made.call(1, 0, (abi.FID["GET_SHM_CONFIG"],))
    assert isinstance(made.events[-1], GuestReturn) and not found(made.events)

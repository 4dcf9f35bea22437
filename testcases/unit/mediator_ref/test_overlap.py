# SPDX-License-Identifier: GPL-2.0-or-later
"""Two vCPUs in the mediator at once: what one of them did is no fault of the other's answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mediator_ref import Limits, Outcome, State, Verdict, abi, step
from mediator_ref.events import El3Call, El3Return, Event, GuestCall, GuestReturn
from mediator_ref.simulator.board import ARG, Board
from mediator_ref.simulator.optee import INTR


def verdicts(events: list[Event], limits: Limits | None = None) -> list[Verdict]:
    """Judge the events in this order; what fails."""
    state = State(limits=limits or Limits())
    found = [verdict for number, event in enumerate(events, 1) for verdict in step(state, replace(event, seq=number))]
    return [verdict for verdict in found if verdict.outcome is Outcome.FAIL]


def two_resume(*, both_refused: bool) -> list[Event]:
    """vCPU 1 and then vCPU 0 resume one suspended call; vCPU 1 is through with it when vCPU 0 is refused."""
    board = Board(threads=2)
    board.create(1)
    board.message(1, abi.message(abi.MsgCmd.OPEN_SESSION), plan=[INTR, INTR])
    resume = (abi.RETURN_FROM_RPC, *board.events[-1].regs[1:8])  # type: ignore[attr-defined]
    begin = len(board.events)
    board.trap(1, 1, resume)
    middle = len(board.events)
    board.trap(1, 0, resume)
    refused = board.events[middle:]
    end = len(board.events)
    while (1, 1) in board.inflight:
        board.leave(1, 1)
    first, rest = board.events[begin:middle], board.events[end:]
    asked, answer = refused
    assert answer.regs[0] == abi.SmcReturn.ERESUME  # type: ignore[attr-defined]
    if both_refused:
        return [*board.events[:begin], asked, answer]
    return [*board.events[:begin], first[0], asked, *first[1:], *rest, answer]


def test_a_call_that_another_vcpu_resumed_meanwhile_is_rightly_refused() -> None:
    assert not verdicts(two_resume(both_refused=False))


def test_a_call_that_no_vcpu_resumed_is_not() -> None:
    assert "RPC-6" in {verdict.rule for verdict in verdicts(two_resume(both_refused=True))}


def test_a_call_may_be_resumed_and_end_before_the_guest_hears_that_it_was_suspended() -> None:
    board = Board(threads=2)
    board.create(1)
    board.message(1, abi.message(abi.MsgCmd.OPEN_SESSION), plan=[INTR])
    heard = board.events.pop()
    assert isinstance(heard, GuestReturn)
    resume = (abi.RETURN_FROM_RPC, *heard.regs[1:8])
    board.call(1, 1, resume)
    board.events.append(heard)
    board.call(1, 0, resume)
    answer = board.events[-1]
    assert isinstance(answer, GuestReturn) and answer.regs[0] == abi.SmcReturn.ERESUME
    assert not verdicts(board.events)
    again = [event for event in board.events if isinstance(event, El3Call | El3Return) and event.vcpu == 1]
    forwarded = [*board.events[:-1], *(replace(event, vcpu=0) for event in again), answer]
    assert "RPC-5" in {verdict.rule for verdict in verdicts(forwarded)}, "it ends once"


def test_a_call_that_is_not_suspended_yet_is_rightly_not_resumed() -> None:
    board = Board(threads=2)
    board.create(1)
    board.message(1, abi.message(abi.MsgCmd.OPEN_SESSION), plan=[INTR])
    heard = board.events[-1]
    assert isinstance(heard, GuestReturn)
    resume = (abi.RETURN_FROM_RPC, *heard.regs[1:8])
    asked = GuestCall(0, 1, 1, (*resume, *range(0x108, 0x112)), {})
    refused = replace(heard, vcpu=1, regs=(abi.SmcReturn.ERESUME, *asked.regs[1:]))
    before, told = board.events[:-1], board.events[-1]
    assert not verdicts([*before, asked, told, refused])
    assert "RPC-6" in {verdict.rule for verdict in verdicts([*before, told, asked, refused])}


@pytest.mark.parametrize(("threads", "broken"), [(1, True), (2, False)])
def test_two_calls_that_pass_the_limit_of_threads_together_break_it(threads: int, broken: bool) -> None:
    board = Board(threads=2)
    board.create(1)
    board.world.write(1, ARG, abi.message(abi.MsgCmd.OPEN_SESSION))
    board.world.write(1, ARG + 4096, abi.message(abi.MsgCmd.OPEN_SESSION))
    board.trap(1, 0, (abi.CALL_WITH_ARG, *abi.split(ARG)))
    board.trap(1, 1, (abi.CALL_WITH_ARG, *abi.split(ARG + 4096)))
    # Both were counted before either was through.
    first, forwarded, second, *rest = board.events[-4:]
    events = [*board.events[:-4], first, second, forwarded, *rest]
    assert ("STD-1" in {verdict.rule for verdict in verdicts(events, Limits(threads=threads))}) is broken

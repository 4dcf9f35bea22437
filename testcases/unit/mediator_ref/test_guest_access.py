# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call may read and write of the guest's memory, where the examples of FETCH-1 and FETCH-2 are too simple."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mediator_ref import Outcome, State, Verdict, abi, step
from mediator_ref.events import PAGE_SIZE, Access, El3Call, End, Event, GuestReturn
from mediator_ref.simulator.board import ARG, DATA, LIST, RPC, Board
from mediator_ref.simulator.optee import ask

RULES = {"FETCH-1", "FETCH-2"}


def booted() -> Board:
    board = Board()
    board.create(0)
    board.create(1)
    return board


def page_of(board: Board, ipa: int) -> int:
    frame, _ = board.world.lookup(1, ipa)
    assert frame is not None
    return frame * PAGE_SIZE


def judged(events: Sequence[Event]) -> tuple[State, list[Verdict]]:
    state = State()
    found = [verdict for event in events for verdict in step(state, event)]
    return state, [verdict for verdict in found if verdict.rule in RULES]


def with_more(board: Board, kind: type[El3Call] | type[GuestReturn], *more: Access) -> list[Event]:
    """The trace, its last event of a kind with further accesses."""
    at = max(i for i, event in enumerate(board.events) if type(event) is kind)
    event = board.events[at]
    assert isinstance(event, El3Call | GuestReturn)
    return [*board.events[:at], replace(event, accesses=(*(event.accesses or ()), *more)), *board.events[at + 1 :]]


def fields(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    return [(v.rule, d.field) for v in verdicts for d in v.differences]


def test_a_list_is_read_as_far_as_the_buffer_goes() -> None:
    board = booted()
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 3)))
    assert not judged(board.events)[1]
    start = page_of(board, LIST)
    _, found = judged(with_more(board, El3Call, Access(start + 24, 8, False)))
    assert fields(found) == [("FETCH-2", "page list [0x18:0x20]")]
    assert found[0].differences[0].expected == "loads of [0x0:0x18] only"


def test_the_guests_data_is_none_of_the_mediators_business() -> None:
    board = booted()
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 1)))
    _, found = judged(with_more(board, El3Call, Access(page_of(board, DATA) + 0x100, 8, False)))
    assert fields(found) == [("FETCH-2", "page of a buffer [0x100:0x108]")]


def test_what_the_guest_names_twice_may_be_read_twice() -> None:
    """A message that is its own page list: not the mediator's fault, and no proof of its innocence."""
    board = booted()
    param = abi.Param(abi.Attr.TMEM_INPUT | abi.ATTR_NONCONTIG, ARG, 8, 0xB0)
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, param))
    state, found = judged(board.events)
    assert [v.outcome for v in found] == [Outcome.NOT_CHECKED]
    assert state.tally.not_checked["FETCH-1", "the guest names one page as two things"]  # type: ignore[index]


def replied() -> Board:
    board = booted()
    message = abi.message(abi.MsgCmd.INVOKE_COMMAND)
    regs = board.serve_alloc(1, board.message(1, message, plan=[ask(abi.RpcCmd.GET_TIME)]))
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.resume(1, regs)
    return board


@pytest.mark.parametrize(
    ("start", "length", "what"),
    [(64, 8, ("FETCH-2", "RPC page [0x40:0x48]")), (40, 8, ("FETCH-1", "RPC page [0x28:0x30]"))],
    ids=["beyond", "again"],
)
def test_a_reply_is_read_once_and_to_its_end(start: int, length: int, what: tuple[str, str]) -> None:
    board = replied()
    assert not judged(board.events)[1]
    _, found = judged(with_more(board, El3Call, Access(page_of(board, RPC) + start, length, False)))
    assert fields(found) == [what] and found[0].outcome is Outcome.FAIL, "not D18, which is about the header"


def test_the_message_is_not_read_again_when_results_go_back() -> None:
    board = replied()
    _, found = judged(with_more(board, GuestReturn, Access(page_of(board, ARG) + 28, 4, False)))
    assert fields(found) == [("FETCH-1", "argument page [0x1c:0x20]")]


def test_without_the_senses_the_rules_are_not_checked() -> None:
    board = booted()
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND))
    blind = [
        replace(event, accesses=None, instructions=None) if isinstance(event, El3Call | GuestReturn) else event
        for event in board.events
    ]
    state, _ = judged([*blind, End(1000, True)])
    for rule in ("FETCH-1", "FETCH-2", "TIME-1"):
        assert state.tally.outcome(rule) is Outcome.NOT_CHECKED
        assert any(name == rule for name, _ in state.tally.not_checked)


def test_a_guest_that_writes_meanwhile_is_no_reason_to_blame_the_mediator() -> None:
    board = booted()
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 1)))
    events = with_more(board, El3Call, Access(page_of(board, LIST) + 8, 8, False))
    at = max(i for i, event in enumerate(events) if type(event) is El3Call)
    event = events[at]
    assert isinstance(event, El3Call)
    view = event.mem[ARG]
    assert view.data is not None
    larger = view.data[:48] + (2 * PAGE_SIZE).to_bytes(8, "little") + view.data[56:]
    events[at] = replace(event, mem={ARG: replace(view, data=larger)})
    _, found = judged(events)
    assert [(v.rule, v.outcome) for v in found] == [("FETCH-2", Outcome.NOT_CHECKED)]

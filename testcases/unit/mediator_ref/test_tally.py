# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reference keeps and what it leaves alone: a bounded tally, and events as they were."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mediator_ref import State, abi, step
from mediator_ref.events import El3Call, El3Return, Event, Gap, GuestCall, GuestReturn
from mediator_ref.simulator.board import ARG, Board
from mediator_ref.simulator.optee import INTR, alloc, ask

NUMBER = re.compile(r"0x|#|\d\d|\b\d\b")


def doings(rounds: int, rng: random.Random) -> Iterator[Event]:
    """Calls with buffers and RPCs, of which a part was not observed."""
    board = Board()
    board.create(0)
    board.create(1)
    done = 0
    for number in range(rounds):
        parameter = board.buffer(1, 1 + number % 4, cookie=0xB0 + number)
        refused = [abi.Param(abi.Attr.TMEM_INPUT, ARG, 8)] if rng.random() < 0.2 else []
        page = abi.message(abi.MsgCmd.INVOKE_COMMAND, parameter, *refused)
        regs = board.message(1, page, ipa=ARG + 4096 * (number % 4), plan=[alloc(), INTR, ask(abi.RpcCmd.GET_TIME)])
        while abi.is_rpc(regs[0]):
            if regs[0] & 0xFFFF == abi.RpcFunc.ALLOC:
                regs = board.serve_alloc(1, regs, cookie=0xC0 + number)
                continue
            if regs[0] & 0xFFFF == abi.RpcFunc.CMD:
                board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
            regs = board.resume(1, regs)
        for event in board.events[done:]:
            yield from _seen(event, rng)
        done = len(board.events)
        if rng.random() < 0.2:
            yield Gap(board.seq, f"records {number} to {number + 7} are missing")


def _seen(event: Event, rng: random.Random) -> Iterator[Event]:
    if rng.random() < 0.02:
        return
    if isinstance(event, El3Call | El3Return) and rng.random() < 0.3:
        event = replace(event, shadow={ma: page for ma, page in event.shadow.items() if rng.random() < 0.5})
    if isinstance(event, GuestCall | GuestReturn | El3Return) and rng.random() < 0.3:
        event = replace(event, mem={ipa: view for ipa, view in event.mem.items() if rng.random() < 0.7})
    yield event


@pytest.mark.parametrize("seed", range(5))
def test_reasons_have_no_numbers_so_the_tally_is_bounded(seed: int) -> None:
    state = State()
    for event in doings(150, random.Random(seed)):
        step(state, event)
    reasons = {reason for _, reason in state.tally.not_checked}
    assert len(reasons) > 5, "too little was left out for the test to say anything"
    assert not [reason for reason in reasons if NUMBER.search(reason.replace("x0", ""))]
    assert sum(state.tally.not_checked.values()) > 2 * len(state.tally.not_checked)


def test_the_reference_changes_no_event() -> None:
    """Events are not frozen, for speed; code that stores them (a history, a replay) relies on this."""
    events = list(doings(20, random.Random(0)))
    before = copy.deepcopy(events)
    state = State()
    for event in events:
        step(state, event)
    assert events == before

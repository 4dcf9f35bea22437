# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for what the hypervisor does between two borders: its accesses of guest memory, its instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mediator_ref.events import PAGE_SIZE, Access, El3Call, Event, GuestReturn
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import Example, board, index_of
from mediator_ref.simulator.board import ARG, Board
from mediator_ref.spec.effort import LONG


def _called() -> tuple[Board, int]:
    """A guest's call from its page of arguments to its end; the machine address of that page."""
    made = board()
    made.message(1, INVOKE)
    frame, _ = made.world.lookup(1, ARG)
    assert frame is not None
    return made, frame * PAGE_SIZE


def _with_stretch(
    events: Sequence[Event],
    kind: type[El3Call] | type[GuestReturn],
    accesses: Sequence[Access],
    instructions: int = 700,
) -> list[Event]:
    """The last event of a kind shows what the hypervisor did before it."""
    at = index_of(list(events), kind)
    event = events[at]
    assert isinstance(event, El3Call | GuestReturn)
    return [*events[:at], replace(event, accesses=tuple(accesses), instructions=instructions), *events[at + 1 :]]


def _good(made: Board, page: int) -> list[Event]:
    """The argument is copied once, and its result written back."""
    events = _with_stretch(made.events, El3Call, [Access(page, PAGE_SIZE, False)])
    return _with_stretch(events, GuestReturn, [Access(page + 20, 8, True)])


def fetch_1() -> Example:
    """The command is read again, once the page was copied and checked."""
    made, page = _called()
    good = _good(made, page)
    bad = _with_stretch(good, El3Call, [Access(page, PAGE_SIZE, False), Access(page, 4, False, 0x2669E0)])
    return Example("FETCH-1", tuple(good), tuple(bad))


def fetch_2() -> Example:
    """A result is written where the message has none."""
    made, page = _called()
    good = _good(made, page)
    bad = _with_stretch(good, GuestReturn, [Access(page + 20, 8, True), Access(page + 0x800, 4, True, 0x2669E0)])
    return Example("FETCH-2", tuple(good), tuple(bad))


def time_1() -> Example:
    """The hypervisor is busy with a small message for a million instructions."""
    made, page = _called()
    good = _good(made, page)
    bad = _with_stretch(good, El3Call, [Access(page, PAGE_SIZE, False)], LONG + 1_000_000)
    return Example("TIME-1", tuple(good), tuple(bad))


EXAMPLES = (fetch_1, fetch_2, time_1)

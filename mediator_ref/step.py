# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference, one event at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mediator_ref.compare import entry, lifecycle
from mediator_ref.events import (
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    End,
    Event,
    FrameReleased,
    Gap,
    GuestCall,
    GuestReturn,
    Start,
)
from mediator_ref.state import State
from mediator_ref.verdict import Verdict

_HANDLERS: Mapping[type[Event], Callable[[State, Any], None]] = {
    GuestCall: entry.guest_call,
    El3Call: entry.el3_call,
    El3Return: entry.el3_return,
    GuestReturn: entry.guest_return,
    DomainCreated: lifecycle.domain_created,
    DomainDying: lifecycle.domain_dying,
    DomainDestroyed: lifecycle.domain_destroyed,
    FrameReleased: lifecycle.frame_released,
    Start: lifecycle.start,
    Gap: lifecycle.gap,
    End: lifecycle.end,
}


def step(state: State, event: Event) -> Sequence[Verdict]:
    """Take one event: change ``state``, and return every verdict that is not a pass.

    Passes are counted in ``state.tally``; checks that could not be made are handed out once per rule and reason and
    counted. Never raises on what a guest or OP-TEE put into registers and pages.
    """
    state.tally.events += 1
    _HANDLERS[type(event)](state, event)
    if not state.out:
        return ()
    verdicts, state.out = state.out, []
    return verdicts

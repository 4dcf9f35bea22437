# SPDX-License-Identifier: GPL-2.0-or-later
"""TIME-1: the hypervisor's instructions between two borders of a call, held to a bound."""

from __future__ import annotations

from mediator_ref.events import El3Call, GuestReturn
from mediator_ref.knowledge import Pending, Phase
from mediator_ref.rules import RuleId
from mediator_ref.spec.effort import for_answer, for_call
from mediator_ref.state import State
from mediator_ref.verdict import Difference


def check_instructions(state: State, pending: Pending, event: El3Call | GuestReturn) -> None:
    """Check the stretch that ends with ``event``, before the event changes what is known."""
    if pending.function is None:
        return
    if event.instructions is None:
        state.time_missing = True
        return
    if pending.phase is Phase.ANSWER:
        effort = for_answer(pending.function, pending.domain)
    else:
        call = pending.domain.calls.get(pending.thread)
        effort = for_call(pending.function, call, len(pending.event.mem))
    largest = state.tally.instructions
    largest[effort.what] = max(largest.get(effort.what, 0), event.instructions)
    if event.instructions <= effort.most:
        state.ok(RuleId.TIME_1)
        return
    if pending.domain.activity != pending.activity or not state.one_in_hypervisor:
        # Spinning counts: how long a lock is held elsewhere is the host's matter. Hidden is a call that is slow only
        # beside others; alone it is seen.
        state.unchecked(RuleId.TIME_1, "another vCPU was in the hypervisor, which may have held a lock", event)
        return
    took = Difference("instructions", f"at most {effort.most:,}", f"{event.instructions:,}")
    state.fail(RuleId.TIME_1, event, f"the hypervisor is busy for too long: {effort.what}", took, pending=pending)

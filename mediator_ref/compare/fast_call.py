# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast calls that reach OP-TEE (optee_handle_call, handle_exchange_capabilities)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.compare.checks import check_client_id, check_el3_regs
from mediator_ref.events import El3Call, El3Return
from mediator_ref.knowledge import Pending
from mediator_ref.rules import RuleId
from mediator_ref.spec.fast_call import (
    forward_fast_call_return,
    handle_disable_shm_cache_return,
    handle_exchange_capabilities_return,
)
from mediator_ref.spec.outcome import Expected, Forward
from mediator_ref.state import State
from mediator_ref.verdict import Difference


def fast_call_forwarded(state: State, pending: Pending, event: El3Call, expected: Expected) -> None:
    """A forwarded or filtered call reaches EL3."""
    assert isinstance(expected, Forward)
    assert pending.function is not None
    check_client_id(state, pending, event)
    regs = expected.regs
    if pending.function.handling is abi.Handling.FILTER:
        if event.regs[1] == regs[1]:
            state.ok(RuleId.CAPS_1)
        else:
            state.fail(
                RuleId.CAPS_1,
                event,
                "capabilities of the guest at EL3",
                Difference("x1", f"{regs[1]:#x}", f"{event.regs[1]:#x}"),
                pending=pending,
            )
        regs = (regs[0], event.regs[1], *regs[2:])
    check_el3_regs(state, pending, event, RuleId.FAST_1, regs)


def fast_call_returned(state: State, pending: Pending, event: El3Return) -> None:
    """OP-TEE answered a fast call."""
    function = pending.function
    assert function is not None
    if function.handling is abi.Handling.FILTER:
        pending.answer = handle_exchange_capabilities_return(event.regs)
        return
    pending.answer = forward_fast_call_return(function, event.regs)
    if function.fid == abi.DISABLE_SHM_CACHE:
        cookie = handle_disable_shm_cache_return(event.regs)
        rpc = pending.domain.rpcs.pop(cookie, None) if cookie is not None else None
        if rpc is not None:
            pending.domain.returned_cookies.add(rpc.cookie)
            state.drop_shadow(rpc.ma)

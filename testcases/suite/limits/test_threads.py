# SPDX-License-Identifier: GPL-2.0-or-later
"""How many standard calls a domain may have at once."""

from __future__ import annotations

import pytest

from framework.probe.message import INVOKE_TESTS, NO_TA, TEE_ITEM_NOT_FOUND, OpenSession
from medcheck import Probe
from mediator_ref.abi import RpcFunc, SmcReturn

from ..lib.domains import MOST_CALLS


@pytest.mark.mc_core
@pytest.mark.mc_rule("R4", "STD-1")
def test_r4_calls_at_once(probe: Probe) -> None:
    """Calls wait in OP-TEE until it has no thread left: ETHREAD_LIMIT; all of them still complete afterwards."""
    waiting = []
    for _ in range(MOST_CALLS):
        call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        if call.done:
            break
        waiting.append(call)
    assert call.x0 == SmcReturn.ETHREAD_LIMIT
    assert call.page == call.sent
    assert len(waiting) >= 2
    assert len({other.thread for other in waiting}) == len(waiting)
    # The first holds what the others wait for.
    for other in waiting:
        other.finish()
        assert (other.x0, other.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R5", "STD-1")
def test_r5_one_domains_load_is_not_anothers(probe_pair: tuple[Probe, Probe]) -> None:
    """A domain that uses all it may does not keep another from working."""
    greedy, other = probe_pair
    waiting = []
    for _ in range(MOST_CALLS):
        call = greedy.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        if call.done:
            break
        waiting.append(call)
    for _ in range(3):
        call = other.call_with_arg(OpenSession(INVOKE_TESTS))
        assert (call.x0, call.arg.ret) == (0, 0)
    for call in waiting:
        call.finish()

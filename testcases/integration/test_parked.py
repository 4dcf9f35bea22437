# SPDX-License-Identifier: GPL-2.0-or-later
"""A board saved while a guest's call waits in OP-TEE: each clone goes on with that call as it likes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from framework.conformance.checker import check_file
from framework.conformance.result import ConformanceResult, RuleResult
from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    Invoke,
    OpenSession,
    value,
)
from framework.probe.parked import Parked
from framework.target.checkpoints import PARKED, inputs_of, take_over_parked
from framework.target.target import Target
from mediator_ref.abi import RETURN_FROM_RPC, RpcCmd, RpcFunc, SmcReturn

pytestmark = [pytest.mark.mc_checkpoint("parked"), pytest.mark.mc_traced]

IN_THE_MIDDLE = "started in the middle"


@pytest.fixture
def parked(target: Target, judge: Callable[[Target], None]) -> Parked:
    """The waiting call of the test's own clone, whose trace is judged when it is gone."""
    judge(target)
    return take_over_parked(target)


def works(parked: Parked) -> None:
    """The session from before the call, and a new one, answer."""
    for session in (parked.session, parked.probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session):
        call = parked.probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [value(40, 2)]))
        assert (call.x0, call.arg.ret, call.arg.params[0].a) == (0, 0, 42)


def of(result: ConformanceResult, rule: str) -> RuleResult:
    """What was found about one rule."""
    return next(item for item in result.rules if item.id == rule)


def test_the_call_is_completed_in_a_clone(target: Target, parked: Parked) -> None:
    """By hand to OP-TEE's next request, then by the probe; its thread is free then, and sessions work."""
    call, probe = parked.call, parked.probe
    assert (call.rpc.func, call.request().cmd) == (RpcFunc.CMD, RpcCmd.SHM_ALLOC)
    thread, before = call.thread, len(call.rpcs)
    call.give_memory(park=[RpcFunc.CMD])
    assert call.request().cmd != RpcCmd.SHM_ALLOC
    works(parked)  # in another of OP-TEE's threads, while this one waits
    call.finish()
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND), call.asked()
    # OP-TEE's cache of one buffer keeps some memory, so that not everything is given back.
    assert "CMD LOAD_TA" in call.asked()[before:], call.asked()
    assert probe.smc(RETURN_FROM_RPC, 0, 0, thread)[0] == SmcReturn.ERESUME
    works(parked)
    target.close()
    # The reference was not there when the call began: it says so, and knows the calls that came later.
    assert target.trace is not None
    result = check_file(target.trace)
    assert not result.failed
    for rule in ("RPC-3", "RPC-4", "RPC-5"):
        assert any(IN_THE_MIDDLE in reason for reason in of(result, rule).not_checked_reasons), of(result, rule)
    assert (of(result, "STD-9").passed, of(result, "STD-9").not_checked) == (6, 1)


def test_clones_go_different_ways(target_provider, target, parked, make_probe, judge, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """One finishes the call; in the other the domain is destroyed while it waits, and a new one takes its place."""
    with target_provider.clone(tmp_path / "other", PARKED, trace=True) as other:
        judge(other)
        theirs = take_over_parked(other)
        target.dom0.xl.destroy(parked.probe.domid)
        assert target.dom0.xl.find(parked.probe.domid) is None
        assert other.dom0.xl.find(theirs.probe.domid) is not None
        theirs.call.finish()
        assert (theirs.call.x0, theirs.call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
        works(theirs)
    heir = make_probe("heir", slot=0)
    call = heir.call_with_arg(OpenSession(NO_TA))
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)


def test_another_probe_is_another_snapshot(stack, spec) -> None:  # type: ignore[no-untyped-def]
    """The image in the guest and its client on the host are part of the snapshot's key."""
    used = inputs_of(spec, stack, PARKED)["used"]
    assert {"probe.img", "client.py", "call.py", "parked.py"} <= {path.name for path in used}  # type: ignore[attr-defined]

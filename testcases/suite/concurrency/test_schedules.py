# SPDX-License-Identifier: GPL-2.0-or-later
"""Two calls of one domain in every order: one stands at each block of the mediator in turn while the other is made."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    Invoke,
    OpenSession,
    RegisterShm,
    UnregisterShm,
    rmem,
    tmem,
    value,
)
from framework.probe.ops import Op
from framework.probe.schedule import EVENTS, PreparedCall, Schedule
from framework.target.target import Target
from framework.trace.format import Kind
from framework.trace.live import HoldNews
from medcheck import Probe
from mediator_ref.abi import RpcCmd, RpcFunc, SmcReturn, is_rpc

COOKIE, OTHER_COOKIE = 0xC0, 0xC1
BAD_PARAMETERS = 0xFFFF0006


def unregister(probe: Probe, cookie: int) -> int:
    return probe.call_with_arg(UnregisterShm(cookie)).arg.ret


@pytest.mark.mc_core
@pytest.mark.mc_rule("R14", "MEM-8")
def test_r14_one_of_two_registrations(smp_probe: Probe, schedule: Schedule) -> None:
    """Two vCPUs register memory under the same cookie: one of them is refused, in every order."""
    first, second = (PreparedCall(smp_probe, RegisterShm(tmem(ref=COOKIE))) for _ in range(2))
    for stand, other in schedule.orders(lambda: first.ops, second.make):
        answers = sorted(call.arg.ret for call in (first.made(stand.records), other) if call is not None)
        assert answers == [0, BAD_PARAMETERS][: len(answers)], str(stand)
        assert unregister(smp_probe, COOKIE) == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R4", "R14", "MEM-7")
def test_r4_two_registrations_count(smp_probe: Probe, schedule: Schedule) -> None:
    """Two vCPUs register memory under cookies of their own: both count, and nothing counts when both are gone."""
    first = PreparedCall(smp_probe, RegisterShm(tmem(pages=3, ref=COOKIE)))
    second = PreparedCall(smp_probe, RegisterShm(tmem(pages=2, ref=OTHER_COOKIE)))
    for stand, other in schedule.orders(lambda: first.ops, second.make):
        assert first.made(stand.records).arg.ret == 0
        assert unregister(smp_probe, COOKIE) == 0
        if other is not None:
            assert other.arg.ret == 0
            assert unregister(smp_probe, OTHER_COOKIE) == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R14", "MEM-8", "MEM-10")
def test_r14_unregistered_while_it_is_used(smp_probe: Probe, schedule: Schedule) -> None:
    """One vCPU's call names registered memory, another's lets go of it: either is before the other."""
    session = smp_probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    register = PreparedCall(smp_probe, RegisterShm(tmem(ref=COOKIE)))
    use = PreparedCall(smp_probe, Invoke(session, PTA_CMD_PARAMS, [value(1, 1), rmem(COOKIE, 4096)]))
    let_go = PreparedCall(smp_probe, UnregisterShm(COOKIE), park=[RpcCmd.NOTIFICATION])  # OP-TEE waits for the other

    def registered() -> tuple[Op, ...]:
        assert register.make().arg.ret == 0
        return use.ops

    for stand, other in schedule.orders(registered, let_go.make):
        assert use.made(stand.records).x0 == SmcReturn.OK
        other = other or let_go.make()
        assert (other if other.done else other.finish()).arg.ret == 0, str(stand)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R5", "R14", "STD-1")
def test_r5_one_of_two_is_the_last_thread(smp_probe: Probe, schedule: Schedule) -> None:
    """All threads but one are taken, and two vCPUs call at once: one of them is refused, unless the other was over."""
    session = smp_probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    waits = PreparedCall(smp_probe, OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    first = PreparedCall(smp_probe, Invoke(session, PTA_CMD_PARAMS, [value(1, 2)]))
    second = PreparedCall(smp_probe, OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    waiting = []

    def one_is_left() -> tuple[Op, ...]:
        waiting.append(waits.make())
        assert not waiting[0].done
        return first.ops

    for stand, other in schedule.orders(one_is_left, second.make):
        own = first.made(stand.records).x0
        waiting.pop().finish()
        if other is None:
            assert own == SmcReturn.OK
            continue
        assert own in (SmcReturn.OK, SmcReturn.ETHREAD_LIMIT)
        assert is_rpc(other.x0) or (own, other.x0) == (SmcReturn.OK, SmcReturn.ETHREAD_LIMIT), str(stand)
        if not other.done:
            other.finish()


@pytest.mark.mc_core
@pytest.mark.mc_rule("R1", "R21", "LIFE-2", "LIFE-3", "LIFE-4")
@pytest.mark.parametrize("point", EVENTS, ids=lambda kind: kind.name)
def test_r1_destroyed_while_a_call_runs(smp_probe: Probe, schedule: Schedule, target: Target, point: Kind) -> None:
    """A domain is destroyed while one of its vCPUs is in the mediator: Xen waits for it, and nothing is left."""
    assert smp_probe.domid is not None
    register = PreparedCall(smp_probe, RegisterShm(tmem(pages=2, ref=COOKIE)))
    with schedule.hold(point, *register.ops, lives=False) as stand:
        assert stand.reached
        target.dom0.xl.destroy(smp_probe.domid)
    assert stand.ended is HoldNews.OTHER_WAITS
    assert target.dom0.xl.find(smp_probe.domid) is None

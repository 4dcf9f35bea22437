# SPDX-License-Identifier: GPL-2.0-or-later
"""Creation and sudden death of domains that use OP-TEE."""

from __future__ import annotations

import pytest

from framework.common.errors import GuestError, MedcheckError
from framework.guests.xen_console import free_kib
from framework.guests.xl import GuestConfig
from framework.probe.client import IMAGE_IN_DOM0
from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    TEE_ITEM_NOT_FOUND,
    OpenSession,
    RegisterShm,
    tmem,
)
from medcheck import Deviations, Dom0, MakeProbe, Probe, Target
from mediator_ref.abi import RETURN_FROM_RPC, RpcCmd, RpcFunc, Tee

from ..lib.domains import REQUESTS, free_pages


def free_memory(target: Target) -> int:
    """Xen's free memory in MiB."""
    return free_kib(target.board.consoles["xen"]) >> 10


def free_before(target: Target) -> int:
    """The same before a waiting probe's domain was created."""
    return int(target.notes["free_kib"]) >> 10


def destroyed(dom0: Dom0, probe: Probe) -> bool:
    """Destroy a probe's domain; whether Xen knows it no longer."""
    assert probe.domid is not None
    dom0.xl.destroy(probe.domid)
    return dom0.xl.find(probe.domid) is None


@pytest.mark.mc_core
@pytest.mark.mc_rule("R1", "R21", "LIFE-2", "LIFE-3")
@pytest.mark.parametrize("point", REQUESTS, ids=lambda point: point.name)
def test_r1_destroyed_while_a_call_waits(
    probe: Probe, make_probe: MakeProbe, target: Target, point: RpcFunc | RpcCmd
) -> None:
    """A domain destroyed at each of OP-TEE's requests goes away whole, and its successor works."""
    probe.begin(OpenSession(NO_TA), park=[point])
    assert destroyed(target.dom0, probe)
    assert free_memory(target) == free_before(target)
    successor = make_probe("heir")
    call = successor.call_with_arg(OpenSession(NO_TA))
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R1", "R8", "R18", "R21", "LIFE-3")
def test_r21_destroyed_with_everything_it_may_have(probe: Probe, target: Target) -> None:
    """Sixteen registered buffers of 129 pages, all threads waiting: all of it comes back."""
    data = probe.pages(1)
    for ref in range(16):
        assert probe.call_with_arg(RegisterShm(tmem(ipas=[data] * 129, ref=ref))).arg.ret == 0
    while not probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC]).done:
        pass
    assert destroyed(target.dom0, probe)
    assert free_memory(target) == free_before(target)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R1", "R2", "R18", "LIFE-3", "D3")
def test_d3_destroyed_after_a_failed_registration(probe: Probe, target: Target, deviations: Deviations) -> None:
    """One refused page list, then the domain's end: its bookkeeping is back at zero, and Xen lives."""
    dom0 = target.dom0
    call = probe.call_with_arg(RegisterShm(tmem(ipas=[0x7000_0000], ref=1)))
    assert (call.x0, call.arg.ret) == (0, Tee.BAD_PARAMETERS)
    try:
        gone = destroyed(dom0, probe)
    except MedcheckError:
        said = "\n".join(target.board.consoles["xen"].tail(200))
        if "optee_shm_buf_pages" not in said:
            raise
        deviations.seen("D3", "a debug Xen panics: Assertion '!atomic_read(&ctx->optee_shm_buf_pages)' failed")
        return
    assert gone


@pytest.mark.mc_core
@pytest.mark.mc_rule("R1", "R2", "R18", "LIFE-3", "D4")
def test_d4_destroyed_with_a_lost_call(
    probe: Probe, make_probe: MakeProbe, target: Target, deviations: Deviations
) -> None:
    """A call that cannot be resumed any more, then the domain's end: all of its memory comes back, and Xen lives.

    On a board of its own: where the mediator still holds the call to be running, a debug Xen asserts.
    """
    dom0 = target.dom0
    assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND
    assert destroyed(dom0, probe)
    before = free_pages(target)
    doomed = make_probe("doomed", slot=0)
    call = doomed.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    call.answer(ret=Tee.OUT_OF_MEMORY, x1=0, x2=0)
    lost = call.x0 == RETURN_FROM_RPC
    assert lost or (call.x0, call.arg.ret) == (0, Tee.OUT_OF_MEMORY)
    try:
        gone = destroyed(dom0, doomed)
    except MedcheckError:
        said = "\n".join(target.board.consoles["xen"].tail(200))
        if not lost or "call->in_flight" not in said:
            raise
        deviations.seen("D4", "a debug Xen panics: Assertion '!call->in_flight' failed")
        return
    assert gone
    assert free_pages(target) == before


@pytest.mark.mc_core
@pytest.mark.mc_rule("R20", "R21", "LIFE-1", "LIFE-5")
def test_r20_more_domains_than_optee_has_room_for(probe: Probe, target: Target) -> None:
    """The domain OP-TEE has no partition for is not created; after another's end the next one is, and works."""
    dom0 = target.dom0
    made = []
    try:
        with pytest.raises(GuestError):
            for number in range(8):
                config = GuestConfig(f"room{number}", IMAGE_IN_DOM0, memory_mib=16, network=False)
                made.append(dom0.xl.create(config))
        call = probe.call_with_arg(OpenSession(INVOKE_TESTS))
        assert (call.x0, call.arg.ret) == (0, 0)
        if made:
            dom0.xl.destroy(made.pop())
            made.append(dom0.xl.create(GuestConfig("again", IMAGE_IN_DOM0, memory_mib=16, network=False)))
    finally:
        for domid in made:
            dom0.xl.destroy(domid)

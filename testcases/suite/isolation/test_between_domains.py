# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to one domain is out of another's reach."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    CloseSession,
    Invoke,
    OpenSession,
    RegisterShm,
    UnregisterShm,
    rmem,
    tmem,
    value,
)
from framework.probe.xen import FREE_SPACE, balloon_out, grant, map_grant, unmap_grant
from medcheck import Probe
from mediator_ref.abi import FID, RETURN_FROM_RPC, RpcCmd, RpcFunc, SmcReturn, Tee, split


@pytest.mark.mc_core
@pytest.mark.mc_rule("R12", "RPC-1", "RPC-5", "ISO-1")
def test_r12_another_domains_call_cannot_be_resumed(probe_pair: tuple[Probe, Probe]) -> None:
    """The thread that one domain's call waits in is ERESUME for another."""
    first, second = probe_pair
    with first.parked_at(RpcFunc.ALLOC) as call:
        page = second.pages(1)
        high, low = split(page)
        assert second.smc(RETURN_FROM_RPC, high, low, call.thread, high, low)[0] == SmcReturn.ERESUME
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R5", "R11", "CID-1")
def test_r11_sessions_and_cookies_are_per_domain(probe_pair: tuple[Probe, Probe]) -> None:
    """Equal session numbers and cookies of two domains mean different things; a7 does not change whose they are."""
    first, second = probe_pair
    session = first.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    forged = second.begin(Invoke(session, PTA_CMD_PARAMS, [value(1, 2)]), regs=(0, 0, 0, 0, (first.domid or 0) + 1))
    assert (forged.x0, forged.arg.ret) == (0, Tee.BAD_PARAMETERS)
    mine = first.call_with_arg(RegisterShm(tmem(ref=0x77)))
    assert mine.arg.ret == 0
    own = second.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    reach = second.call_with_arg(Invoke(own, PTA_CMD_PARAMS, [rmem(0x77, 16)]))
    assert (reach.x0, reach.arg.ret) == (0, Tee.BAD_PARAMETERS)
    assert second.call_with_arg(UnregisterShm(0x77)).arg.ret != 0
    probe_page = mine.buffer().pages[0]
    first.fill(probe_page, 4096, 0x0202020202020202)
    assert first.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [rmem(0x77, 16)])).arg.ret == 0
    assert first.read(probe_page, 1)[0] == 32
    assert first.call_with_arg(CloseSession(session)).arg.ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R5", "R8", "R14", "RPC-2", "RPC-3", "RPC-4", "MEM-8", "CACHE-1")
def test_r5_the_same_names_in_two_domains(probe_pair: tuple[Probe, Probe]) -> None:
    """Calls of two domains wait, whose pages, threads and cookies have equal names: each goes on with its own.

    The first to come is the last to go, and each ends what has its name in its own domain only.
    """
    calls = []
    for probe in probe_pair:
        assert probe.call_with_arg(RegisterShm(tmem(ref=0xC0))).arg.ret == 0
        call = probe.begin(OpenSession(NO_TA, [tmem(ref=0xC1)]), park=[RpcFunc.ALLOC])
        call.give_page(cookie=0xAA, park=[RpcCmd.SHM_ALLOC])
        assert call.request().cmd == RpcCmd.SHM_ALLOC
        calls.append(call)
    first, second = calls
    assert first.thread == second.thread
    for probe, call in ((probe_pair[1], second), (probe_pair[0], first)):
        call.give_memory(park=[RpcFunc.CMD])
        assert call.request().cmd == RpcCmd.FS
        call.finish()
        assert (call.x0, call.arg.ret) == (SmcReturn.OK, TEE_ITEM_NOT_FOUND)
        assert probe.call_with_arg(UnregisterShm(0xC0)).arg.ret == 0
        regs = probe.smc(FID["DISABLE_SHM_CACHE"])
        assert regs[0] in (SmcReturn.OK, SmcReturn.ENOTAVAIL)
        again = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        again = again if again.done else again.give_page(cookie=0xAA)
        assert (again.x0, again.arg.ret) == (SmcReturn.OK, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-2")
@pytest.mark.parametrize("readonly", [False, True])
def test_r8_granted_pages_are_not_a_guests_own(probe: Probe, readonly: bool) -> None:
    """A page mapped by a grant can be used by the guest, but not shared on with OP-TEE.

    The probe grants it to itself: Xen's SILO policy, the default on Arm, lets no two domUs do that, and to the mediator
    the mapping is the same. On a board of its own because of D3.
    """
    page = probe.pages(1)
    probe.write(page, b"granted")
    given = grant(probe, page, probe.domid or 0, readonly=readonly)
    mapping = map_grant(probe, given, FREE_SPACE, readonly=readonly)
    assert probe.read(FREE_SPACE, 7) == b"granted"
    call = probe.call_with_arg(RegisterShm(tmem(ipas=[FREE_SPACE], ref=1)))
    assert (call.x0, call.arg.ret) == (0, Tee.BAD_PARAMETERS)
    waiting = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    waiting.give_page(FREE_SPACE)
    assert waiting.done
    assert waiting.arg.ret != 0
    unmap_grant(probe, mapping)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "R14", "MEM-1", "MEM-8")
def test_r8_shared_pages_outlive_the_guests_mapping(probe: Probe) -> None:
    """A guest that gives a registered page back to Xen loses it; OP-TEE works on it until it is unregistered."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    made = probe.call_with_arg(RegisterShm(tmem(pages=2, ref=5)))
    assert made.arg.ret == 0
    first, second = made.buffer().pages
    probe.fill(first, 8192, 0x0101010101010101)
    balloon_out(probe, second)
    call = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [rmem(5, 8192)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    assert probe.read(first, 1)[0] == 8192 % 256
    assert probe.call_with_arg(UnregisterShm(5)).arg.ret == 0
    assert probe.call_with_arg(RegisterShm(tmem(ref=6))).arg.ret == 0

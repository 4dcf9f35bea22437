# SPDX-License-Identifier: GPL-2.0-or-later
"""The isolation findings of the list of deviations, as far as the guest's own view shows them.

The mediator's maintainers are told of each before details are published: see SECURITY.md.
"""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_MEMREF_NULL,
    TEE_ITEM_NOT_FOUND,
    Invoke,
    OpenSession,
    RegisterShm,
    null_tmem,
    tmem,
)
from medcheck import Deviations, Probe
from mediator_ref.abi import RETURN_FROM_RPC, RPC_ALLOC_ATTR, Attr, Param, RpcCmd, RpcFunc, Tee
from mediator_ref.events import PAGE_SIZE

RESERVED_SHM = 0x4200_0000
"""Machine address of OP-TEE's static shared memory, which no guest may use, and none does: a harmless place."""
BUFFERS = 16
COMMS = 2
LIES = 4


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "R22", "RPC-8", "D1")
def test_d1_contiguous_reply_to_shm_alloc(probe: Probe, deviations: Deviations) -> None:
    """A reply to SHM_ALLOC that names an address instead of a page list never reaches OP-TEE."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    cookie = probe.cookie()
    # Every command from here on: one that uses the memory tells that OP-TEE took the address.
    call.answer(Param(Attr.TMEM_OUTPUT, RESERVED_SHM, 4096, cookie), park=[RpcFunc.CMD])
    used = []
    while not call.done:
        request = call.request()
        if request.cmd not in (RpcCmd.SHM_FREE, RpcCmd.SHM_ALLOC):
            used += [param for param in request.params if param.c == cookie]
        call.proceed(RpcFunc.CMD)
    if used:
        deviations.seen("D1", f"OP-TEE uses memory under the cookie of an untranslated reply in {len(used)} parameters")
        return
    assert (call.x0, call.arg.ret != 0) == (0, True)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-4", "MEM-8", "MEM-10", "D2")
def test_d2_a_call_releases_only_its_own_buffers(probe: Probe, deviations: Deviations) -> None:
    """A NULL buffer with the cookie of registered memory does not unregister it."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    assert probe.call_with_arg(RegisterShm(tmem(ref=0xC0))).arg.ret == 0
    call = probe.call_with_arg(Invoke(session, PTA_CMD_MEMREF_NULL, [null_tmem(ref=0xC0)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    again = probe.call_with_arg(RegisterShm(tmem(ref=0xC0)))
    assert again.x0 == 0
    if (again.arg.ret, again.arg.ret_origin) == (Tee.SUCCESS, 0):
        deviations.seen("D2", "the cookie of memory that OP-TEE still has registered can be registered once more")
        return
    assert (again.arg.ret, again.arg.ret_origin) == (Tee.BAD_PARAMETERS, COMMS)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "RPC-4", "RPC-8", "D11")
def test_d11_shm_alloc_answered_under_another_name(probe: Probe, deviations: Deviations) -> None:
    """OP-TEE asked for memory: a page list in the reply is translated or refused, whatever the reply's ``cmd`` says.

    The list lies at the guest's address that is, as a machine address, OP-TEE's static shared memory: where the list
    goes to OP-TEE as it is, OP-TEE reads a harmless place, finds no list there and has no memory.
    """
    listed, data, cookie = RESERVED_SHM, probe.pages(1), probe.cookie()
    probe.fill(listed, PAGE_SIZE)
    probe.write(listed, data.to_bytes(8, "little"))
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    call.answer(Param(RPC_ALLOC_ATTR, listed, PAGE_SIZE, cookie), cmd=RpcCmd.GET_TIME, park=[RpcFunc.CMD])
    asked = [call.request()] if not call.done else []
    call = call if call.done else call.finish()
    assert (call.x0, call.arg.ret != 0) == (0, True)
    if [(request.cmd, request.params[0].b) for request in asked] == [(RpcCmd.SHM_FREE, cookie)]:
        deviations.seen("D11", "OP-TEE was given a page list it could not use: the mediator let the reply through")
        return
    # Translated, it is memory that OP-TEE's file commands name; refused, OP-TEE asks for nothing any more.
    assert not asked or any(param.c == cookie for param in asked[0].params)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "R18", "RPC-4", "MEM-6", "MEM-7", "D11")
def test_d11_another_answer_passed_off_as_memory(probe: Probe, deviations: Deviations) -> None:
    """OP-TEE asked for a file: a reply that calls itself SHM_ALLOC's shares no memory, and costs no slot."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.FS])
    data, listed = probe.pages(1), probe.pages(1)
    probe.write(listed, data.to_bytes(8, "little"))
    for _ in range(LIES):
        assert call.request().cmd == RpcCmd.FS
        lied = Param(RPC_ALLOC_ATTR, listed, PAGE_SIZE, probe.cookie())
        call.answer(lied, cmd=RpcCmd.SHM_ALLOC, park=[RpcCmd.FS, RpcCmd.LOAD_TA])
    call.finish()
    assert (call.x0, call.arg.ret != 0) == (0, True)
    made = [probe.call_with_arg(RegisterShm(tmem(ref=ref))) for ref in range(BUFFERS)]
    assert {made_one.x0 for made_one in made} == {0}
    refused = [made_one.arg.ret for made_one in made if made_one.arg.ret != 0]
    if refused == [Tee.OUT_OF_MEMORY] * LIES:
        deviations.seen("D11", f"{LIES} replies with memory that was not requested took {LIES} of the 16 slots")
        return
    assert not refused


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "RPC-2", "RPC-13", "MEM-10", "D13")
def test_d13_a_refused_page_does_not_release_anothers(probe: Probe, deviations: Deviations) -> None:
    """An ALLOC answered with the cookie of another call's RPC page is refused, and that page lives on.

    On a board of its own: where it does not, its call can never be answered, and OP-TEE keeps using a page of Xen's.
    """
    first = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    cookie = probe.cookie()
    first.give_page(cookie=cookie, park=[RpcCmd.FS])
    second = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    assert not second.done
    # Refused for the cookie's sake; OP-TEE frees what it was given, and names it by that cookie.
    second.give_page(cookie=cookie, park=[RpcFunc.ALLOC, RpcFunc.CMD, RpcFunc.FREE])
    assert (second.rpc.func, second.rpc.cookie) == (RpcFunc.FREE, cookie)
    first.answer(ret=TEE_ITEM_NOT_FOUND, park=[RpcFunc.CMD])
    if first.x0 == RETURN_FROM_RPC:
        deviations.seen("D13", "the first call's page is gone: x0 = 0x32000003 unchanged when it is answered")
        return
    first = first if first.done else first.finish()
    assert (first.x0, first.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    second.finish()


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-8", "MEM-10", "D14")
def test_d14_shm_free_releases_only_what_was_given(probe: Probe, deviations: Deviations) -> None:
    """A NULL answer to SHM_ALLOC under the cookie of registered memory: OP-TEE's SHM_FREE does not unregister it."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=0xC0))).arg.ret == 0
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    call.answer(Param(RPC_ALLOC_ATTR, 0, PAGE_SIZE, 0xC0), park=[RpcFunc.CMD])
    if not call.done:
        request = call.request()
        assert (request.cmd, request.params[0].b) == (RpcCmd.SHM_FREE, 0xC0)
        call.finish()
    assert (call.x0, call.arg.ret != 0) == (0, True)
    again = probe.call_with_arg(RegisterShm(tmem(ref=0xC0)))
    assert again.x0 == 0
    if (again.arg.ret, again.arg.ret_origin) == (Tee.SUCCESS, 0):
        deviations.seen("D14", "the cookie of memory that OP-TEE still has registered can be registered once more")
        return
    assert (again.arg.ret, again.arg.ret_origin) == (Tee.BAD_PARAMETERS, COMMS)

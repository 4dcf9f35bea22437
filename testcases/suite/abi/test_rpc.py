# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE's requests to the guest, and what a guest may answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framework.probe.message import NO_TA, TEE_ITEM_NOT_FOUND, OpenSession
from framework.probe.ops import RpcPage
from medcheck import Deviations, Probe
from mediator_ref.abi import (
    MAX_NUM_PARAMS,
    RETURN_FROM_RPC,
    RPC_ALLOC_ATTR,
    Arg,
    Attr,
    Param,
    RpcCmd,
    RpcFunc,
    SmcReturn,
    Tee,
    encode_arg,
    pair,
    split,
)
from mediator_ref.events import PAGE_SIZE


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-1", "RPC-5", "R12")
def test_r12_other_threads_of_a_waiting_call(probe: Probe) -> None:
    """Only a call's own thread can be resumed, and the call is none the worse for a wrong try: ERESUME.

    -1 is what the mediator calls "none" inside.
    """
    threads = {0, 1, 2, 0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
    for thread in threads:
        assert probe.smc(RETURN_FROM_RPC, 0, 0, thread, 4)[:5] == (SmcReturn.ERESUME, 0, 0, thread, 4)
    with probe.parked_at(RpcFunc.ALLOC) as call:
        for thread in threads - {call.thread}:
            assert probe.smc(RETURN_FROM_RPC, 0, 0, thread)[0] == SmcReturn.ERESUME
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    # The call is over: its thread is not resumable any more.
    assert probe.smc(RETURN_FROM_RPC, 0, 0, call.thread)[0] == SmcReturn.ERESUME


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-2", "RPC-6", "R3", "R11")
def test_only_the_low_halves_count(probe: Probe) -> None:
    """A resumed call's address, cookie and thread are 32 bits a register; x1 and x2 do not matter after a FREE."""
    dirt = 0xDEAD_BEEF << 32
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    page = probe.pages(1)
    x1, x2 = split(page)
    known = [RpcPage(page, page)]
    rest = (x1 | dirt, x2 | dirt, 0x66, 0x77)
    call.resume(x1, x2 | dirt, x3=call.thread, rest=rest, park=[RpcFunc.FREE], before=known)
    assert (call.rpc.func, call.rpc.cookie) == (RpcFunc.FREE, page)
    call.resume(0xDEAD, 0xBEEF, rest=(4, 5, 6, 7))
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_rule("RPC-2", "RPC-5", "RPC-6", "R7", "R22")
def test_every_request_by_hand(probe: Probe) -> None:
    """OPEN_SESSION of an unknown TA, each request answered by the client: ALLOC, SHM_ALLOC, files, LOAD_TA, frees."""
    call = probe.begin(OpenSession(NO_TA), park=list(RpcFunc))
    memory: dict[int, int] = {}
    park = list(RpcFunc)
    seen: list[str] = []
    while not call.done:
        seen.append(str(call.rpc))
        if call.rpc.func == RpcFunc.ALLOC:
            assert call.regs[1] <= 4096
            call.give_page(park=park)
        elif call.rpc.func == RpcFunc.CMD:
            request = call.request()
            if request.cmd == RpcCmd.SHM_ALLOC:
                data, cookie = call.give_memory(park=park)
                memory[cookie] = data
            elif request.cmd == RpcCmd.SHM_FREE:
                assert request.params[0].b in memory
                call.answer(park=park)
            else:
                for param in request.params:
                    # OP-TEE names memory by the guest's cookie; addresses do not matter.
                    if param.type in (Attr.RMEM_INPUT, Attr.RMEM_OUTPUT, Attr.RMEM_INOUT):
                        assert param.c in memory
                    elif param.type in (Attr.TMEM_INPUT, Attr.TMEM_OUTPUT, Attr.TMEM_INOUT):
                        assert (param.a, param.b, param.c) == (0, 0, 0)
                call.answer(ret=TEE_ITEM_NOT_FOUND, park=park)
        else:
            call.resume(park=park)
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND), seen
    assert {"ALLOC", "CMD SHM_ALLOC", "CMD LOAD_TA", "CMD SHM_FREE"} <= set(seen)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-2", "RPC-3", "R3")
def test_r3_alloc_answered_with_no_page(probe: Probe) -> None:
    """A misaligned address, a device or nothing as RPC page: OP-TEE is told there is none, and the call fails."""
    for ipa in (0x0, 0x4050_0008, 0x0900_0000, 0x7000_0000):
        call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        call.give_page(ipa, park=[RpcFunc.CMD])
        call = call if call.done else call.finish()
        assert call.x0 == SmcReturn.OK
        assert call.arg.ret in (Tee.OUT_OF_MEMORY, Tee.GENERIC, TEE_ITEM_NOT_FOUND), hex(call.arg.ret)
    assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-4", "RPC-8", "R3")
def test_r3_shm_alloc_refused(probe: Probe) -> None:
    """A guest that has no memory for OP-TEE says so, whatever else stands in its answer; the next call works.

    An answer with a result, or with two parameters, brings no memory although it names some.
    """
    listed, data = probe.pages(1), probe.pages(1)
    probe.write(listed, data.to_bytes(8, "little"))
    memory = Param(RPC_ALLOC_ATTR, listed, PAGE_SIZE, 0x5EC)
    answers: list[tuple[tuple[Param, ...], int]] = [((), ret) for ret in (Tee.OUT_OF_MEMORY, Tee.GENERIC, 1)]
    answers += [((memory,), Tee.OUT_OF_MEMORY), ((memory, memory), 0), ((replace(memory, attr=0x209),), 0)]
    for params, ret in answers:
        call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
        call.answer(*params, ret=ret)
        call = call if call.done else call.finish()
        assert call.x0 == SmcReturn.OK
        assert call.arg.ret != 0
    assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-12", "R3")
def test_r3_answers_that_do_not_fit(probe: Probe) -> None:
    """An answer with more parameters than a page holds is an error to OP-TEE, and nothing of it is used."""
    for count in (MAX_NUM_PARAMS + 1, 0x1000, 0xFFFF_FFFF):
        call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
        probe.write(call.rpc_page(), encode_arg(Arg(cmd=RpcCmd.SHM_ALLOC, num_params=count), fill=b"\x5a"))
        call.resume(call.regs[1], call.regs[2])
        assert (call.done, call.x0, call.arg.ret != 0) == (True, SmcReturn.OK, True), count
    assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-8", "MEM-6", "MEM-8", "R18")
def test_r18_memory_for_optee_is_given_back(probe: Probe) -> None:
    """More answers to SHM_ALLOC than there are slots, with one cookie: each is released before it comes again."""
    listed, data = probe.pages(1), probe.pages(1)
    probe.write(listed, data.to_bytes(8, "little"))
    for _ in range(20):
        call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
        call.answer(Param(RPC_ALLOC_ATTR, listed, PAGE_SIZE, 0x5EC))
        assert (call.done, call.x0, call.arg.ret) == (True, SmcReturn.OK, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-8", "RPC-9", "R8", "R18", "D3")
def test_r18_shm_alloc_answered_with_bad_pages(probe: Probe) -> None:
    """A reply whose list names memory the guest does not have: the mediator asks the guest to free it (SHM_FREE).

    On a board of its own: D3 makes a debug Xen assert when the domain is destroyed.
    """
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    listed = probe.pages(1)
    probe.write(listed, (0x7000_0000).to_bytes(8, "little"))
    cookie = probe.cookie()
    call.answer(Param(0x20A, listed, 4096, cookie), park=[RpcCmd.SHM_FREE])
    assert not call.done
    request = call.request()
    assert (request.cmd, request.num_params, request.params[0].b) == (RpcCmd.SHM_FREE, 1, cookie)
    assert pair(call.regs[1], call.regs[2]) == call.rpcs[-1].cookie
    call.finish()
    assert (call.x0, call.arg.ret != 0) == (0, True)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-7", "R7")
def test_r7_foreign_interrupts_are_the_guests_to_resume(probe: Probe) -> None:
    """A call that an interrupt suspends comes back to the guest, which resumes it; x1 and x2 do not matter."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.FOREIGN_INTR, RpcFunc.ALLOC])
    turns = 0
    while not call.done and call.rpc.func == RpcFunc.FOREIGN_INTR:
        call.resume(0xDEAD, 0xBEEF, park=[RpcFunc.FOREIGN_INTR, RpcFunc.ALLOC])
        turns += 1
        assert turns < 1000, "OP-TEE is interrupted for ever"
    call.finish()
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-4", "RPC-7", "D4", "R2", "R4")
def test_d4_x1_and_x2_are_not_used_when_returning_from_a_command(probe: Probe, deviations: Deviations) -> None:
    """The ABI says a1 and a2 are not used on return from RPC_CMD: with zeros there the call goes on all the same.

    On a board of its own: where the call is lost, a debug Xen asserts when the domain is destroyed.
    """
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    call.answer(ret=Tee.OUT_OF_MEMORY, x1=0, x2=0)
    if call.x0 == RETURN_FROM_RPC:
        retry = probe.smc(RETURN_FROM_RPC, 0, 0, call.thread)[0]
        assert retry == SmcReturn.ERESUME
        deviations.seen("D4", "x0 = 0x32000003 unchanged, and the thread cannot be resumed any more")
        return
    assert (call.x0, call.arg.ret) == (SmcReturn.OK, Tee.OUT_OF_MEMORY)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-4", "RPC-9", "R18", "D15")
def test_d15_unreadable_answer_to_the_mediators_own_request(probe: Probe) -> None:
    """The mediator asks for memory to be freed and gets an answer that does not fit a page: that request is over.

    What a guest sees of it: the answer to OP-TEE's next command, SHM_FREE of other memory, is a command's answer again.
    Whether it reached OP-TEE is in the trace only, for OP-TEE does not look at it; the checker judges that. On a board
    of its own because of D3.
    """
    call = probe.begin(OpenSession(NO_TA), park=[RpcCmd.LOAD_TA])
    # "The TA has 8192 bytes": OP-TEE asks for memory to load it to.
    uuid, _ = call.request().params
    call.answer(uuid, Param(Attr.TMEM_OUTPUT, 0, 8192, 0), park=[RpcCmd.SHM_ALLOC])
    listed = probe.pages(1)
    probe.write(listed, (0x7000_0000).to_bytes(8, "little"))
    call.answer(Param(RPC_ALLOC_ATTR, listed, 8192, probe.cookie()), park=[RpcCmd.SHM_FREE])
    asked_by_mediator = call.request()
    assert asked_by_mediator.cmd == RpcCmd.SHM_FREE
    too_many = Arg(cmd=RpcCmd.SHM_FREE, num_params=200)
    probe.write(call.rpc_page(), encode_arg(too_many)[:32])
    call.resume(call.regs[1], call.regs[2], park=[RpcFunc.CMD])
    following = call.request()
    assert following.cmd == RpcCmd.SHM_FREE
    assert following.params[0].b != asked_by_mediator.params[0].b
    call.finish()
    assert (call.x0, call.arg.ret != 0) == (0, True)
    assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND

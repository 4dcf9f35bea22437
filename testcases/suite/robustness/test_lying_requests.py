# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of a TEE that lies: of a kind that does not exist, on pages and for memory that are none, by no thread."""

from __future__ import annotations

import pytest

from framework.probe.call import StdCall
from framework.probe.message import INVOKE_TESTS, NO_TA, OpenSession, RegisterShm, tmem
from medcheck import Deviations, Limits, Probe
from mediator_ref.abi import (
    ARG_FIELDS,
    MAX_NUM_PARAMS,
    RPC_ALLOC_ATTR,
    RPC_PREFIX,
    SMCCC_UNKNOWN_FUNCTION,
    U32,
    Arg,
    Attr,
    Param,
    RpcCmd,
    RpcFunc,
    SmcReturn,
    Tee,
    encode_arg,
    split,
)
from mediator_ref.events import PAGE_SIZE

from ..lib.lying_tee import Answer, Liar, asks, saying

COOKIE = 0xC0
PAGE = 0x5EC_0000_0001
"""The cookie of the call's page for requests."""
NOBODYS = 0xDEAD_0000_BEEF
"""A cookie that the guest has never used."""
COMMS = 2
NOT_SUPPORTED = 0xFFFF000A


def is_held(probe: Probe, cookie: int) -> bool:
    """Whether the mediator holds a buffer under that cookie: it takes none of the same."""
    again = probe.call_with_arg(RegisterShm(tmem(ref=cookie)))
    assert again.x0 == SmcReturn.OK
    return (again.arg.ret, again.arg.ret_origin) == (Tee.BAD_PARAMETERS, COMMS)


def asked(probe: Probe, liar: Liar, *words: int) -> StdCall:
    """A call that waits at SHM_ALLOC, which the guest heard with these x0..x3 instead."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    liar.at(asks(RpcCmd.SHM_ALLOC), saying(*words))
    call.give_page(cookie=PAGE, park=list(RpcFunc))
    return told(call, liar)


def rewritten(probe: Probe, liar: Liar, arg: Arg) -> StdCall:
    """A call that waits at SHM_ALLOC, whose message became another."""
    data = encode_arg(arg)[: 32 + 32 * arg.num_params]

    def rewrite(answer: Answer) -> None:
        assert answer.request is not None
        answer.write(answer.request, data)

    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    liar.at(asks(RpcCmd.SHM_ALLOC), rewrite)
    call.give_page(cookie=PAGE, park=list(RpcFunc))
    return told(call, liar)


def told(call: StdCall, liar: Liar) -> StdCall:
    """Go on to the request that became a lie: interrupts may come before it."""
    while not liar.told and not call.done:
        call.proceed(*RpcFunc)
    assert liar.told
    return call


def ends(call: StdCall) -> None:
    """The call goes on and comes to an end that OP-TEE gave it."""
    call = call if call.done else call.finish()
    assert (call.x0, call.arg.ret != 0) == (SmcReturn.OK, True)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-3", "RPC-4", "R6")
@pytest.mark.parametrize("command", [8, 25, 0x7777_7777, U32])
def test_r6_a_command_that_does_not_exist(probe: Probe, liar: Liar, command: int) -> None:
    """It is the guest's to refuse: the mediator carries request and reply, and uses nothing of them."""
    params = (Param(Attr.VALUE_INOUT, 1, 2, 3), Param(Attr.VALUE_INPUT, 4, 5, 6), Param(Attr.NONE, 7, 8, 9))
    call = rewritten(probe, liar, Arg(cmd=command, num_params=3, params=params))
    request = call.request()
    assert (request.cmd, request.params) == (command, params)
    call.answer(*params[1:], ret=NOT_SUPPORTED, park=[RpcFunc.CMD])
    ends(call)
    assert not is_held(probe, 2)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-3", "RPC-4", "R3")
@pytest.mark.parametrize("count", [0, 1, 3, MAX_NUM_PARAMS])
def test_r3_a_request_of_any_length(probe: Probe, liar: Liar, count: int) -> None:
    """All parameters of a request reach the guest, up to a full page, and nothing behind them; so do the reply's."""
    params = tuple(Param(Attr.VALUE_INOUT, 3 * i, 3 * i + 1, 3 * i + 2) for i in range(count))
    call = rewritten(probe, liar, Arg(cmd=RpcCmd.SUSPEND, num_params=count, params=params))
    request = call.request()
    assert (request.cmd, request.num_params, request.params) == (RpcCmd.SUSPEND, count, params)
    reply = Arg(cmd=RpcCmd.SUSPEND, ret=Tee.GENERIC, num_params=count, params=params[::-1])
    probe.write(call.rpc_page(), encode_arg(reply)[: 32 + 32 * count])
    call.resume(*call.regs[1:3], park=[RpcFunc.CMD])
    ends(call)


@pytest.mark.mc_core
@pytest.mark.mc_rule("REGS-2", "R10", "D17")
@pytest.mark.parametrize("function", [1, 3, 6, 0x7FFF, 0xFFFE])
def test_r10_a_request_that_does_not_exist(probe: Probe, liar: Liar, function: int) -> None:
    """The guest hears of it, and can resume the call that waits; nothing is released for it."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    call = asked(probe, liar, RPC_PREFIX | function, *split(COOKIE))
    # The probe resumes by itself what it does not know.
    assert RPC_PREFIX | function in [rpc.x0 for rpc in call.rpcs]
    ends(call)
    assert is_held(probe, COOKIE)
    ends(probe.call_with_arg(OpenSession(NO_TA)))


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-1", "RPC-6", "CACHE-1", "R8", "R18")
@pytest.mark.parametrize("cookie", [NOBODYS, COOKIE, PAGE & U32, PAGE >> 32 << 32, 0])
def test_r18_a_page_to_free_that_is_none(probe: Probe, liar: Liar, cookie: int) -> None:
    """FREE of a cookie that no RPC page has, a buffer's among them: the guest hears it, and all is held as before."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    call = asked(probe, liar, RPC_PREFIX | RpcFunc.FREE, *split(cookie))
    assert (call.rpc.func, call.rpc.cookie) == (RpcFunc.FREE, cookie)
    call.resume(0xAAAA, 0xBBBB, park=[RpcFunc.CMD])
    ends(call)
    assert is_held(probe, COOKIE)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-3", "MEM-8", "MEM-10", "R8", "R18", "D14")
def test_r18_memory_to_free_that_is_none(probe: Probe, liar: Liar, deviations: Deviations) -> None:
    """SHM_FREE of what OP-TEE was not given for a request: an RPC page, nobody's cookie, a buffer of the guest's."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    for cookie in (PAGE, NOBODYS, COOKIE & 0xF0 | 1 << 32, COOKIE << 32, COOKIE):
        free = Arg(cmd=RpcCmd.SHM_FREE, num_params=1, params=(Param(Attr.VALUE_INPUT, 0, cookie, COOKIE),))
        call = rewritten(probe, liar, free)
        assert call.request().params[0].b == cookie
        call.answer(park=[RpcFunc.CMD])
        ends(call)
        if cookie != COOKIE:
            assert is_held(probe, COOKIE), hex(cookie)
    if not is_held(probe, COOKIE):
        deviations.seen("D14", "SHM_FREE of a registered buffer's cookie released it")


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-11", "REGS-2", "R2", "D6", "D17")
@pytest.mark.parametrize("cookie", [NOBODYS, COOKIE])
def test_r2_a_request_on_a_page_that_is_none(probe: Probe, liar: Liar, deviations: Deviations, cookie: int) -> None:
    """The mediator cannot deliver it: it goes back to OP-TEE, whose call ends with the error that it began with."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    liar.at(asks(RpcCmd.SHM_ALLOC), lambda answer: answer.say(answer.x0, *split(cookie)))
    call = probe.begin(OpenSession(NO_TA))
    assert liar.told
    if call.x0 == SMCCC_UNKNOWN_FUNCTION:
        deviations.seen("D6", "x0 = -1: the call was resumed by no function of OP-TEE's")
    else:
        ends(call)
    assert is_held(probe, COOKIE)
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-11", "FETCH-2", "R2", "R22", "D20")
def test_d20_a_request_longer_than_its_page(probe: Probe, liar: Liar, deviations: Deviations) -> None:
    """A request that says it has 200 parameters goes back to OP-TEE: what lies behind its page is Xen's own."""
    pages = probe.pages(2)
    behind, mark = pages + PAGE_SIZE, 0x5A5A_5A5A_5A5A_5A5A
    probe.fill(pages, 2 * PAGE_SIZE, mark)

    def lengthen(answer: Answer) -> None:
        assert answer.request is not None
        answer.write(answer.request + ARG_FIELDS["num_params"], (200).to_bytes(4, "little"))

    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    liar.at(asks(RpcCmd.SHM_ALLOC), lengthen)
    call.give_page(pages, cookie=PAGE, park=[RpcFunc.CMD])
    assert liar.told
    if call.done or call.request().num_params != 200:
        assert probe.read(behind, PAGE_SIZE) == mark.to_bytes(8, "little") * (PAGE_SIZE // 8)
        ends(call)
        return
    found = probe.read(behind, PAGE_SIZE)
    changed = sum(found[at : at + 8] != mark.to_bytes(8, "little") for at in range(0, PAGE_SIZE, 8))
    deviations.seen("D20", f"{changed} words behind the page of a request are what lies behind Xen's")
    call.answer(ret=Tee.GENERIC)


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-1", "RPC-5", "RPC-6", "R12", "R18")
def test_r12_a_thread_that_optee_does_not_have(probe: Probe, liar: Liar) -> None:
    """The guest resumes what it was told, OP-TEE knows no such thread, and the call ends with ERESUME and no trace."""
    liar.at(asks(RpcCmd.SHM_ALLOC), lambda answer: answer.say(answer.x0, *answer.held.event.regs[1:3], 0x77))
    call = probe.begin(OpenSession(NO_TA, [tmem(ref=COOKIE)]), park=[RpcCmd.SHM_ALLOC])
    assert (liar.told, call.thread) == (True, 0x77)
    call.answer(ret=Tee.OUT_OF_MEMORY)
    assert call.x0 == SmcReturn.ERESUME
    assert not is_held(probe, COOKIE)
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("RPC-8", "RPC-9", "RPC-10", "MEM-6", "R18", "D3")
def test_r18_memory_of_any_type(probe: Probe, liar: Liar) -> None:
    """Memory that cannot be shared is given back as the type that it was asked for, each time.

    OP-TEE asks for types 0 to 2; the mediator carries what it is told.
    """
    data, listed = probe.pages(1), probe.pages(1)
    probe.write(listed, data.to_bytes(8, "little"))
    for number in range(Limits().buffers + 1):
        kind = number * 0x1111 % 0x10000
        ask = Arg(cmd=RpcCmd.SHM_ALLOC, num_params=1, params=(Param(Attr.VALUE_INPUT, kind, PAGE_SIZE, 8),))
        call = rewritten(probe, liar, ask)
        # Too large by far, so that nothing of it is counted.
        call.answer(Param(RPC_ALLOC_ATTR, listed, 1 << 30, COOKIE), park=[RpcFunc.CMD])
        request = call.request()
        assert (request.cmd, request.num_params) == (RpcCmd.SHM_FREE, 1)
        assert (request.params[0].a, request.params[0].b) == (kind, COOKIE)
        call.answer(park=[RpcFunc.CMD])
        ends(call)
    assert not is_held(probe, COOKIE)

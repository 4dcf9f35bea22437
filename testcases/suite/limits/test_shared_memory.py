# SPDX-License-Identifier: GPL-2.0-or-later
"""What one domain may share with OP-TEE, and that every refusal gives back what it took."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    Buffer,
    Invoke,
    Message,
    OpenSession,
    Plain,
    RegisterShm,
    UnregisterShm,
    rmem,
    tmem,
)
from framework.probe.ops import Add, Break, Drive, If, Loop
from medcheck import Deviations, Probe
from mediator_ref.abi import CALL_WITH_ARG, MsgCmd, Param, RpcFunc, Tee, decode_arg, split

BUFFERS = 16
PAGES = 129
COMMS = 2


def register(probe: Probe, **how: object) -> int:
    """REGISTER_SHM; what the call returned in ``ret``, given that x0 is OK."""
    call = probe.call_with_arg(RegisterShm(tmem(**how)))  # type: ignore[arg-type]
    assert call.x0 == 0
    return call.arg.ret


def unregister(probe: Probe, ref: int) -> int:
    """UNREGISTER_SHM; likewise."""
    call = probe.call_with_arg(UnregisterShm(ref))
    assert call.x0 == 0
    return call.arg.ret


@pytest.mark.mc_core
@pytest.mark.mc_rule("R4", "R18", "MEM-6", "MEM-8")
def test_r4_sixteen_buffers(probe: Probe) -> None:
    """Sixteen registered buffers, no more; one that is unregistered makes room for one."""
    assert [register(probe, ref=100 + i) for i in range(BUFFERS)] == [0] * BUFFERS
    assert register(probe, ref=500) == Tee.OUT_OF_MEMORY
    assert unregister(probe, 105) == 0
    assert register(probe, ref=500) == 0
    assert register(probe, ref=501) == Tee.OUT_OF_MEMORY


@pytest.mark.mc_core
@pytest.mark.mc_rule("R17", "MEM-5")
def test_r17_largest_buffer(probe: Probe) -> None:
    """129 pages are allowed, the offset's page among them; one more is OUT_OF_MEMORY, however it is reached."""
    for offset in (0, 0xFFF):
        assert register(probe, pages=PAGES, offset=offset, ref=1) == 0
        assert unregister(probe, 1) == 0
    large = [(0, (PAGES + 1) << 12), (1, PAGES << 12), (0, 1 << 31), (0, (1 << 32) - 4096), (0xFFF, 1 << 43)]
    for offset, size in large:
        call = probe.call_with_arg(RegisterShm(tmem(pages=1, offset=offset, size=size, ref=1)))
        assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.OUT_OF_MEMORY, COMMS)
        assert register(probe, ref=1) == 0, "a refusal leaves something behind"
        assert unregister(probe, 1) == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R3", "R17", "MEM-5", "D9")
@pytest.mark.parametrize(
    ("offset", "size"), [(0xFFF, (1 << 64) - 1), (0, (1 << 44) + 4096)], ids=["wraps", "cut to 32 bits"]
)
def test_d9_size_that_overflows(probe: Probe, deviations: Deviations, offset: int, size: int) -> None:
    """A size whose end is beyond 64 bits, or whose number of pages is beyond 32: the mediator refuses it itself."""
    call = probe.call_with_arg(RegisterShm(tmem(pages=1, offset=offset, size=size, ref=1)))
    assert call.x0 == 0
    assert call.arg.ret != 0
    if (call.arg.ret, call.arg.ret_origin) == (Tee.BAD_PARAMETERS, 0):
        deviations.seen("D9", f"size {size:#x}, offset {offset:#x}: OP-TEE answers {call.arg.ret:#x}, not the mediator")
        return
    assert call.arg.ret_origin == COMMS
    assert call.arg.ret in (Tee.OUT_OF_MEMORY, Tee.BAD_PARAMETERS)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R3", "R4", "R18", "MEM-6", "MEM-7", "MEM-8")
def test_r18_one_cookie_one_buffer(probe: Probe) -> None:
    """A cookie that is in use names nothing else, and a refusal for its sake, or for a limit's, costs nothing.

    Refused 140 times with 129 pages each: were one count left, no buffer would have room any more.
    """
    data = probe.pages(1)
    large = tmem(ipas=[data] * PAGES, ref=7)
    made = probe.call_with_arg(RegisterShm(large))
    assert (made.x0, made.arg.ret) == (0, 0)
    again = Drive((CALL_WITH_ARG, *split(made.arg_page)), quiet=True)
    probe.run(Loop(140, (again,)), timeout_s=120)
    assert decode_arg(probe.read(made.arg_page, 4096)).ret == Tee.BAD_PARAMETERS
    others = [register(probe, ipas=[data] * PAGES, ref=100 + i) for i in range(BUFFERS - 1)]
    assert others == [0] * (BUFFERS - 1)
    refused = probe.begin(RegisterShm(tmem(ipas=[data] * PAGES, ref=8)))
    probe.run(Loop(140, (Drive((CALL_WITH_ARG, *split(refused.arg_page)), quiet=True),)), timeout_s=120)
    assert decode_arg(probe.read(refused.arg_page, 4096)).ret == Tee.OUT_OF_MEMORY
    assert unregister(probe, 7) == 0
    assert register(probe, ipas=[data] * PAGES, ref=8) == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R18", "MEM-6", "MEM-8", "MEM-10")
def test_r18_what_optee_refuses_is_not_done(probe: Probe) -> None:
    """A registration that OP-TEE refuses is released; memory that it did not unregister is not.

    OP-TEE takes no memory to be registered that it may only read, and unregisters nothing that belongs to a call.
    """
    for number in range(BUFFERS + 4):
        call = probe.call_with_arg(Message(MsgCmd.REGISTER_SHM, params=(tmem(ref=number, direction="in"),)))
        assert (call.x0, call.arg.ret, call.arg.ret_origin != COMMS) == (0, Tee.BAD_PARAMETERS, True)
    assert unregister(probe, 99) == Tee.BAD_PARAMETERS
    waiting = probe.begin(OpenSession(NO_TA, [tmem(ref=0xC0)]), park=[RpcFunc.ALLOC])
    assert unregister(probe, 0xC0) == Tee.BAD_PARAMETERS
    call = probe.call_with_arg(RegisterShm(tmem(ref=0xC0)))
    assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.BAD_PARAMETERS, COMMS)
    waiting.finish()
    assert (waiting.x0, waiting.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    assert [register(probe, ref=100 + i) for i in range(BUFFERS)] == [0] * BUFFERS


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "R18", "MEM-2", "D3")
def test_r8_pages_that_are_not_the_guests_ram(expendable_probe: Probe) -> None:
    """A list that names a device, nothing, or an address beyond memory, or that itself lies there: BAD_PARAMETERS.

    More than sixteen times, and then sixteen good ones: a refusal costs no slot. On a board of its own: D3 makes a
    debug Xen assert when a domain is destroyed after any refusal.
    """
    probe = expendable_probe
    data = probe.pages(4)
    good = [data + 4096 * i for i in range(4)]
    for bad in (0x0900_0000, 0x7000_0000, 0xFFFF_FFFF_F000):
        for pages in ([bad, *good[1:]], [*good[:3], bad]):
            for ref in range(4):
                call = probe.call_with_arg(RegisterShm(tmem(ipas=pages, ref=ref)))
                assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.BAD_PARAMETERS, COMMS), pages
        call = probe.call_with_arg(RegisterShm(tmem(buffer=Buffer((), (bad,), 0, 4 * 4096, 1))))
        assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.BAD_PARAMETERS, COMMS), hex(bad)
    assert [register(probe, ref=100 + i) for i in range(BUFFERS)] == [0] * BUFFERS


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "R18", "MEM-7")
def test_r18_buffers_of_calls_are_given_back(probe: Probe) -> None:
    """Forty calls with a buffer of 129 pages: more than fits at once, but each ends before the next."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    call = probe.begin(Invoke(session, PTA_CMD_PARAMS, [tmem(pages=PAGES)]))
    for _ in range(40):
        again = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [tmem(buffer=call.buffer())]))
        assert (again.x0, again.arg.ret) == (0, 0)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R4", "MEM-8")
def test_r4_registered_memory_is_used_by_reference(probe: Probe) -> None:
    """RMEM parameters reach registered memory; unregistered cookies reach nothing."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    made = probe.call_with_arg(RegisterShm(tmem(pages=2, ref=9)))
    page = made.buffer().pages[0]
    probe.fill(page, 8192, 0x0101010101010101)
    call = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [rmem(9, 300)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    assert probe.read(page, 2) == bytes([300 % 256, 1])
    assert unregister(probe, 9) == 0
    assert probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [rmem(9, 300)])).arg.ret == Tee.BAD_PARAMETERS


@pytest.mark.mc_core
@pytest.mark.mc_rule("R4", "R18", "MEM-6", "MEM-7", "D5")
def test_d5_parameters_before_a_bad_one_are_released(probe: Probe, deviations: Deviations) -> None:
    """A call whose second parameter is refused leaves nothing of its first behind."""
    page = probe.pages(1)
    for _ in range(BUFFERS):
        call = probe.call_with_arg(Invoke(1, PTA_CMD_PARAMS, [tmem(), Plain(Param(0x9, page, 64, 1))]))
        assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.BAD_PARAMETERS, COMMS)
    ret = register(probe, ref=1)
    if ret == Tee.OUT_OF_MEMORY:
        deviations.seen("D5", f"after {BUFFERS} refused calls no buffer can be registered any more: {ret:#x}")
        return
    assert ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("R2", "R4", "R18", "MEM-7", "D3")
def test_d3_failed_registrations_leave_the_count_alone(expendable_probe: Probe, deviations: Deviations) -> None:
    """140 registrations of 129 pages whose first page is bad, then a good one of one page.

    On a board of its own: where the count is wrong, a debug Xen asserts when the domain is destroyed.
    """
    probe = expendable_probe
    data = probe.pages(1)
    pages = [0x7000_0000, *[data] * (PAGES - 1)]
    first = probe.begin(RegisterShm(tmem(ipas=pages, ref=1000)))
    assert first.arg.ret == Tee.BAD_PARAMETERS
    high, low = split(first.arg_page)
    ref_of_the_message = first.arg_page + 32 + 24
    probe.run(
        Loop(
            139,
            (
                Add(ref_of_the_message, 1),
                Drive((CALL_WITH_ARG, high, low), quiet=True),
                If(
                    0xFFFF_FFFF,
                    Tee.BAD_PARAMETERS,
                    (Break(),),
                    ipa=first.arg_page + 20,
                    u32=True,
                    negate=True,
                ),
            ),
        ),
        timeout_s=120,
    )
    stopped = probe.read(ref_of_the_message, 8)
    call = probe.call_with_arg(RegisterShm(tmem(ref=5000)))
    assert call.x0 == 0
    if call.arg.ret == Tee.OUT_OF_MEMORY:
        tries = int.from_bytes(stopped, "little") - 1000 + 1
        deviations.seen("D3", f"after {tries} failed registrations one page cannot be registered: {call.arg.ret:#x}")
        return
    assert call.arg.ret == 0

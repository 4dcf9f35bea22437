# SPDX-License-Identifier: GPL-2.0-or-later
"""CALL_WITH_ARG: errors of the call itself, what is copied in, and exactly what is copied back."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_MEMREF_NULL,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    CloseSession,
    Invoke,
    Message,
    OpenSession,
    Plain,
    null_tmem,
    tmem,
    value,
)
from framework.probe.ops import Drive, Fill, Loop
from medcheck import Deviations, Probe
from mediator_ref.abi import CALL_WITH_ARG, MAX_NUM_PARAMS, Param, RpcFunc, SmcReturn, Tee, decode_arg, split

from ..lib.domains import MOST_CALLS

JUNK = bytes(range(1, 256)) + b"\xee"


def session_of(probe: Probe) -> int:
    """A session with OP-TEE's built-in test TA."""
    call = probe.call_with_arg(OpenSession(INVOKE_TESTS))
    assert (call.x0, call.arg.ret) == (0, 0)
    return call.arg.session


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-2", "STD-4", "R3", "R6", "R15", "R18")
def test_r3_refused_calls_leave_everything_alone(probe: Probe) -> None:
    """A page that is none, or a command that is not mediated: a code in x0, nothing else, and no thread is lost."""
    page = probe.pages(2)
    sent = bytes(OpenSession(INVOKE_TESTS).place(probe)[0])
    for offset in (1, 8, 0x800, 0xFFF):
        probe.write(page + offset, sent[:64])
        high, low = split(page + offset)
        assert probe.smc(CALL_WITH_ARG, high, low, 5, 6)[:5] == (SmcReturn.EBADADDR, high, low, 5, 6)
    for ipa in (0x0, 0x0900_0000, 0x7000_0000, 0x2_0000_0000, 0xFFFF_FFFF_FFFF_F000):
        assert probe.smc(CALL_WITH_ARG, *split(ipa))[0] == SmcReturn.EBADADDR
    for cmd in (6, 7, 8, 9, 0x7F, 0xFFFF_FFFF):
        call = probe.call_with_arg(Message(cmd, fill=JUNK, params=(value(1, 2, 3),)))
        assert call.x0 == SmcReturn.EBADCMD
        assert call.page == call.sent
    assert session_of(probe)


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-1", "STD-3", "R4", "R18", "D8")
def test_r18_refused_calls_give_their_thread_back(probe: Probe) -> None:
    """As many calls as OP-TEE could have threads, refused at each of the mediator's checks; then one that works."""
    plain = Plain(Param(0x9, probe.pages(1), 64, 1))
    bad = [Message(9), Message(0, num_params=MAX_NUM_PARAMS + 1), Invoke(1, PTA_CMD_PARAMS, [plain])]
    addresses = [probe.begin(message).arg_page for message in bad]
    for address in (*addresses, addresses[0] + 8, 0x7000_0000):
        probe.run(Loop(MOST_CALLS, (Drive((CALL_WITH_ARG, *split(address)), quiet=True),)))
    assert session_of(probe)


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-3", "R3", "D8")
def test_d8_too_many_parameters(probe: Probe, deviations: Deviations) -> None:
    """More parameters than a page holds: BAD_PARAMETERS in the page, and a return code in x0."""
    for count in (MAX_NUM_PARAMS + 1, 0x1000, 0xFFFF_FFFF):
        call = probe.call_with_arg(Message(0, num_params=count))
        assert (call.arg.ret, call.arg.ret_origin) == (Tee.BAD_PARAMETERS, 2)
        if call.x0 == CALL_WITH_ARG:
            deviations.seen("D8", f"num_params = {count:#x}: x0 comes back as {call.x0:#x}, the function id")
        else:
            assert call.x0 == SmcReturn.OK


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-3", "R3")
def test_r3_as_many_parameters_as_fit(probe: Probe) -> None:
    """127 parameters fit the page: the call reaches OP-TEE, whose answer comes back."""
    call = probe.call_with_arg(Message(1, session=1, params=(value(),) * MAX_NUM_PARAMS))
    assert call.x0 == SmcReturn.OK
    assert call.arg.ret == Tee.BAD_PARAMETERS


@pytest.mark.mc_rule("STD-9", "R10")
def test_values_go_both_ways(probe: Probe) -> None:
    """An INOUT value: a = a + b; what was not written stays."""
    call = probe.call_with_arg(Invoke(session_of(probe), PTA_CMD_PARAMS, [value(3, 4, 5)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    assert call.arg.params[0] == Param(3, 7, 4, 5)


@pytest.mark.mc_rule("MEM-1", "MEM-9", "R8", "R19")
@pytest.mark.parametrize(("pages", "offset"), [(1, 0), (1, 0xFFF), (3, 0x10), (129, 0), (64, 0x7FF)])
def test_r19_offset_into_the_first_page(probe: Probe, pages: int, offset: int) -> None:
    """OP-TEE sees every byte of a buffer, from its offset on, and its write lands at the first of them."""
    session = session_of(probe)
    call = probe.begin(Invoke(session, PTA_CMD_PARAMS, [tmem(pages=pages, offset=offset)]))
    buffer = call.buffer()
    # The buffer was zero, and its sum too; now each page but the first byte's gets a number.
    marks = [Fill(page, 512, 0x0101010101010101 * (1 + i % 200)) for i, page in enumerate(buffer.pages)]
    probe.run(*marks)
    again = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [tmem(buffer=buffer)]))
    total = sum((1 + i % 200) * (4096 - (offset if i == 0 else 0)) for i in range(pages)) % 256
    assert (again.x0, again.arg.ret, again.arg.params[0].b) == (0, 0, buffer.size)
    assert probe.read(buffer.pages[0] + offset, 1)[0] == total
    if offset:
        assert probe.read(buffer.pages[0] + offset - 1, 1)[0] == 1


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-9", "R22", "ISO-1")
def test_r22_only_results_are_written_back(probe: Probe) -> None:
    """After a call with a buffer the page differs from what was sent in nothing but results: no translated address."""
    session = session_of(probe)
    call = probe.call_with_arg(
        Message(
            1,
            func=PTA_CMD_PARAMS,
            session=session,
            cancel_id=0x77,
            params=(tmem(pages=3, offset=0x24),),
            fill=JUNK,
        )
    )
    assert (call.x0, call.arg.ret) == (0, 0)
    results = {*range(8, 12), *range(20, 28), *range(32 + 16, 32 + 24)}
    changed = {i for i, (a, b) in enumerate(zip(call.sent, call.page, strict=True)) if a != b}
    assert changed <= results
    assert call.arg.params[0].a == call.buffer().buf_ptr


@pytest.mark.mc_core
@pytest.mark.mc_rule("R22", "STD-6", "STD-9", "STD-11", "R15")
def test_r22_the_page_is_read_once(probe: Probe) -> None:
    """What a guest writes into its page while the call runs changes nothing, and the results land in it all the same.

    Attributes, sizes, references and the number of parameters are among what is written.
    """
    memory = tmem(pages=2, offset=0x10, direction="out")
    extra = (value(1, 2, 3, "out"), value(4, 5, 6), tmem(), memory)
    call = probe.begin(OpenSession(NO_TA, extra), park=[RpcFunc.ALLOC])
    probe.fill(call.arg_page, 4096, 0xFFFF_FFFF_FFFF_FFFF)
    call.finish()
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    results = {*range(8, 12), *range(20, 28)}
    for index, offsets in ((2, range(8, 32)), (3, range(8, 32)), (4, range(16, 24)), (5, range(16, 24))):
        results |= {32 + 32 * index + offset for offset in offsets}
    assert {i for i, byte in enumerate(call.page) if byte != 0xFF} <= results
    sent = decode_arg(call.sent).params
    now = [int.from_bytes(call.page[at : at + 8], "little") for at in (32 + 5 * 32 + 16, 32 + 2 * 32 + 24)]
    assert now == [sent[5].b, sent[2].c]


@pytest.mark.mc_core
@pytest.mark.mc_rule("MEM-1", "MEM-2", "MEM-6", "STD-9", "R8", "R18", "R19")
def test_r8_every_kind_of_buffer(probe: Probe) -> None:
    """Four buffers of one direction in a message, with offsets; more often than there are slots.

    The first list's entries have their low bits set, which name nothing.
    """
    session = session_of(probe)
    first = probe.pages(3)
    entries = [first + 4096 * i | 0xFFF for i in range(3)]
    for direction in ("in", "out", "inout"):
        params = [tmem(ipas=entries, offset=0x7F8, direction=direction, size=2 * 4096)]
        params += [tmem(pages=n, offset=n * 8, direction=direction) for n in (1, 2, 5)]
        for _ in range(6):
            call = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, params))
            assert (call.x0, call.arg.ret_origin != 2) == (0, True), "the mediator refused it"
    assert probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [tmem(ipas=entries)])).arg.ret == 0


@pytest.mark.mc_core
@pytest.mark.mc_rule("MEM-3")
def test_null_buffer(probe: Probe) -> None:
    """A NULL buffer needs no pages and reaches the TA as NULL."""
    call = probe.call_with_arg(Invoke(session_of(probe), PTA_CMD_MEMREF_NULL, [null_tmem()]))
    assert (call.x0, call.arg.ret) == (0, 0)


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-2", "STD-5", "CID-1", "R11")
def test_r11_other_registers_of_the_call_are_ignored(probe: Probe) -> None:
    """x3..x7 of CALL_WITH_ARG do not reach OP-TEE: not the cache attribute, not another client's id.

    Of x1 and x2 the low halves count.
    """
    call = probe.begin(OpenSession(INVOKE_TESTS), regs=(0, 11, 12, 13, 1))
    assert (call.x0, call.arg.ret) == (0, 0)
    high, low = split(probe.begin(OpenSession(INVOKE_TESTS)).arg_page)
    again = probe.run(Drive((CALL_WITH_ARG, high | 0xABCD << 32, low | 0xDEAD << 32)))[0]
    assert again.regs[0] == SmcReturn.OK
    closed = probe.call_with_arg(CloseSession(call.arg.session))
    assert (closed.x0, closed.arg.ret) == (0, 0)


@pytest.mark.mc_core
@pytest.mark.mc_rule("MEM-3", "R8", "R17")
def test_r8_contiguous_memory_is_refused(probe: Probe) -> None:
    """Memory named by its address, without a page list, is BAD_PARAMETERS: a guest has no address OP-TEE could use."""
    page = probe.pages(1)
    for attr in (0x9, 0xA, 0xB):
        call = probe.call_with_arg(Invoke(1, PTA_CMD_PARAMS, [Plain(Param(attr, page, 64, 1))]))
        assert (call.x0, call.arg.ret, call.arg.ret_origin) == (0, Tee.BAD_PARAMETERS, 2)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers of a TEE that lies: what it says becomes another in lock-step, before the mediator hears it."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_TRACE,
    TEE_ITEM_NOT_FOUND,
    CloseSession,
    Invoke,
    Message,
    OpenSession,
    RegisterShm,
    UnregisterShm,
    rmem,
    tmem,
    value,
)
from medcheck import Deviations, Limits, Probe
from mediator_ref.abi import (
    ARG_FIELDS,
    FID,
    FUNCTIONS,
    SMCCC_UNKNOWN_FUNCTION,
    Handling,
    MsgCmd,
    RpcCmd,
    RpcFunc,
    SmcReturn,
    Tee,
    split,
)

from ..lib.lying_tee import Answer, Liar, completed, field, putting, saying, to

COOKIE = 0xC0
OTHER = 0x123
"""What the TEE says instead: less than any size that was given."""
COMMS = 2
PATTERN = tuple(0x1111_0000_0000_0000 * (i % 8) + 0xA5A5_0000 + i for i in range(1, 18))
ERRORS = [code for code in SmcReturn if code is not SmcReturn.OK]
FORWARDED = [row for row in FUNCTIONS.values() if row.handling is Handling.FORWARD and "SHM_CACHE" not in row.name]
EXCHANGE, DISABLE, ENABLE = (FID[name] for name in ("EXCHANGE_CAPABILITIES", "DISABLE_SHM_CACHE", "ENABLE_SHM_CACHE"))


def cookie_is_taken(probe: Probe, cookie: int) -> bool:
    """Whether the mediator holds a buffer under that cookie: it takes none of the same."""
    again = probe.call_with_arg(RegisterShm(tmem(ref=cookie)))
    assert again.x0 == SmcReturn.OK
    return (again.arg.ret, again.arg.ret_origin) == (Tee.BAD_PARAMETERS, COMMS)


# Standard calls


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-9", "R3")
@pytest.mark.parametrize("direction", ["out", "inout"])
def test_r3_every_result_comes_back(probe: Probe, liar: Liar, direction: str) -> None:
    """Three values, the size of memory that the call brought, and that of registered memory."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    results = [(field(0, "a"), OTHER), (field(0, "b"), OTHER + 1), (field(0, "c"), OTHER + 2)]
    results += [(field(1, "b"), OTHER + 3), (field(2, "b"), OTHER + 4)]
    liar.at(completed, putting(*results))
    brought, registered = tmem(direction=direction), rmem(COOKIE, 4096, direction=direction)
    answer = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [value(1, 2, 3, direction), brought, registered]))
    assert (answer.x0, answer.arg.ret) == (SmcReturn.OK, 0)
    found = answer.arg.params
    assert (found[0].a, found[0].b, found[0].c) == (OTHER, OTHER + 1, OTHER + 2)
    assert [param.b for param in found[1:]] == [OTHER + 3, OTHER + 4]


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-9", "R3", "R22")
def test_r3_a_size_is_told_however_large(probe: Probe, liar: Liar) -> None:
    """What a TA would need may be more than was lent, as much as 64 bits hold; each buffer is as it was afterwards."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    for size in (4097, 1 << 32, (1 << 64) - 1):
        liar.at(completed, putting((field(0, "b"), size), (field(1, "b"), size - 1)))
        call = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [tmem(direction="out"), tmem(direction="inout")]))
        assert (call.x0, [param.b for param in call.arg.params]) == (SmcReturn.OK, [size, size - 1])


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-8", "R18")
@pytest.mark.parametrize("error", ERRORS)
def test_r18_an_error_of_optee_leaves_nothing(probe: Probe, liar: Liar, error: SmcReturn) -> None:
    """The guest hears it, the call's thread and buffers are free again, and the next call is like any other."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    messages: list[Message] = [Invoke(session, PTA_CMD_TRACE, [tmem(ref=COOKIE), tmem()])] * 3
    messages += [OpenSession(INVOKE_TESTS, [tmem(ref=COOKIE)]), Message(MsgCmd.CANCEL, session=session)]
    for message in (*messages, CloseSession(session)):
        liar.at(completed, saying(error))
        assert probe.call_with_arg(message).x0 == error
    assert not cookie_is_taken(probe, COOKIE)


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-8", "MEM-8", "MEM-10", "R18", "D12")
@pytest.mark.parametrize("error", [SmcReturn.EBUSY, SmcReturn.ENOMEM])
def test_r18_memory_that_optee_turned_away(probe: Probe, liar: Liar, deviations: Deviations, error: SmcReturn) -> None:
    """Registering what OP-TEE turns away by x0 registers nothing; what it did not unregister is still registered."""

    def turn_away(answer: Answer) -> None:
        answer.say(error)
        answer.write(answer.argument + ARG_FIELDS["ret"], Tee.GENERIC.to_bytes(4, "little"))

    for _ in range(Limits().buffers + 1):
        liar.at(completed, turn_away)
        assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).x0 == error
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE + 1))).arg.ret == 0
    liar.at(completed, turn_away)
    assert probe.call_with_arg(UnregisterShm(COOKIE + 1)).x0 == error
    assert cookie_is_taken(probe, COOKIE + 1)
    # And where the message says "success" all the same:
    liar.at(completed, saying(error))
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE + 2))).x0 == error
    if cookie_is_taken(probe, COOKIE + 2):
        deviations.seen("D12", f"OP-TEE answers x0 = {int(error)} to a registration, and the buffer's cookie is taken")


@pytest.mark.mc_core
@pytest.mark.mc_rule("MEM-8", "R18")
def test_r18_a_registration_that_optee_refuses_is_none(probe: Probe, liar: Liar) -> None:
    """More often than a domain may have buffers: each time it is gone again."""
    for _ in range(Limits().buffers + 1):
        liar.at(
            completed,
            lambda answer: answer.write(answer.argument + ARG_FIELDS["ret"], Tee.GENERIC.to_bytes(4, "little")),
        )
        refused = probe.call_with_arg(RegisterShm(tmem(ref=COOKIE)))
        assert (refused.x0, refused.arg.ret) == (SmcReturn.OK, Tee.GENERIC)


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-8", "REGS-1", "R10", "R18")
@pytest.mark.parametrize("code", [8, 0x7FFF_FFFF, 0xFFFE_FFFF, 1 << 32])
def test_r10_a_code_that_does_not_exist(probe: Probe, liar: Liar, code: int) -> None:
    """What is no request ends the call: the guest gets the code, and its buffers are its own again."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    liar.at(completed, saying(code, 0x111, 0x222, 0x333))
    call = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [tmem(ref=COOKIE)]))
    assert (call.x0, {0x111, 0x222, 0x333} & set(call.regs)) == (code, set())
    assert not cookie_is_taken(probe, COOKIE)


@pytest.mark.mc_core
@pytest.mark.mc_rule("REGS-2", "R2", "R10", "D17")
def test_r10_a_function_that_optee_does_not_know(probe: Probe, liar: Liar, deviations: Deviations) -> None:
    """-1 from EL3 is no request: the guest gets it, and no other register."""
    liar.at(completed, saying(SMCCC_UNKNOWN_FUNCTION, 0x111, 0x222, 0x333))
    call = probe.call_with_arg(OpenSession(INVOKE_TESTS))
    assert call.x0 == SMCCC_UNKNOWN_FUNCTION
    if {0x111, 0x222, 0x333} & set(call.regs):
        deviations.seen("D17", "x1..x3 are those of an answer that is none of OP-TEE's")
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0


# Fast calls


@pytest.mark.mc_core
@pytest.mark.mc_rule("FAST-2", "REGS-1", "R10")
def test_r10_answers_to_fast_calls_reach_the_guest(probe: Probe, liar: Liar) -> None:
    """Whatever EL3 says: the documented registers, with all their bits, and no other."""
    for row in FORWARDED:
        for x0 in (*ERRORS, 0, SMCCC_UNKNOWN_FUNCTION, 0x8765_4321_1234_5678):
            said = (x0, *(0xF00D_0000_0000_BEE0 + number for number in range(1, 4)))
            liar.at(to(row.fid), saying(*said))
            regs = probe.smc(row.fid, *PATTERN)
            assert liar.told
            due = tuple(said[i] if i in row.writes else PATTERN[i - 1] for i in range(4))
            assert regs == (*due, *PATTERN[3:]), (row.name, hex(x0))


@pytest.mark.mc_core
@pytest.mark.mc_rule("CAPS-1", "CAPS-2", "REGS-1", "R6", "R10")
def test_r6_capabilities_of_another_optee(probe: Probe, liar: Liar) -> None:
    """Of all that it may offer a guest sees three bits; without DYNAMIC_SHM, or with an error, none."""

    def exchange(*said: int) -> tuple[int, ...]:
        liar.at(to(EXCHANGE), saying(*said))
        regs = probe.smc(EXCHANGE, *PATTERN)
        assert liar.told
        assert regs[2:] == PATTERN[1:]
        return regs[:2]

    for offered, due in ((0xFFFF_FFFF_FFFF_FFFF, 0x16), (0x4, 0x4), (0x6, 0x6), (0x5, 0x4), (0x3E4, 0x4)):
        assert exchange(0, offered, 0x99, 0x99) == (0, due), hex(offered)
    for offered in (0, 1, 2, 0x10, 0xFFFF_FFFB, 0x4 << 32):
        assert exchange(0, offered, 0x99, 0x99) == (SmcReturn.ENOTAVAIL, PATTERN[0]), hex(offered)
    for error in (*ERRORS, SMCCC_UNKNOWN_FUNCTION):
        assert exchange(error, 0x4, 0x99, 0x99) == (error, PATTERN[0])


@pytest.mark.mc_core
@pytest.mark.mc_rule("CACHE-1", "FAST-2", "R10", "R18")
def test_r18_the_cache_gives_back_what_it_says(probe: Probe, liar: Liar) -> None:
    """An error of DISABLE_SHM_CACHE gives back no page, though a cookie stands beside it; a buffer's cookie is none."""
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    cookie = probe.cookie()
    call.give_page(cookie=cookie, park=[RpcCmd.SHM_ALLOC])
    for function in (DISABLE, ENABLE):
        for error in ERRORS:
            liar.at(to(function), saying(error, *split(cookie)))
            assert probe.smc(function, *PATTERN) == (error, *PATTERN)
    for other in (COOKIE, cookie + 1, cookie & 0xFFFF_FFFF, 0):
        liar.at(to(DISABLE), saying(0, *split(other)))
        assert probe.smc(DISABLE, *PATTERN) == (0, *split(other), *PATTERN[2:])
    call.finish()
    assert (call.x0, call.arg.ret) == (SmcReturn.OK, TEE_ITEM_NOT_FOUND)
    assert cookie_is_taken(probe, COOKIE)

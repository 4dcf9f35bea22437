# SPDX-License-Identifier: GPL-2.0-or-later
"""Every function id: what comes back in every register, whichever conduit is used."""

from __future__ import annotations

import pytest

from framework.probe.message import NO_TA, TEE_ITEM_NOT_FOUND, OpenSession
from framework.probe.ops import Call
from medcheck import MakeProbe, Probe
from mediator_ref.abi import (
    FID,
    FUNCTIONS,
    OPTEE_MSG_UID,
    SMCCC_UNKNOWN_FUNCTION,
    Handling,
    RpcFunc,
    SmcReturn,
    pair,
)

PATTERN = tuple(0x1111_0000_0000_0000 * (i % 8) + 0xA5A5_0000 + i for i in range(1, 18))
"""Distinct values for x1..x17; x7 among them is a client id the guest has no right to."""
CONDUITS = ("hvc", "smc")
HIDDEN = [row for row in FUNCTIONS.values() if row.handling in (Handling.UNKNOWN, Handling.HYPERVISOR)]
FORWARDED = [row for row in FUNCTIONS.values() if row.handling is Handling.FORWARD and "SHM_CACHE" not in row.name]
NOBODYS = (0xF2000004, 0x72000004, 0xB20000FF, 0x320000FF, 0xBFFFFFFF, 0xB2010000, 0x30000000, 0xB0000000)
FFA = tuple(base | number for base in (0x84000000, 0xC4000000) for number in range(0x60, 0x90))
"""Functions of the Arm Firmware Framework, owner 4: of a mediator for it, and not of this one."""


@pytest.mark.mc_core
@pytest.mark.mc_rule("R6", "R10", "DISP-2", "REGS-1")
def test_r6_hidden_functions_are_unknown(probe: Probe) -> None:
    """What only the hypervisor may ask for, and what no mediator offers, is -1 and leaves all other registers."""
    fids = [*(row.fid for row in HIDDEN), *NOBODYS, *FFA]
    for conduit in CONDUITS:
        records = probe.run(*(Call((fid, *PATTERN), conduit) for fid in fids))
        for fid, record in zip(fids, records, strict=True):
            assert record.regs == (SMCCC_UNKNOWN_FUNCTION, *PATTERN), f"function {fid:#x} by {conduit}"


@pytest.mark.mc_core
@pytest.mark.mc_rule("R10", "R11", "FAST-1", "FAST-2", "FAST-3", "REGS-1", "CID-1")
def test_r10_functions_write_only_their_registers(probe: Probe) -> None:
    """A forwarded call gives back its documented registers; the guest's x7 does not choose the client.

    CALLS_COUNT and GET_SHM_CONFIG are the mediator's own.
    """
    for conduit in CONDUITS:
        for row in FORWARDED:
            plain = probe.smc(row.fid, conduit=conduit)
            marked = probe.smc(row.fid, *PATTERN, conduit=conduit)
            documented = set(row.writes)
            given = {i: marked[i] for i in documented}
            assert given == {i: plain[i] for i in documented}, (row.name, conduit)
            kept = {i: marked[i] for i in range(1, 18) if i not in documented}
            assert kept == {i: PATTERN[i - 1] for i in kept}, (row.name, conduit)
        for name, answer in (("CALLS_COUNT", 11), ("GET_SHM_CONFIG", 7)):
            assert probe.smc(FID[name], *PATTERN, conduit=conduit) == (answer, *PATTERN), name


@pytest.mark.mc_rule("R6", "FAST-2")
def test_the_api_is_optees(probe: Probe) -> None:
    """CALLS_UID and CALLS_REVISION name OP-TEE's API, revision 2.0."""
    assert probe.smc(FID["CALLS_UID"])[:4] == OPTEE_MSG_UID
    assert probe.smc(FID["CALLS_REVISION"])[:2] == (2, 0)


@pytest.mark.mc_core
@pytest.mark.mc_rule("CAPS-1", "CAPS-2", "R6", "R10")
def test_capabilities(probe: Probe) -> None:
    """A guest sees UNREGISTERED_SHM, DYNAMIC_SHM and MEMREF_NULL at most, whatever it says of itself."""
    for given in (0, 1, 0xFF, 0xFFFF_FFFF_FFFF_FFFF):
        regs = probe.smc(FID["EXCHANGE_CAPABILITIES"], given, *PATTERN[1:])
        assert regs[0] == 0
        assert regs[1] & ~0x16 == 0
        assert regs[1] & 0x14 == 0x14
        assert regs[2:] == PATTERN[1:]


@pytest.mark.mc_core
@pytest.mark.mc_rule("DISP-1", "DISP-2", "R2")
def test_other_immediates_are_undefined(probe: Probe) -> None:
    """A call with a non-zero immediate gets an undefined-instruction exception, and the guest lives on.

    HVC #0xEA1 is Xen's hypercall; HVC #0xFFxx are debugging aids of Xen's debug build. The function id is the low half
    of x0.
    """
    for conduit in CONDUITS:
        for imm in (1, 0x7FFF, 0xFEFF):
            (record,) = probe.run(Call((FID["CALLS_UID"],), conduit, imm, catch=True))
            assert record.fault is not None
            assert record.fault.exception_class == 0
        assert probe.smc(0xDEAD_BEEF << 32 | FID["CALLS_UID"], conduit=conduit)[:4] == OPTEE_MSG_UID


@pytest.mark.mc_core
@pytest.mark.mc_rule("CACHE-1", "R6", "R18")
def test_a_cookie_that_was_given_back_is_free(probe: Probe) -> None:
    """OP-TEE keeps a call's RPC page until the cache is disabled, or frees it: either way its cookie may come again."""
    assert probe.smc(FID["DISABLE_SHM_CACHE"], *PATTERN) == (SmcReturn.ENOTAVAIL, *PATTERN)
    assert probe.smc(FID["ENABLE_SHM_CACHE"], *PATTERN) == (0, *PATTERN)
    page, cookie = probe.pages(1), 0x1234_5678_9ABC_DEF0
    for _ in range(3):
        call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        call.give_page(page, cookie=cookie)
        assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
        regs = probe.smc(FID["DISABLE_SHM_CACHE"], *PATTERN)
        assert (regs[0], pair(regs[1], regs[2]), regs[3:]) == (0, cookie, PATTERN[2:])
        assert probe.smc(FID["DISABLE_SHM_CACHE"], *PATTERN) == (SmcReturn.ENOTAVAIL, *PATTERN)
        assert probe.smc(FID["ENABLE_SHM_CACHE"], *PATTERN) == (0, *PATTERN)


@pytest.mark.mc_core
@pytest.mark.mc_rule("DISP-4", "R6")
def test_a_domain_without_tee_finds_nothing(make_probe: MakeProbe) -> None:
    """A domain created without ``tee`` gets -1 for everything, and no call of it reaches OP-TEE."""
    probe = make_probe("bare", tee=False)
    for row in FUNCTIONS.values():
        assert probe.smc(row.fid, *PATTERN) == (SMCCC_UNKNOWN_FUNCTION, *PATTERN), row.name

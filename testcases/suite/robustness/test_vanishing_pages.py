# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that a guest gives back to Xen while a call still needs them."""

from __future__ import annotations

import pytest

from framework.probe.message import INVOKE_TESTS, NO_TA, OpenSession
from framework.probe.ops import Drive
from framework.probe.xen import balloon_in, balloon_out
from medcheck import Deviations, Probe
from mediator_ref.abi import SMCCC_UNKNOWN_FUNCTION, RpcCmd, RpcFunc, SmcReturn


@pytest.mark.mc_core
@pytest.mark.mc_rule("R15", "STD-10", "D7")
def test_d7_argument_page_that_is_gone_at_the_end(probe: Probe, deviations: Deviations) -> None:
    """The results cannot be written: EBADADDR, for an unchanged page must not be taken for them."""
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    balloon_out(probe, call.arg_page)
    (record,) = probe.run(Drive(call.regs[:8], answer=True), timeout_s=60)
    balloon_in(probe, call.arg_page)
    assert probe.read(call.arg_page, 64) != call.sent[:64]
    if record.x0 == SmcReturn.OK:
        deviations.seen("D7", "x0 = 0 although the argument page was gone and no result could be written")
        return
    assert record.x0 == SmcReturn.EBADADDR


@pytest.mark.mc_core
@pytest.mark.mc_rule("R10", "R15", "RPC-11", "REGS-2", "D6", "D17")
def test_d6_command_page_that_is_gone(probe: Probe, deviations: Deviations) -> None:
    """A command cannot be delivered: the mediator tells OP-TEE so by CALL_RETURN_FROM_RPC, and the call ends.

    On a board of its own: where the mediator resumes with a wrong function, OP-TEE loses a thread.
    """
    call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    page = probe.pages(1)
    call.give_page(page, park=[RpcCmd.SHM_ALLOC])
    assert call.request().cmd == RpcCmd.SHM_ALLOC
    balloon_out(probe, page)
    # Answered with what stood in the page; the next command finds no page. Only the low half of x3 is the thread.
    thread = call.thread | 0xA5A5 << 32
    regs = (0x32000003, call.regs[1], call.regs[2], thread)
    (record,) = probe.run(Drive(regs, max_rpcs=1), timeout_s=60)
    for _ in range(1000):
        if record.x0 & 0xFFFFFFFF != 0xFFFF0004:
            break
        (record,) = probe.run(Drive((0x32000003, 0, 0, record.regs[3]), max_rpcs=1), timeout_s=60)
    if record.x0 == SMCCC_UNKNOWN_FUNCTION:
        deviations.seen("D6", "x0 = -1 for a call that OP-TEE had suspended: it was resumed by no function of OP-TEE's")
        if record.regs[1:4] != regs[1:4]:
            deviations.seen("D17", f"with it come x1..x3 of EL3: {', '.join(map(hex, record.regs[1:4]))}")
        return
    assert record.x0 in (SmcReturn.OK, 0xFFFF0002)
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).x0 == SmcReturn.OK

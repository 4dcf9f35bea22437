# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory by reference: what a message may name, and attributes that name nothing."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    PTA_CMD_TRACE,
    TEE_ITEM_NOT_FOUND,
    Invoke,
    OpenSession,
    Plain,
    rmem,
    tmem,
)
from medcheck import Deviations, Probe
from mediator_ref.abi import Attr, Param, RpcFunc, SmcReturn, Tee

UNDEFINED = 1 << 63 | 1 << 32 | 1 << 24 | 1 << 10
"""Attribute bits that no version of the ABI defines."""


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-11", "D19")
def test_d19_memory_of_another_call_by_reference(probe: Probe, deviations: Deviations) -> None:
    """A buffer that a call brought ends with that call: no other call may name it by reference.

    Where OP-TEE accepts it, it goes on using memory that the mediator has let go of.
    """
    first = probe.begin(OpenSession(NO_TA, [tmem(ref=0xC0)]), park=[RpcFunc.ALLOC])
    assert not first.done
    second = probe.begin(OpenSession(NO_TA, [rmem(0xC0, 64)]), park=[RpcFunc.ALLOC])
    if second.done:
        assert (second.x0, second.arg.ret) == (SmcReturn.OK, Tee.BAD_PARAMETERS)
    else:
        deviations.seen("D19", "OP-TEE goes on with a call that names the buffer of another call by reference")
    for call in (first, second):
        if not call.done:
            call.finish()
            assert (call.x0, call.arg.ret) == (SmcReturn.OK, TEE_ITEM_NOT_FOUND)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-11", "D19")
def test_o2_memory_of_an_ended_call_by_reference(probe: Probe, deviations: Deviations) -> None:
    """A buffer that a call brought is gone with it, for the mediator and for OP-TEE (finding O2: 4.10 keeps it)."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    brought = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [tmem(ref=0xC0)]))
    assert (brought.x0, brought.arg.ret) == (SmcReturn.OK, 0)
    for cookie in (0xC0, 0xC1):
        named = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [rmem(cookie, 64)]))
        assert named.x0 == SmcReturn.OK
        if cookie == 0xC0 and not named.arg.ret:
            deviations.seen("D19", "OP-TEE accepts by reference the buffer of a call that has ended")
        else:
            assert named.arg.ret == Tee.BAD_PARAMETERS


@pytest.mark.mc_core
@pytest.mark.mc_rule("R8", "MEM-11", "D21")
def test_d21_the_mediators_copies_of_messages_by_reference(probe: Probe, deviations: Deviations) -> None:
    """No reference names what the mediator made for itself: a guest shared nothing under cookie 0."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    named = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [rmem(0, 64)]))
    assert named.x0 == SmcReturn.OK
    if named.arg.ret:
        assert named.arg.ret == Tee.BAD_PARAMETERS
    else:
        deviations.seen("D21", "OP-TEE accepts by reference the mediator's copy of the guest's message")


@pytest.mark.mc_core
@pytest.mark.mc_rule("R3", "R6", "STD-12", "D16")
def test_d16_undefined_attribute_bits(probe: Probe) -> None:
    """Bits of an attribute that the ABI does not define do not reach OP-TEE, or the message is refused.

    What they would do there is in the trace only, for this OP-TEE does not look at them.
    """
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    param = Param(Attr.VALUE_INOUT | UNDEFINED, 3, 4, 5)
    call = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [Plain(param)]))
    assert call.x0 == SmcReturn.OK
    assert call.arg.params[0].attr == param.attr, "attributes are not written back"
    if call.arg.ret:
        assert (call.arg.ret, call.arg.ret_origin) == (Tee.BAD_PARAMETERS, 2)
    else:
        assert call.arg.params[0].a == 7

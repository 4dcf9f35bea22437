# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's OP-TEE without any memory left: what it turns away by x0 alone, before it reads the message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    CloseSession,
    Message,
    OpenSession,
    RegisterShm,
    UnregisterShm,
    tmem,
)
from framework.probe.ops import Add, Break, Drive, If, Loop
from medcheck import Deviations, Probe
from mediator_ref.abi import ARG_FIELDS, CALL_WITH_ARG, U32, RpcCmd, RpcFunc, SmcReturn, Tee, decode_arg, split

BUFFERS = 16
COMMS = 2
MOST = 5000
"""More sessions than OP-TEE's memory for a guest holds."""
KEPT = 4


def preset(message: Message) -> Message:
    """``message`` as a driver sends it: with "success" in ``ret`` before any answer."""
    return replace(message, ret=Tee.SUCCESS)


def fill(probe: Probe) -> tuple[int, int]:
    """Open sessions until OP-TEE has no memory for one more; the first one's id and the last one's."""
    first = probe.begin(OpenSession(INVOKE_TESTS))
    assert (first.x0, first.arg.ret) == (0, 0)
    count = probe.pages(1)
    ret = first.arg_page + ARG_FIELDS["ret"]
    again = Drive((CALL_WITH_ARG, *split(first.arg_page)), quiet=True)
    failed = If(U32, 0, (Break(),), ipa=ret, u32=True, negate=True)
    probe.run(Loop(MOST, (again, failed, Add(count, 1))), timeout_s=300)
    assert decode_arg(probe.read(first.arg_page, 32)).ret == Tee.OUT_OF_MEMORY
    return first.arg.session, first.arg.session + int.from_bytes(probe.read(count, 8), "little")


def close(probe: Probe, highest: int, lowest: int) -> None:
    """Close sessions from the last one opened downwards."""
    call = probe.begin(CloseSession(highest))
    assert (call.x0, call.arg.ret) == (0, 0)
    session = call.arg_page + ARG_FIELDS["session"]
    again = Drive((CALL_WITH_ARG, *split(call.arg_page)), quiet=True)
    probe.run(Loop(highest - lowest, (Add(session, U32, u32=True), again)), timeout_s=300)
    left = decode_arg(probe.read(call.arg_page, 32))
    assert (left.ret, left.session) == (0, lowest)


def exhaust(probe: Probe) -> int:
    """Leave OP-TEE nothing, not even what it needs to read a message; how many buffers are registered, from 1 on.

    While the first sessions are opened each leaves a gap where its message was; when all but a few are closed and
    opened again, messages use the gaps of those few, and the rest of the memory is sessions without a gap between
    them. Registered buffers of fitting sizes fill what is left, up to the last gap, which each message needs and gives
    back. That one goes to a call that has been waiting: it is answered with memory, and waits again.
    """
    waiting = probe.begin(OpenSession(NO_TA), park=[RpcCmd.SHM_ALLOC])
    first, last = fill(probe)
    close(probe, last - KEPT, first + KEPT)
    fill(probe)
    page, made = probe.pages(1), 0
    for pages in range(10, 0, -1):
        while (call := probe.call_with_arg(RegisterShm(tmem(ipas=[page] * pages, ref=made + 1)))).arg.ret == 0:
            assert call.x0 == SmcReturn.OK
            made += 1
        assert (call.x0, call.arg.ret_origin != COMMS) == (SmcReturn.OK, True), "the buffers were used up first"
    waiting.give_memory(park=[RpcFunc.CMD])
    assert not waiting.done
    return made


@pytest.mark.slow
@pytest.mark.mc_rule("R2", "R4", "R18", "MEM-6", "MEM-8", "MEM-10", "D12")
def test_d12_what_optee_turned_away_is_not_done(probe: Probe, deviations: Deviations) -> None:
    """EBADADDR from OP-TEE: a buffer is not registered then, and one that was to be unregistered still is."""
    registered = exhaust(probe)
    assert registered
    refused = probe.call_with_arg(preset(RegisterShm(tmem(ref=100))))
    assert refused.x0 == SmcReturn.EBADADDR, "OP-TEE still has memory"
    turned_away = 1
    while turned_away <= BUFFERS and refused.x0 == SmcReturn.EBADADDR:
        refused = probe.call_with_arg(preset(RegisterShm(tmem(ref=100 + turned_away))))
        turned_away += refused.x0 == SmcReturn.EBADADDR
    if (refused.x0, refused.arg.ret, refused.arg.ret_origin) == (SmcReturn.OK, Tee.OUT_OF_MEMORY, COMMS):
        deviations.seen("D12", f"{turned_away} registrations that OP-TEE turned away took {turned_away} slots")
    else:
        assert refused.x0 == SmcReturn.EBADADDR
    kept = probe.call_with_arg(preset(UnregisterShm(1)))
    assert kept.x0 == SmcReturn.EBADADDR
    again = probe.call_with_arg(RegisterShm(tmem(ref=1)))
    if again.x0 == SmcReturn.EBADADDR:
        deviations.seen("D12", "a buffer that OP-TEE did not unregister is released: its cookie is free again")
        return
    assert (again.x0, again.arg.ret, again.arg.ret_origin) == (SmcReturn.OK, Tee.BAD_PARAMETERS, COMMS)

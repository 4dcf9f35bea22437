# SPDX-License-Identifier: GPL-2.0-or-later
"""Malformed messages and answers, thousands of them: only defined errors, and all guests live on."""

from __future__ import annotations

import random

import pytest

from framework.probe.message import INVOKE_TESTS, NO_TA, TEE_ITEM_NOT_FOUND, OpenSession
from framework.probe.ops import Drive, Op, Read, Write
from medcheck import Probe
from mediator_ref.abi import CALL_WITH_ARG, U32, Arg, Param, RpcFunc, decode_arg, encode_arg, split

from ..lib.random_calls import DEFINED_X0, message, word

BATCH = 20


@pytest.mark.slow
@pytest.mark.mc_rule("R2", "R3", "R18", "STD-2", "STD-4", "MEM-2")
@pytest.mark.parametrize("seed", range(2))
def test_r3_gibberish_in_the_argument_page(probe: Probe, seed: int) -> None:
    """Random messages from a seed: x0 is a defined return code, and the guest is answered afterwards.

    On a board of its own: random lists are bad lists, and D3 makes a debug Xen assert when the domain is destroyed.
    """
    rng = random.Random(seed)
    page = probe.pages(1)
    for _ in range(10):
        sent = [message(rng) for _ in range(BATCH)]
        ops: list[Op] = []
        for content in sent:
            ops += [Write(page, content), Drive((CALL_WITH_ARG, *split(page)))]
        for content, record in zip(sent, probe.run(*ops, timeout_s=120), strict=True):
            assert record.x0 & U32 in DEFINED_X0, f"{record.x0:#x} for {decode_arg(content)}"
    assert probe.smc(0xBF00FF01)[0] == 0x384FB3E0


@pytest.mark.slow
@pytest.mark.mc_rule("R2", "R3", "RPC-4", "RPC-8", "RPC-9")
@pytest.mark.parametrize("seed", range(2))
def test_r3_gibberish_in_answers(probe: Probe, seed: int) -> None:
    """Random answers to OP-TEE's commands: every call ends with a defined return code."""
    rng = random.Random(1000 + seed)
    for _ in range(5):
        call = probe.begin(OpenSession(NO_TA), park=[RpcFunc.CMD])
        for _ in range(30):
            if call.done:
                break
            request = call.request()
            # The command stays: changing it is D11's subject, as is a contiguous address D1's.
            params = tuple(
                Param(rng.choice([0, 1, 2, 3, 0x20A, 0x209, 0x20B]), word(rng), word(rng), word(rng))
                for _ in range(rng.randrange(2))
            )
            content = encode_arg(Arg(request.cmd, ret=rng.choice([0, 0, 0xFFFF0000, word(rng) & U32]),
                                     num_params=len(params), params=params))  # fmt: skip
            before: list[Op] = [Write(call.rpc_page(), content[: 32 + 32 * len(params)])]
            call.resume(call.regs[1], call.regs[2], park=[RpcFunc.CMD], before=before)
        if not call.done:
            call.finish()
        assert call.x0 & U32 in DEFINED_X0
    final = probe.call_with_arg(OpenSession(NO_TA))
    assert final.x0 == 0
    assert final.arg.ret in (TEE_ITEM_NOT_FOUND, 0xFFFF000C)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R2")
def test_r2_the_probe_itself_survives_a_fault(probe: Probe) -> None:
    """An access to nothing is reported with its address, and the guest and Xen go on."""
    (record,) = probe.run(Read(0x9000_0000, 8, catch=True))
    assert record.fault is not None
    assert record.fault.far == 0x9000_0000
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0

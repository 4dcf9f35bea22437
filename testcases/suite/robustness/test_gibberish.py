# SPDX-License-Identifier: GPL-2.0-or-later
"""Thousands of random calls, one program each, through the doorbell: only defined answers, and all guests live on."""

from __future__ import annotations

import random

import pytest

from framework.probe.message import INVOKE_TESTS, OpenSession
from framework.probe.ops import Drive, Write
from medcheck import Probe, Target
from mediator_ref.abi import (
    CALL_WITH_ARG,
    CALLS_UID,
    FUNCTIONS,
    OPTEE_MSG_UID,
    SMCCC_UNKNOWN_FUNCTION,
    U32,
    U64,
    Handling,
    SmcReturn,
    decode_arg,
    fid_of,
    split,
)

from ..lib.random_calls import DEFINED_X0, function_id, message, word

PAGES = 4000
FUNCTION_IDS = 4000


def everybody_lives(probe: Probe, target: Target) -> None:
    """The guest is answered, OP-TEE opens a session, dom0 runs a command, Xen has not complained."""
    assert probe.smc(CALLS_UID)[:4] == OPTEE_MSG_UID
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0
    assert target.dom0.run("xl list probe0").rc == 0
    target.check_alive()


@pytest.mark.slow
@pytest.mark.mc_rule("R2", "R3", "R18", "STD-2", "STD-4", "MEM-2")
def test_r3_thousands_of_argument_pages(probe: Probe, target: Target) -> None:
    """Each message by itself, so that each answer is seen before the next: x0 is a defined return code."""
    rng = random.Random(20)
    page = probe.pages(1)
    for number in range(PAGES):
        content = message(rng)
        record = probe.run(Write(page, content), Drive((CALL_WITH_ARG, *split(page))))[0]
        assert record.x0 & U32 in DEFINED_X0, f"page {number}: {record.x0:#x} for {decode_arg(content)}"
    everybody_lives(probe, target)


@pytest.mark.slow
@pytest.mark.mc_rule("R2", "R3", "R6", "DISP-2", "REGS-1")
def test_r6_thousands_of_function_ids(probe: Probe, target: Target) -> None:
    """Any function id with any registers: unknown ones give -1 and change nothing else, calls a defined return code."""
    rng = random.Random(21)
    for number in range(FUNCTION_IDS):
        regs = (function_id(rng), *(word(rng) & U64 for _ in range(17)))
        found = probe.run(Drive(regs, rng.choice(["hvc", "smc"])))[0].regs
        row = FUNCTIONS.get(fid_of(regs[0]))
        told = f"call {number}: {', '.join(map(hex, regs))} gave {', '.join(map(hex, found))}"
        if row is None or row.handling in (Handling.UNKNOWN, Handling.HYPERVISOR):
            assert found == (SMCCC_UNKNOWN_FUNCTION, *regs[1:]), told
        elif row.handling is Handling.STANDARD:
            assert found[0] & U32 in DEFINED_X0, told
        elif row.handling is Handling.RESUME:
            assert found == (SmcReturn.ERESUME, *regs[1:]), told
    everybody_lives(probe, target)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage of the specification: which of its outcomes a trace gave occasion for."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.rules import RuleId
from mediator_ref.spec.outcome import (
    Answer,
    Complete,
    Deliver,
    Expected,
    FastReturn,
    Forward,
    Offer,
    Refuse,
    Reply,
    ReplyKind,
    Restart,
    Unknown,
)

R = RuleId
REFUSING = (
    R.DISP_1, R.DISP_2, R.DISP_3, R.DISP_4, R.FAST_3, R.STD_1, R.STD_2, R.STD_3, R.STD_4, R.MEM_3, R.MEM_4, R.MEM_5,
    R.MEM_6, R.MEM_7, R.MEM_8, R.RPC_5,
)  # fmt: skip
"""Rules by which a call is answered without OP-TEE."""
OUTCOMES = (
    *(f"answered by the mediator: {rule}" for rule in REFUSING),
    "forwarded: fast call",
    "forwarded: message without buffers",
    "forwarded: message with buffers",
    "resumed: nothing to copy",
    "resumed: offered page taken",
    "resumed: offered page turned down",
    *(f"resumed: {kind.value}" for kind in ReplyKind),
    "answer: fast call",
    "answer: result",
    "answer: result that cannot be written",
    "answer: request in registers",
    "answer: request in the RPC page",
    "answer: request that cannot be delivered",
)
"""All outcomes of the specification, in the order of a call."""


def outcome_of_call(expected: Expected) -> str | None:
    """Name what has to follow a guest's call; None when that is not known."""
    match expected:
        case Refuse():
            return f"answered by the mediator: {expected.rule}"
        case Offer():
            return f"resumed: offered page {'turned down' if expected.reason else 'taken'}"
        case Reply():
            return f"resumed: {expected.kind.value}"
        case Forward():
            if expected.request is not None:
                buffers = expected.translation is not None and expected.translation.buffers
                return f"forwarded: message {'with' if buffers else 'without'} buffers"
            return "resumed: nothing to copy" if expected.regs[0] == abi.RETURN_FROM_RPC else "forwarded: fast call"
    return None


def outcome_of_answer(answer: Answer | None) -> str | None:
    """Name what has to follow OP-TEE's answer; None when that is not known."""
    match answer:
        case FastReturn():
            return "answer: fast call"
        case Complete():
            return "answer: result" if answer.writable is not False else "answer: result that cannot be written"
        case Deliver():
            if isinstance(answer.page, Unknown):
                return None
            return f"answer: request in {'registers' if answer.page is None else 'the RPC page'}"
        case Restart():
            return "answer: request that cannot be delivered"
    return None

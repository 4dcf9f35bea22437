# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed alone: shortcuts for what nearly every event of a long trace looks like. Nothing here decides anything."""

from __future__ import annotations

from enum import Enum

from mediator_ref import abi
from mediator_ref.events import PageKind, Registers
from mediator_ref.knowledge import Phase
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.outcome import ReplyKind
from mediator_ref.verdict import Tally


def _plain_members(*enums: type[Enum]) -> None:
    """Make members plain attributes of their class: Python 3.11 looks them up through a descriptor, much slower."""
    for enum in enums:
        for name, member in enum.__members__.items():
            type.__setattr__(enum, name, member)


_plain_members(RuleId, DeviationId, PageKind, Phase, ReplyKind, abi.Handling, abi.SmcReturn, abi.RpcFunc)
_plain_members(abi.Attr, abi.MsgCmd, abi.RpcCmd, abi.Tee)
_REGS_1, _ISO_1 = RuleId.REGS_1, RuleId.ISO_1


def guest_registers_as_expected(
    tally: Tally, rule: RuleId, before: Registers, written: Registers, observed: Registers
) -> bool:
    """Count the three passes of a guest's registers that are all as expected; false when they have to be compared."""
    if observed != written + before[len(written) :]:
        return False
    passes = tally.passes
    passes[rule] += 1
    passes[_REGS_1] += 1
    passes[_ISO_1] += 1
    return True

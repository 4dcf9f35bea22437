"""Speed alone: shortcuts for what nearly every event of a long trace looks like. Nothing here decides anything new."""

from __future__ import annotations

from mediator_ref.events import Registers
from mediator_ref.rules import RuleId
from mediator_ref.verdict import Tally

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

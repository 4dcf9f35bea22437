# SPDX-License-Identifier: GPL-2.0-or-later
"""D8: x0 is not set for too many parameters."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import Refuse


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.STD_10 and not (isinstance(m.expected, Refuse) and m.expected.rule is RuleId.STD_3):
        return False  # STD-10: the result could not be written either
    return m.pending is not None and m.x0_of_guest() == m.pending.event.regs[0]


D8 = Deviation(
    id=DeviationId.D8,
    rules=(RuleId.STD_3, RuleId.STD_10),
    title="x0 is not set for too many parameters",
    condition="x0 is the function id the guest called with",
    where="handle_std_call",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus="num_params = 128",
    explains=_explains,
)

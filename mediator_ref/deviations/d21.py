# SPDX-License-Identifier: GPL-2.0-or-later
"""D21: a message may name by reference the mediator's own copies of messages."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    if m.rule == RuleId.MEM_11:
        return m.fields == {"messages"}
    # OP-TEE writes there what the guest had it write.
    return m.call is not None and m.call.named_messages


D21 = Deviation(
    id=DeviationId.D21,
    rules=(RuleId.MEM_11, RuleId.STD_11),
    title="a message may name by reference the mediator's own copies of messages",
    condition="OP-TEE accepted a reference with cookie 0, under which it has the pages of messages",
    where="translate_params",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="call with a reference to cookie 0",
    explains=_explains,
    disclosure=True,
)

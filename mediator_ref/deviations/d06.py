# SPDX-License-Identifier: GPL-2.0-or-later
"""D6: an undeliverable request is resumed with OP-TEE's x0 instead of CALL_RETURN_FROM_RPC."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.events import El3Call
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    if not isinstance(m.observed, El3Call) or m.pending is None or m.fields != {"x0"}:
        return False
    return m.observed.regs[0] == m.pending.returned[0]


D6 = Deviation(
    id=DeviationId.D6,
    rules=(RuleId.RPC_11,),
    title="an undeliverable request is resumed with OP-TEE's x0 instead of CALL_RETURN_FROM_RPC",
    condition="x0 at EL3 repeats what OP-TEE returned, and all else is right",
    where="do_call_with_arg",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus="balloon out the RPC page, then cause any RPC command",
    explains=_explains,
)

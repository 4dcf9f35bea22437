# SPDX-License-Identifier: GPL-2.0-or-later
"""D17: an answer of EL3 that is none of OP-TEE's is taken for a request, and its x1..x3 reach the guest."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.events import GuestReturn
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    if not isinstance(m.observed, GuestReturn) or m.pending is None or not m.fields <= {"x1", "x2", "x3"}:
        return False
    return m.observed.regs[:4] == m.pending.returned[:4] or m.observed.regs[:4] == (
        m.pending.returned[0],
        *m.pending.undelivered[1:4],
    )


D17 = Deviation(
    id=DeviationId.D17,
    rules=(RuleId.REGS_2,),
    title="an answer of EL3 that is none of OP-TEE's is taken for a request, and its x1..x3 reach the guest",
    condition="x0 is -1 or an RPC that does not exist, and x1..x3 are EL3's",
    where="do_call_with_arg, handle_rpc_return",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus="as D6, of which it is a consequence: EL3 answers -1 to the wrong function",
    explains=_explains,
)

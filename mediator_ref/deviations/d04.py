# SPDX-License-Identifier: GPL-2.0-or-later
"""D4: the reply's page is looked up by the guest's x1:x2; an unknown cookie loses the call."""

from __future__ import annotations

from mediator_ref.defect_model import no_thread_left
from mediator_ref.deviations.deviation import Deviation, Mismatch, replies_from_another_page
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.LIFE_7:
        return DeviationId.D4 in m.assertions
    if m.rule is RuleId.STD_1:
        lost = m.domain is not None and no_thread_left(m.domain, m.domain.defects, m.threads)
        return lost and m.x0_of_guest() is not None
    if m.pending is None or not replies_from_another_page(m.pending):
        return False
    return m.at_el3 or (m.rule is RuleId.RPC_7 and m.pending.arg_ipa not in m.pending.domain.rpcs)


D4 = Deviation(
    id=DeviationId.D4,
    rules=(RuleId.RPC_4, RuleId.RPC_7, RuleId.RPC_10, RuleId.RPC_12, RuleId.STD_1, RuleId.LIFE_7),
    title="the reply's page is looked up by the guest's x1:x2; an unknown cookie loses the call",
    condition="x1:x2 differ from those of the request (all RPC rules), or lost calls reach the thread limit (STD-1)",
    where="handle_rpc_cmd",
    severity=Severity.AVAILABILITY,
    status="seen",
    stimulus="zero x1 and x2 when returning from RPC_CMD",
    explains=_explains,
)

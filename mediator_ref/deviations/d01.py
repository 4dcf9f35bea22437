# SPDX-License-Identifier: GPL-2.0-or-later
"""D1: a contiguous address in the reply to SHM_ALLOC goes to OP-TEE untranslated."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch, passes_on
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import ReplyKind


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.BOOK_6:
        return passes_on(DeviationId.D1, m)
    hidden = m.reply is not None and m.reply.kind is ReplyKind.HIDE_ADDRESS and not m.reply.renamed
    return hidden and m.reply_as_given


D1 = Deviation(
    id=DeviationId.D1,
    rules=(RuleId.RPC_8, RuleId.BOOK_6),
    title="a contiguous address in the reply to SHM_ALLOC goes to OP-TEE untranslated",
    condition="the reply has ret = 0, one parameter with attr 0x0A and an address",
    where="handle_rpc_cmd_alloc",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="answer SHM_ALLOC with attr 0x0A and an address of the guest's choice",
    explains=_explains,
    disclosure=True,
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""D11: whether a reply is one to SHM_ALLOC is read from the reply, not from the request."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.deviations.deviation import Deviation, Mismatch, breaks_accounting, passes_on
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import Reply


def misleads(m: Reply, requested: int | None) -> bool:
    """Tell whether the cmd of a reply decides if its address is translated: the occasion for this deviation."""
    if not m.renamed or len(m.params) != 1 or abi.U32_AT.unpack_from(m.page, abi.ARG_FIELDS["ret"])[0]:
        return False
    offers_buffer = m.params[0].attr in (abi.Attr.TMEM_OUTPUT, abi.RPC_ALLOC_ATTR) and m.params[0].a != 0
    return offers_buffer and abi.RpcCmd.SHM_ALLOC in (abi.U32_AT.unpack_from(m.page)[0], requested)


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.BOOK_6:
        return passes_on(DeviationId.D11, m)
    if m.rule not in (RuleId.RPC_4, RuleId.RPC_8):
        return breaks_accounting(DeviationId.D11, m)
    if m.reply is None or not m.reply.renamed:
        return False
    # The reply was taken for one to SHM_ALLOC: nothing but its address differs, or the guest was asked to free its
    # buffer. Or it was not: it is as the guest gave it.
    if m.rule is RuleId.RPC_8:
        return m.reply_as_given
    return not m.at_el3 or m.fields == {"params[0].buf_ptr"}


D11 = Deviation(
    id=DeviationId.D11,
    rules=(RuleId.RPC_4, RuleId.RPC_8, RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8, RuleId.BOOK_6),
    title="whether a reply is one to SHM_ALLOC is read from the reply, not from the request",
    condition="the guest changed cmd in its reply to or from SHM_ALLOC",
    where="handle_rpc_cmd",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="answer SHM_ALLOC with cmd = GET_TIME and a page list of one's own",
    explains=_explains,
    disclosure=True,
)

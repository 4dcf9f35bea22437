# SPDX-License-Identifier: GPL-2.0-or-later
"""D4: the reply's page is looked up by the guest's x1:x2; an unknown cookie loses the call."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.defect_model import no_thread_left
from mediator_ref.deviations.deviation import Deviation, Mismatch, replies_from_another_page
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import ReplyKind


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.LIFE_7:
        return DeviationId.D4 in m.assertions
    if m.rule is RuleId.STD_1:
        lost = m.domain is not None and no_thread_left(m.domain, m.domain.defects, m.threads)
        return lost and m.x0_of_guest() is not None
    if m.rule is RuleId.BOOK_4:
        return m.domain is not None and m.domain.defects.lost_calls > 0 and "calls in flight" in m.fields
    if m.pending is None or not replies_from_another_page(m.pending):
        return False
    another = m.pending.arg_ipa in m.pending.domain.rpcs
    if m.rule is RuleId.RPC_7:
        return not another
    return another and m.at_el3 and _left_alone(m)


def _left_alone(m: Mismatch) -> bool:
    """The reply went into the shadow of another page: that of the request is as OP-TEE, or the mediator, left it."""
    if m.reply is None or m.reply.rpc.shadow is None:
        return False
    if m.reply.kind is ReplyKind.XEN_RPC_DONE:
        asked = [abi.U32_AT.unpack_from(m.shadow, abi.ARG_FIELDS[name])[0] for name in ("cmd", "ret", "num_params")]
        return asked == [abi.RpcCmd.SHM_FREE, abi.Tee.GENERIC, 1]
    return m.shadow == m.reply.rpc.shadow


D4 = Deviation(
    id=DeviationId.D4,
    rules=(RuleId.RPC_4, RuleId.RPC_7, RuleId.RPC_10, RuleId.RPC_12, RuleId.STD_1, RuleId.LIFE_7, RuleId.BOOK_4),
    title="the reply's page is looked up by the guest's x1:x2; an unknown cookie loses the call",
    condition=(
        "x1:x2 name no RPC page, and no register is changed (RPC-7); or another one, and the shadow of the request is "
        "as it was; or lost calls reach the thread limit (STD-1)"
    ),
    where="handle_rpc_cmd",
    severity=Severity.AVAILABILITY,
    status="seen",
    stimulus="zero x1 and x2 when returning from RPC_CMD",
    explains=_explains,
)

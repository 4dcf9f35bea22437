# SPDX-License-Identifier: GPL-2.0-or-later
"""D13: OP-TEE's FREE for a page that was turned down releases the live RPC page of the same cookie, and its shadow."""

from __future__ import annotations

from mediator_ref.defect_model import no_thread_left
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.events import FrameReleased
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import Offer


def _explains(m: Mismatch) -> bool:
    if m.domain is None:
        return False
    if m.rule is RuleId.STD_1:
        defects = m.domain.defects
        return defects.lost_with_their_page > 0 and no_thread_left(m.domain, defects, m.threads)
    released = m.domain.defects.released_rpcs
    if m.rule is RuleId.MEM_10:
        mfn = m.observed.mfn if isinstance(m.observed, FrameReleased) else None
        return mfn is not None and any(rpc.mfn == mfn and rpc.cookie in released for rpc in m.domain.rpcs.values())
    if m.rule in (RuleId.BOOK_3, RuleId.BOOK_6):
        return m.cookie in released or m.cookie in m.domain.defects.duplicate_cookies
    if m.rule is RuleId.RPC_2:
        return isinstance(m.expected, Offer) and m.expected.reason != "" and m.expected.cookie in released
    return m.rule is RuleId.RPC_13


D13 = Deviation(
    id=DeviationId.D13,
    rules=(RuleId.RPC_2, RuleId.RPC_13, RuleId.MEM_10, RuleId.STD_1, RuleId.BOOK_3, RuleId.BOOK_6),
    title="OP-TEE's FREE for a page that was turned down releases the live RPC page of the same cookie, and its shadow",
    condition="an earlier ALLOC was answered with the cookie of a live RPC page and turned down",
    where="handle_rpc_func_alloc, free_shm_rpc",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="while one call waits in an RPC, answer another call's ALLOC with 0:0 and the first one's cookie",
    explains=_explains,
    disclosure=True,
)

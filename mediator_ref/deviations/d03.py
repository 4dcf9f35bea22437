# SPDX-License-Identifier: GPL-2.0-or-later
"""D3: a failed translation leaks the pages it did not get to from the domain's count."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    if m.rule is RuleId.LIFE_7:
        return DeviationId.D3 in m.assertions
    accounting = m.domain.defects.accounting if m.domain is not None else None
    if m.rule is RuleId.BOOK_1:
        return accounting is not None and m.amount == accounting.leaked_pages > 0
    return m.refusal is not None and accounting is not None and accounting.leaked_pages > 0


D3 = Deviation(
    id=DeviationId.D3,
    rules=(RuleId.MEM_7, RuleId.LIFE_7, RuleId.BOOK_1),
    title="a failed translation leaks the pages it did not get to from the domain's count",
    condition="the leaked count reaches the limit on shared pages, or the domain ends under a debug Xen (LIFE-7)",
    where="translate_noncontig, free_optee_shm_buf",
    severity=Severity.AVAILABILITY,
    status="seen",
    stimulus="register 129 pages of which the first is bad, 127 times",
    explains=_explains,
)

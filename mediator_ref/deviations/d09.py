# SPDX-License-Identifier: GPL-2.0-or-later
"""D9: size + offset wraps around and is cut to 32 bits."""

from __future__ import annotations

from mediator_ref.defect_model import wraps
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    return m.refusal is not None and wraps(m.refusal.param)


D9 = Deviation(
    id=DeviationId.D9,
    rules=(RuleId.MEM_5,),
    title="size + offset wraps around and is cut to 32 bits",
    condition="size + offset exceeds 64 bits or 2^32 pages, and what is left passes the limit",
    where="translate_noncontig",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus="size = 2^64-1 with offset 4095; size = 2^44 + 4096",
    explains=_explains,
)

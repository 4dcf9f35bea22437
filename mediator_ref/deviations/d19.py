# SPDX-License-Identifier: GPL-2.0-or-later
"""D19: a message may name by reference memory that another call brought, and that is released with that call."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    return m.fields in ({"buffer of another call"}, {"buffer of an ended call"})


D19 = Deviation(
    id=DeviationId.D19,
    rules=(RuleId.MEM_11,),
    title="a message may name by reference memory that another call brought, and that is released with that call",
    condition="OP-TEE accepted a reference to a buffer of another call, of one that has ended (O2), too",
    where="translate_params",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="while a call with a buffer under cookie C waits, call with a reference to C",
    explains=_explains,
    disclosure=True,
)

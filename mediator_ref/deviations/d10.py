# SPDX-License-Identifier: GPL-2.0-or-later
"""D10: x1..x7 of probe calls are not set."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    return bool(m.fields)


D10 = Deviation(
    id=DeviationId.D10,
    rules=(RuleId.LIFE_6,),
    title="x1..x7 of probe calls are not set",
    condition="a probe call with other registers than zero",
    where="optee_probe",
    severity=Severity.ABI,
    status="wrong reading of Xen 4.17: it probes before it uses SMCCC 1.1",
    seen_in=(),
    stimulus="boot",
    explains=_explains,
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""D7: EBADADDR of a failed write-back is overwritten by OP-TEE's x0."""

from __future__ import annotations

from mediator_ref.abi import SmcReturn
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import Complete, Refuse


def _explains(m: Mismatch) -> bool:
    """``expected`` is what the guest would have got, had the results been written."""
    if not isinstance(m.expected, Refuse | Complete):
        return False
    return m.x0_of_guest() == m.expected.x0 != SmcReturn.EBADADDR


D7 = Deviation(
    id=DeviationId.D7,
    rules=(RuleId.STD_10,),
    title="EBADADDR of a failed write-back is overwritten by OP-TEE's x0",
    condition="x0 is what OP-TEE returned",
    where="do_call_with_arg",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus="make the argument page read-only during an RPC",
    explains=_explains,
)

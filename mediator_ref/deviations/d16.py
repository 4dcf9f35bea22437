# SPDX-License-Identifier: GPL-2.0-or-later
"""D16: attribute bits that the ABI does not define reach OP-TEE."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.std_call import params_of


def _explains(m: Mismatch) -> bool:
    view = m.pending.event.mem.get(m.pending.arg_ipa) if m.pending is not None else None
    if m.call is None or m.call.xen_arg is None or view is None or view.data is None:
        return False
    given, handed = params_of(view.data), params_of(m.call.xen_arg)
    return [param.attr for param in given] == [param.attr for param in handed]


D16 = Deviation(
    id=DeviationId.D16,
    rules=(RuleId.STD_12,),
    title="attribute bits that the ABI does not define reach OP-TEE",
    condition="the attributes at EL3 are those of the guest's message",
    where="translate_params",
    severity=Severity.ABI,
    status="seen",
    stimulus="a parameter with bit 63 of its attributes set",
    explains=_explains,
)

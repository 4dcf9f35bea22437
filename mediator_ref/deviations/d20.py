# SPDX-License-Identifier: GPL-2.0-or-later
"""D20: a request with more parameters than a page holds reaches the guest, with what lies behind the shadow page."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.events import GuestReturn
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.call_return import is_too_long


def _explains(m: Mismatch) -> bool:
    if not isinstance(m.observed, GuestReturn) or m.pending is None or m.domain is None:
        return False
    if len(m.pending.returned) < 3:  # nothing came back yet
        return False
    rpc = m.domain.rpcs.get(abi.pair(*m.pending.returned[1:3]))
    return rpc is not None and rpc.shadow is not None and is_too_long(rpc.shadow)


D20 = Deviation(
    id=DeviationId.D20,
    rules=(RuleId.RPC_11, RuleId.FETCH_2),
    title="a request with more parameters than a page holds reaches the guest, with what lies behind the shadow page",
    condition="OP-TEE's request says that it has more than 127 parameters",
    where="handle_rpc_return",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="have OP-TEE's num_params changed to 200 at EL3's return, in lock-step",
    explains=_explains,
    disclosure=True,
)

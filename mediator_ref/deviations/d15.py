# SPDX-License-Identifier: GPL-2.0-or-later
"""D15: an unreadable answer to the mediator's own request leaves it waiting; the call's next reply is thrown away."""

from __future__ import annotations

from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    return m.at_el3 and m.call is not None and m.call.stale_xen_rpc


D15 = Deviation(
    id=DeviationId.D15,
    rules=(RuleId.RPC_4, RuleId.RPC_9),
    title="an unreadable answer to the mediator's own request leaves it waiting; the call's next reply is thrown away",
    condition="the answer to the request to free a buffer could not be read or did not fit",
    where="handle_rpc_cmd",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus=(
        "answer SHM_ALLOC with a bad page, then the request to free it with num_params = 200, then the next request"
    ),
    explains=_explains,
)

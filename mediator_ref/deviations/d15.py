# SPDX-License-Identifier: GPL-2.0-or-later
"""D15: an unreadable answer to the mediator's own request leaves it waiting; the call's next reply is thrown away."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity


def _explains(m: Mismatch) -> bool:
    reply = m.reply
    if not m.at_el3 or m.call is None or not m.call.stale_xen_rpc or reply is None:
        return False
    thrown_away = bytearray(reply.page[: reply.size])
    for name, value in (("ret", abi.Tee.GENERIC), ("num_params", 0)):
        abi.U32_AT.pack_into(thrown_away, abi.ARG_FIELDS[name], value)
    return reply.size > 0 and m.shadow[: reply.size] == thrown_away


D15 = Deviation(
    id=DeviationId.D15,
    rules=(RuleId.RPC_4, RuleId.RPC_9),
    title="an unreadable answer to the mediator's own request leaves it waiting; the call's next reply is thrown away",
    condition=(
        "the answer to the request to free a buffer could not be read or did not fit, and OP-TEE gets the next reply "
        "with ret = GENERIC and no parameters"
    ),
    where="handle_rpc_cmd",
    severity=Severity.CORRECTNESS,
    status="seen",
    stimulus=(
        "answer SHM_ALLOC with a bad page, then the request to free it with num_params = 200, then the next request"
    ),
    explains=_explains,
)

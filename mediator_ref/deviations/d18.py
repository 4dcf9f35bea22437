# SPDX-License-Identifier: GPL-2.0-or-later
"""D18: the header of a reply is read twice, and its size is checked in between."""

from __future__ import annotations

from mediator_ref.abi import Handling
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId, RuleId, Severity

HEADER_AGAIN = "header of the RPC page"
"""The difference that the comparison names for this one second read."""


def _explains(m: Mismatch) -> bool:
    if m.pending is None or m.pending.function is None or m.pending.function.handling is not Handling.RESUME:
        return False
    return m.fields == {HEADER_AGAIN}


D18 = Deviation(
    id=DeviationId.D18,
    rules=(RuleId.FETCH_1,),
    title="the header of a reply is read twice, and its size is checked in between",
    condition="a call is resumed, and the bytes that are read twice are those of the RPC page's header",
    where="handle_rpc_cmd",
    severity=Severity.CORRECTNESS,
    status="seen",
    seen_in=("4.17", "4.18", "4.19", "4.20", "4.21", "4.22", "4.23-unstable"),
    stimulus="answer any RPC command",
    explains=_explains,
)

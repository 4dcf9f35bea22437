# SPDX-License-Identifier: GPL-2.0-or-later
"""Known differences between Xen's mediator and what it should do. A list, so that known and new are never confused.

Each deviation is one object in a module of its own: the rules it breaks, where, how to provoke it, and the condition
under which a mismatch is this deviation. Only a mismatch that meets the condition of a *listed* deviation is reported
as one; every other mismatch is a nonconformance.
"""

from __future__ import annotations

from collections.abc import Mapping

from mediator_ref.deviations.d01 import D1
from mediator_ref.deviations.d02 import D2
from mediator_ref.deviations.d03 import D3
from mediator_ref.deviations.d04 import D4
from mediator_ref.deviations.d05 import D5
from mediator_ref.deviations.d06 import D6
from mediator_ref.deviations.d07 import D7
from mediator_ref.deviations.d08 import D8
from mediator_ref.deviations.d09 import D9
from mediator_ref.deviations.d11 import D11
from mediator_ref.deviations.d12 import D12
from mediator_ref.deviations.d13 import D13
from mediator_ref.deviations.d14 import D14
from mediator_ref.deviations.d15 import D15
from mediator_ref.deviations.d16 import D16
from mediator_ref.deviations.d17 import D17
from mediator_ref.deviations.d18 import D18
from mediator_ref.deviations.d19 import D19
from mediator_ref.deviations.d20 import D20
from mediator_ref.deviations.d21 import D21
from mediator_ref.deviations.deviation import Deviation, Mismatch
from mediator_ref.rules import DeviationId

DEVIATIONS: Mapping[str, Deviation] = {
    d.id: d for d in (D1, D2, D3, D4, D5, D6, D7, D8, D9, D11, D12, D13, D14, D15, D16, D17, D18, D19, D20, D21)
}
"""All known deviations by id."""

_BY_NAME = tuple(DEVIATIONS[name] for name in sorted(DEVIATIONS))


def explain(mismatch: Mismatch) -> list[DeviationId]:
    """Name the deviations a mismatch can be, listed or not; the first is the one that is reported.

    They come in alphabetical order, which puts D11 and D15, the more special ones about a reply (RPC-4), before D4.
    """
    rule = mismatch.rule
    return [deviation.id for deviation in _BY_NAME if rule in deviation.rules and deviation.explains(mismatch)]


__all__ = ["DEVIATIONS", "Deviation", "Mismatch", "explain"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""D5: buffers translated before a parameter that failed stay registered."""

from __future__ import annotations

from functools import partial

from mediator_ref.deviations.deviation import Deviation, breaks_accounting
from mediator_ref.rules import DeviationId, RuleId, Severity

D5 = Deviation(
    id=DeviationId.D5,
    rules=(RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8, RuleId.BOOK_2),
    title="buffers translated before a parameter that failed stay registered",
    condition="buffers left by failed calls fill the slots or hold the cookie",
    where="handle_std_call",
    severity=Severity.AVAILABILITY,
    status="seen",
    stimulus="invoke with a good and then a contiguous buffer, 16 times",
    explains=partial(breaks_accounting, DeviationId.D5),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""D2: buffers are released by a cookie from the message, not by what the call registered."""

from __future__ import annotations

from functools import partial

from mediator_ref.deviations.deviation import Deviation, breaks_accounting
from mediator_ref.rules import DeviationId, RuleId, Severity

D2 = Deviation(
    id=DeviationId.D2,
    rules=(RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8, RuleId.MEM_10, RuleId.BOOK_2, RuleId.BOOK_6),
    title="buffers are released by a cookie from the message, not by what the call registered",
    condition=(
        "an earlier call completed that named a buffer it had not registered (NULL TMEM, or REGISTER_SHM "
        "that failed), or left one that it had"
    ),
    where="do_call_with_arg, free_shm_buffers",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="register C; invoke with a NULL TMEM and shm_ref = C; register C again",
    explains=partial(breaks_accounting, DeviationId.D2),
    disclosure=True,
)

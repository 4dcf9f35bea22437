# SPDX-License-Identifier: GPL-2.0-or-later
"""D14: OP-TEE's SHM_FREE for a reply it could not use releases a buffer that was registered otherwise."""

from __future__ import annotations

from functools import partial

from mediator_ref.deviations.deviation import Deviation, breaks_accounting
from mediator_ref.rules import DeviationId, RuleId, Severity

D14 = Deviation(
    id=DeviationId.D14,
    rules=(RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8, RuleId.MEM_10, RuleId.BOOK_2, RuleId.BOOK_6),
    title="OP-TEE's SHM_FREE for a reply it could not use releases a buffer that was registered otherwise",
    condition="an earlier SHM_FREE named a cookie that was not given in answer to SHM_ALLOC",
    where="handle_rpc_return",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="register C; answer SHM_ALLOC with a NULL buffer and shm_ref = C; register C again",
    explains=partial(breaks_accounting, DeviationId.D14),
    disclosure=True,
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""D12: a REGISTER_SHM or UNREGISTER_SHM that OP-TEE refused by x0 counts as done when the guest preset ret = 0."""

from __future__ import annotations

from functools import partial

from mediator_ref.deviations.deviation import Deviation, breaks_accounting
from mediator_ref.rules import DeviationId, RuleId, Severity

D12 = Deviation(
    id=DeviationId.D12,
    rules=(RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8, RuleId.MEM_10, RuleId.BOOK_2, RuleId.BOOK_6),
    title="a REGISTER_SHM or UNREGISTER_SHM that OP-TEE refused by x0 counts as done when the guest preset ret = 0",
    condition="an earlier one of them returned x0 != 0 with ret = 0",
    where="do_call_with_arg",
    severity=Severity.ISOLATION,
    status="seen",
    stimulus="exhaust OP-TEE's memory for the guest, then unregister with ret = 0, and register the same cookie",
    explains=partial(breaks_accounting, DeviationId.D12),
    disclosure=True,
)

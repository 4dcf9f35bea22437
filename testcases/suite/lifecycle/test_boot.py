# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen asks OP-TEE while it boots, before there is any domain."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.conformance.checker import check_file
from framework.trace.format import Kind
from framework.trace.reader import Reader
from medcheck import TargetProvider
from mediator_ref.abi import CALLS_UID, GET_THREAD_COUNT, VM_DESTROYED


@pytest.mark.mc_board
@pytest.mark.slow
@pytest.mark.mc_rule("LIFE-6")
def test_registers_of_the_probe_calls(target_provider: TargetProvider, results_dir: Path) -> None:
    """A board from power-on: Xen's three questions to OP-TEE carry nothing but their arguments."""
    with target_provider.cold(results_dir, trace=True) as session:
        trace = session.trace
        assert trace is not None
    asked = []
    for event in Reader(trace).events():
        if event.kind == Kind.EL3_CALL:
            asked.append(event.regs[:8])
        if len(asked) == 3:
            break
    assert [regs[0] for regs in asked] == [CALLS_UID, GET_THREAD_COUNT, VM_DESTROYED]
    assert [regs[1:] for regs in asked] == [(0,) * 7] * 3
    result = check_file(trace)
    assert result.failed == 0
    assert {rule.id: rule.verdict for rule in result.rules}["LIFE-6"] == "pass"

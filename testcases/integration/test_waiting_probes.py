# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes that wait in a clone: usable at once, their past known, dom0 asleep until it is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.conformance.checker import check_file
from framework.probe.message import NO_TA, TEE_ITEM_NOT_FOUND, OpenSession
from framework.target.liveness import hypervisor_of
from framework.target.probes import waiting_probes
from framework.trace.format import Kind
from framework.trace.reader import Reader
from medcheck import TargetProvider
from mediator_ref.abi import CALLS_UID, OPTEE_MSG_UID
from mediator_ref.rules import RuleId

pytestmark = pytest.mark.mc_board


@pytest.mark.parametrize(("checkpoint", "vcpus"), [("probe", [1]), ("probe_pair", [1, 1]), ("probe_smp", [2])])
def test_they_answer_and_the_trace_knows_their_past(
    target_provider: TargetProvider, tmp_path: Path, checkpoint: str, vcpus: list[int]
) -> None:
    with waiting_probes(target_provider, tmp_path, checkpoint) as (target, probes):
        for probe in probes:
            assert probe.smc(CALLS_UID)[:4] == OPTEE_MSG_UID
            assert probe.call_with_arg(OpenSession(NO_TA)).arg.ret == TEE_ITEM_NOT_FOUND
        assert hypervisor_of(target).memory_free
        # It wakes now.
        listed = target.dom0.run("xl vcpu-list").check().text.split()
        assert [listed.count(probe.name) for probe in probes] == vcpus
    assert target.trace is not None
    reader = Reader(target.trace)
    created = [event.subject for event in reader.events() if event.kind == Kind.DOMAIN_CREATE]
    assert created == [probe.domid for probe in probes]
    assert [segment.complete for segment in reader.segments] == [True, True]
    whole = check_file(target.trace, board_alive=True)
    assert whole.verdict == "pass"
    alone = tmp_path / "alone.trace"
    alone.write_bytes(target.trace.read_bytes()[reader.segments[1].offset :])
    # What the mediator holds for a domain is known of one only whose creation was seen.
    held = [next(rule for rule in result.rules if rule.id == RuleId.BOOK_2) for result in (whole, check_file(alone))]
    assert [(rule.passed > 0, rule.not_checked > 0) for rule in held] == [(True, False), (False, True)]

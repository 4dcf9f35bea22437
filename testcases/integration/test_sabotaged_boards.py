# SPDX-License-Identifier: GPL-2.0-or-later
"""A sabotaged board for each rule: the check of its trace names the rule, and the head of the run is never green."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from framework.artifacts.cache import BuildCache
from framework.artifacts.overrides import Overrides
from framework.board.spec import BoardSpec
from framework.common.errors import MedcheckError
from framework.common.paths import cache_root
from framework.common.progress import Silent
from framework.conformance.checker import check_file
from framework.conformance.conclusion import Kind, conclude
from framework.conformance.result import ConformanceResult
from framework.probe.link import DoorbellServer
from framework.target.liveness import hypervisor_of
from framework.target.probes import take_over
from framework.target.stack import open_store, prepare_stack
from framework.target.target import Target
from framework.trace.build import xen_layout
from medcheck import TargetProvider
from testcases.integration.sabotage import BEFORE, HOLD, PATCHES, Rig, Sabotage, Saboteur
from testcases.integration.sabotages import SABOTAGES

pytestmark = [pytest.mark.artifacts, pytest.mark.mc_board]

ALWAYS = ("REGS-1", "CID-1", "STD-9", "RPC-2", "BOOK-2", "REF-1")
"""Rules whose boards run in every test run: one for each lever."""
DONE_S = 10.0
"""How long the end of a domain goes on after the toolstack's part in it."""


@contextmanager
def board(boards: TargetProvider, folder: Path, sabotage: Sabotage, saboteur: Saboteur) -> Iterator[Rig]:
    """A board that ``saboteur`` follows in lock-step."""
    with DoorbellServer(hold=HOLD, before=BEFORE, on_event=saboteur) as bells:
        if sabotage.boots:
            saboteur.armed = True
            with Target(boards.spec, boards.stack, folder, trace=True, lockstep=bells.socket) as target:
                with suppress(MedcheckError):  # it ends on the way
                    target.boot(Silent())
                yield Rig(target, [])
        else:
            clone = boards.clone(folder, sabotage.checkpoint, trace=True, lockstep=bells.socket)
            with clone as target:
                yield Rig(target, take_over(target, bells))


def sabotaged(boards: TargetProvider, folder: Path, sabotage: Sabotage) -> ConformanceResult:
    """The check of a sabotaged board's trace."""
    assert boards.stack.xen_syms is not None
    saboteur = Saboteur(sabotage.changes, xen_layout(BuildCache(cache_root()), boards.stack.xen_syms))
    with board(boards, folder, sabotage, saboteur) as rig:
        for _ in sabotage.stimulus(rig):
            saboteur.armed = True
        assert saboteur.done.wait(DONE_S), "the board never came to where it should be sabotaged"
        hypervisor = hypervisor_of(rig.target)
    assert rig.target.trace is not None
    return check_file(
        rig.target.trace, limits=sabotage.limits, deviations=sabotage.deviations, board_alive=hypervisor.alive,
        memory_free=hypervisor.memory_free,
    )  # fmt: skip


@pytest.fixture(scope="session")
def patched(spec: BoardSpec) -> TargetProvider:
    """Boards whose Xen has all faults that cannot be made in lock-step: built and booted once."""
    overrides = Overrides(xen_patch=tuple(sorted(PATCHES.glob("*.patch"))))
    return TargetProvider(prepare_stack(overrides, open_store(offline=True), Silent(), cpu=spec.cpu), spec)


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=() if rule in ALWAYS else pytest.mark.nightly) for rule in SABOTAGES]
)
def test_the_rule_is_named_and_the_head_is_not_green(
    request: pytest.FixtureRequest, target_provider: TargetProvider, tmp_path: Path, rule: str
) -> None:
    sabotage = SABOTAGES[rule]
    boards = request.getfixturevalue("patched") if sabotage.patch else target_provider
    result = sabotaged(boards, tmp_path, sabotage)
    head = conclude(result)
    assert rule in head.rules_broken, (head.sentence, result.gaps, result.rule(rule))
    assert head.kind is Kind.NONCONFORMING


@pytest.mark.nightly
@pytest.mark.parametrize(
    "rule", [rule for rule, sabotage in SABOTAGES.items() if sabotage.changes and not sabotage.boots]
)
def test_without_the_change_nothing_is_broken(target_provider: TargetProvider, tmp_path: Path, rule: str) -> None:
    head = conclude(sabotaged(target_provider, tmp_path, replace(SABOTAGES[rule], changes=())))
    assert head.kind in (Kind.CONFORMS, Kind.DEVIATES), head.sentence

# SPDX-License-Identifier: GPL-2.0-or-later
"""The same stimulus, the same trace: prepared boards on the instruction clock."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from framework.artifacts.stack import Stack
from framework.board.icount import require_realtime
from framework.board.spec import BoardSpec
from framework.common.errors import InfrastructureError
from framework.conformance.checker import check_file
from framework.jobs.replay import Replay, prepared, replay
from framework.snapshot.store import SnapshotStore
from framework.target.provider import TargetProvider
from framework.trace.format import Kind
from framework.trace.reader import Reader

BOTH = """
in_guest vm1 "xtest -t regression 1004"
in_guest vm2 "xtest -t regression 1004"
settle 15
"""


@pytest.fixture(autouse=True)
def allowed() -> None:
    """Nothing can be kept in order by a user who may not set real-time priorities."""
    try:
        require_realtime()
    except InfrastructureError as error:
        pytest.skip(str(error))


def replayed(
    target_provider: TargetProvider, stack: Stack, spec: BoardSpec, folder: Path, stimulus: str, runs: int
) -> list[Replay]:
    with target_provider._slots.slot(), prepared(SnapshotStore(), spec, stack, stimulus) as found:
        return [replay(found, spec, stack, folder / str(number)) for number in range(runs)]


@pytest.mark.mc_board
@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_runs_of_a_stimulus_give_one_trace(
    target_provider: TargetProvider, stack: Stack, spec: BoardSpec, tmp_path: Path, count: int
) -> None:
    """Two guests at once on two CPUs: every event, register, copy of memory and time is the same each time."""
    runs = replayed(target_provider, stack, spec, tmp_path, BOTH, count)
    assert len({run.digest for run in runs}) == 1
    assert {run.code for run in runs} == {0}
    callers = [event.domain for event in Reader(runs[0].trace).events() if event.kind == Kind.GUEST_CALL]
    assert min(callers.count(1), callers.count(2)) > 100
    turns = sum(before != after for before, after in pairwise(callers))
    assert turns > 20  # one after the other would be no test
    assert check_file(runs[0].trace).failed == 0


@pytest.mark.mc_board
def test_another_stimulus_gives_another_trace(
    target_provider: TargetProvider, stack: Stack, spec: BoardSpec, tmp_path: Path
) -> None:
    """A millisecond before one of the guests begins is enough; and a stimulus that fails says so."""
    (plain,) = replayed(target_provider, stack, spec, tmp_path / "a", BOTH, 1)
    (late,) = replayed(target_provider, stack, spec, tmp_path / "b", f"usleep 1000; {BOTH}\nexit 3", 1)
    assert plain.digest != late.digest
    assert (plain.code, late.code) == (0, 3)

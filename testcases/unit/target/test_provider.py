# SPDX-License-Identifier: GPL-2.0-or-later
"""TargetProvider for tests: how many at once, and when a board that tests share is booted anew."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.board import devicetree, qemu
from framework.board.board import Board
from framework.common.errors import GuestError, UsageError
from framework.common.paths import PACKAGE
from framework.guests.dom0 import Dom0
from framework.guests.xl import Xl
from framework.snapshot import save
from framework.target import checkpoints
from framework.target.checkpoints import DOM0, PARKED, READY, Checkpoint, get_checkpoint
from framework.target.provider import SharedBoard
from framework.target.slots import slots_here
from framework.target.stack import with_guests
from framework.target.target import Target


def test_the_user_may_say_how_many_boards_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_BOARDS", "17")
    assert slots_here(2) == 17
    monkeypatch.setenv("MEDCHECK_BOARDS", "")
    assert slots_here(1 << 20) == 1


def test_whatever_boots_a_board_is_part_of_its_snapshots_key() -> None:
    part_of_it = {path for pattern in checkpoints._SOURCES for path in PACKAGE.glob(pattern)}
    for code in (
        Board.start,
        qemu.boot_argv,
        devicetree.edit,
        Xl.create,
        Dom0.wait_ready,
        Target.boot,
        with_guests,
        save,
    ):
        source = inspect.getsourcefile(code)
        assert source is not None
        assert Path(source) in part_of_it


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", "1000"])
def test_a_wrong_number_of_boards_is_said(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MEDCHECK_BOARDS", given)
    with pytest.raises(UsageError, match="MEDCHECK_BOARDS"):
        slots_here(2)


def test_moments_have_names() -> None:
    assert get_checkpoint("parked") is PARKED
    assert get_checkpoint(READY) is READY
    with pytest.raises(UsageError, match="no checkpoint is called 'steady'"):
        get_checkpoint("steady")


class Cold:
    """Stands for TargetProvider: keeps what was booted, and how many run."""

    def __init__(self) -> None:
        self.booted: list[tuple[Checkpoint, bool]] = []
        self.running = 0

    @contextmanager
    def cold(self, folder: Path, checkpoint: Checkpoint, *, trace: bool) -> Iterator[Any]:
        assert folder.name == str(len(self.booted) + 1)
        self.booted.append((checkpoint, trace))
        self.running += 1
        qmp = SimpleNamespace(execute=lambda _command: {"running": True})
        yield SimpleNamespace(
            board=SimpleNamespace(alive=True, problems=[], qmp=qmp),
            guests={"vm1": None},
            dom0=SimpleNamespace(xl=SimpleNamespace(list=lambda: [SimpleNamespace(name="vm1")])),
        )
        self.running -= 1


def test_a_shared_board_is_booted_anew_only_after_it_broke_or_for_another_kind(tmp_path: Path) -> None:
    cold: Any = Cold()
    shared = SharedBoard(cold, tmp_path)

    def failing() -> None:
        raise GuestError("no answer")

    def use(checkpoint: Checkpoint = READY, *, trace: bool = False, failed: bool = False) -> Any:
        return shared.lend(checkpoint, trace=trace, failed=lambda: failed)

    with use() as first:
        pass
    with use() as second:
        assert second is first
    with use(failed=True):
        pass
    with use() as third:
        assert third is not first
        third.board.alive = False
    with use() as fourth:
        fourth.board.problems.append("oops")
    with use() as fifth:
        assert fifth is not fourth
        fifth.board.qmp.execute = lambda _command: {"running": False}
    with use() as sixth:
        sixth.dom0.xl.list = list
    with use() as seventh:
        assert seventh not in (fifth, sixth)
        seventh.dom0.xl.list = failing
    with use(trace=True) as traced:
        assert traced is not seventh
    with use(DOM0):
        pass
    with use(PARKED) as parked:
        pass
    with use(PARKED) as again:
        assert again is not parked, "its call may have been completed"
    assert cold.running == 1
    shared.close()
    shared.close()
    assert cold.running == 0
    assert shared.tests == 12
    assert cold.booted == [(READY, False)] * 6 + [(READY, True), (DOM0, False), (PARKED, False), (PARKED, False)]
    assert shared.boots == {
        "it was the first": 1, "a test failed": 1, "a test ended the board": 1, "a console showed a problem": 1,
        "a test left the board stopped": 1, "a test left a guest missing": 1,
        "the board did not answer after a test": 1,
        "another checkpoint or tracing was wanted": 2, "the checkpoint was used up": 1,
    }  # fmt: skip


def test_a_board_that_did_not_come_up_is_tried_again(tmp_path: Path) -> None:
    cold: Any = Cold()
    shared = SharedBoard(cold, tmp_path)
    cold.cold, good = None, cold.cold
    with pytest.raises(TypeError), shared.lend(READY, trace=False, failed=lambda: False):
        pass
    cold.cold = lambda _folder, checkpoint, trace: good(tmp_path / "1", checkpoint, trace=trace)
    with shared.lend(READY, trace=False, failed=lambda: False):
        assert cold.running == 1
    shared.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a board must be like before it is saved, without a board: calm, and with timers that fire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.board import process
from framework.board.qemu import Ram
from framework.common.errors import BoardError
from framework.common.progress import Silent
from framework.diagnosis.hang import ActivitySample, CpuActivity
from framework.guests import restored
from framework.guests.restored import LostTimerError
from framework.guests.ssh_talk import SilentGuestError
from framework.snapshot import save as saving
from framework.target import checkpoints as checkpoints

THP_DISABLED = "import ctypes; print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0))"


def looks(monkeypatch: pytest.MonkeyPatch, shares: Sequence[float]) -> list[ActivitySample]:
    """Make a board's two CPUs compute for these shares of each second of its own; the last share goes on."""
    taken: list[ActivitySample] = []
    ran = [0.0]

    def sample(_board: object) -> ActivitySample:
        ran[0] += shares[min(len(taken), len(shares) - 1)]
        each = CpuActivity(ran[0] / 2, 0.0, len(taken))
        taken.append(ActivitySample(float(len(taken)), {}, None, {"CPU 0": each, "CPU 1": each}))
        return taken[-1]

    monkeypatch.setattr(saving, "sample", sample)
    monkeypatch.setattr(saving, "_CALM_SECONDS", 0.001)
    return taken


def test_a_board_is_saved_as_soon_as_it_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = looks(monkeypatch, [0, 1.5, 0.4, 0.11, 0.09])
    assert saving.wait_until_calm(None)  # type: ignore[arg-type]
    assert len(taken) == 5


def test_a_board_that_never_calms_down_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = looks(monkeypatch, [0, 0.2])
    monkeypatch.setattr(saving, "_CALM_LIMIT", 0.05)
    assert not saving.wait_until_calm(None)  # type: ignore[arg-type]
    assert len(taken) > 2


def test_a_board_that_dies_meanwhile_gives_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def death(self) -> BoardError:
            return BoardError("the board died: QEMU was ended by signal 9")

    def gone(_board: object) -> ActivitySample:
        raise ProcessLookupError

    monkeypatch.setattr(saving, "sample", gone)
    with pytest.raises(BoardError, match="signal 9"):
        saving.wait_until_calm(Dead())  # type: ignore[arg-type]


@pytest.mark.parametrize(("free", "place", "refused"), [(3 << 20, "", True), (5 << 20, "", False), (0, "disk", False)])
def test_a_clone_is_not_saved_where_that_could_kill_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, place: str, refused: bool
) -> None:
    class Clone:
        ram = Ram(tmp_path / "ram", share=False)
        run_dir = tmp_path

    with (tmp_path / "ram").open("wb") as stream:
        stream.write(bytes(4096))
        stream.truncate(4 << 20)
    monkeypatch.setattr(saving, "TMPFS", tmp_path / place)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    with pytest.raises(BoardError, match="MiB are free") if refused else nullcontext():
        saving._spare_tmpfs(Clone())  # type: ignore[arg-type]


class Ssh:
    name = "vm1"

    def __init__(self, sleeps_for_ever: bool) -> None:
        self.sleeps_for_ever = sleeps_for_ever

    def put(self, *_: object) -> None:
        pass

    def run(self, command: str, **_: object) -> Any:
        if self.sleeps_for_ever and "sleep" in command:
            raise SilentGuestError("no byte for 10 s", where=self.name)
        return self

    def check(self) -> None:
        pass


def test_a_guest_that_sleeps_for_ever_is_not_saved() -> None:
    restored.prepare(Ssh(sleeps_for_ever=False))  # type: ignore[arg-type]
    with pytest.raises(LostTimerError, match=r"timer no longer fires.*10 ms") as caught:
        restored.prepare(Ssh(sleeps_for_ever=True))  # type: ignore[arg-type]
    assert "vm1" in str(caught.value)


class Boot:
    """A target whose guests lose their timers in the first ``bad`` boots."""

    all: list[Boot]
    bad: int

    def __init__(self, *_: object, **__: object) -> None:
        self.board, self.closed = self, False
        self.all.append(self)

    def boot(self, *_: object, **__: object) -> None:
        pass

    def prepare_to_save(self) -> None:
        if len(self.all) <= self.bad:
            raise LostTimerError("its timer no longer fires", where="dom0")

    def close(self) -> None:
        self.closed = True


def ready_to_save(monkeypatch: pytest.MonkeyPatch, bad: int, folder: Path) -> Any:
    Boot.all, Boot.bad = [], bad
    monkeypatch.setattr(checkpoints, "Target", Boot)
    monkeypatch.setattr(checkpoints, "Board", lambda *_, **__: None)
    monkeypatch.setattr(checkpoints, "watch", lambda board: board)
    monkeypatch.setattr(checkpoints, "wait_until_calm", lambda _board: True)
    nothing: Any = None
    folder.mkdir()
    (folder / "log").touch()
    return checkpoints._ready_to_save(nothing, nothing, checkpoints.READY, nothing, folder, Silent())


def test_a_board_with_a_lost_timer_is_booted_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ready_to_save(monkeypatch, 1, tmp_path / "run") is Boot.all[1]
    assert (tmp_path / "run.lost-timer/log").exists(), "the evidence stays"
    assert [boot.closed for boot in Boot.all] == [True, False]


def test_two_lost_timers_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Boot, "boot", lambda *_, **__: (tmp_path / "run").mkdir(exist_ok=True))
    with pytest.raises(LostTimerError):
        ready_to_save(monkeypatch, 2, tmp_path / "run")
    assert [boot.closed for boot in Boot.all] == [True, True]


def test_boards_get_small_pages_and_we_keep_ours() -> None:
    def asked() -> str:
        return subprocess.run([sys.executable, "-c", THP_DISABLED], capture_output=True, text=True, check=True).stdout

    before = asked()
    with process._small_pages():
        assert asked() == "1\n"
    assert asked() == before

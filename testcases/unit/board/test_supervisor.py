# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor and the janitor with an ordinary process in QEMU's place: who dies, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.board import janitor
from framework.board.janitor import Janitor, ProcessId
from framework.board.process import Job, QemuProcess
from framework.common.errors import BoardError
from testcases.unit.board.processes import gone

SLEEP = "import time; time.sleep(600)"

OWNER = """
import sys, time
from pathlib import Path
from framework.board import janitor
from framework.board.process import Job, QemuProcess
folder = Path(sys.argv[1])
board = janitor.new_board_id(0)
ram = folder / "ram"
ram.touch()
entry = janitor.write_entry(board, [ram], folder)
argv = [sys.executable, "-c", "import time; time.sleep(600)", "-name", f"medcheck-{board}"]
process = QemuProcess(Job(argv, [], "keep", folder / "qemu.log", entry, [ram]))
while process.pid is None:
    process.read_status()
print(process.pid, process.supervisor_pid, board, flush=True)
time.sleep(600)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(folder: Path, code: str = SLEEP, *, temporary: list[Path] | None = None) -> QemuProcess:
    board = janitor.new_board_id(time.monotonic_ns())
    entry = janitor.write_entry(board, temporary or [], folder)
    argv = [sys.executable, "-c", code, "-name", f"medcheck-{board}"]
    return QemuProcess(Job(argv, [], "keep", folder / "qemu.log", entry, temporary or []))


def wait_started(process: QemuProcess) -> int:
    """What the reader's thread of a board does until QEMU runs."""
    while not process.started.is_set():
        process.read_status()
    return process.wait_started()


def wait_status(process: QemuProcess) -> None:
    while process.read_status():
        continue


def left(board: str) -> list[str]:
    """What the janitor finds of one board; other boards of this machine are none of this test's business."""
    keeper = Janitor()
    return [str(item) for item in [*keeper.orphans(), *keeper.stale_files()] if item.board_id == board]


class Owner:
    """A process of its own that owns a board, so that it can be killed."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert self.process.stdout is not None
        qemu, supervisor, self.board = self.process.stdout.readline().split()
        self.qemu, self.supervisor = ProcessId.of(int(qemu)), ProcessId.of(int(supervisor))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def owner(tmp_path: Path, cache: Path) -> Iterator[Owner]:
    assert cache
    owner = Owner(tmp_path)
    yield owner
    owner.close()
    assert gone(owner.qemu.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_qemu_and_all_files_go_when_the_owner_is_killed(owner: Owner, cache: Path, number: int) -> None:
    assert (cache / "boards" / f"{owner.board}.json").exists()
    owner.process.send_signal(number)
    assert gone(owner.qemu.pid)
    assert gone(owner.supervisor.pid)
    assert not (cache.parent / "ram").exists()
    assert list((cache / "boards").iterdir()) == []
    assert not left(owner.board)


def test_qemu_goes_when_its_supervisor_is_killed(owner: Owner) -> None:
    os.kill(owner.supervisor.pid, signal.SIGKILL)
    assert gone(owner.qemu.pid)


def test_files_are_swept_when_owner_and_supervisor_are_killed(owner: Owner, cache: Path) -> None:
    os.kill(owner.supervisor.pid, signal.SIGKILL)
    owner.close()
    assert gone(owner.qemu.pid)
    keeper = Janitor()
    with pytest.raises(BoardError, match=f"{owner.board}.json"):
        keeper.assert_clean(0)
    assert [item.path.name for item in keeper.stale_files()] == ["ram", f"{owner.board}.json"]
    keeper.sweep()
    assert not left(owner.board)
    assert not (cache.parent / "ram").exists()


def test_interrupt_of_the_terminal_does_not_reach_qemu(owner: Owner) -> None:
    assert os.getsid(owner.qemu.pid) == owner.supervisor.pid != os.getsid(0)
    os.kill(owner.supervisor.pid, signal.SIGINT)
    os.kill(owner.supervisor.pid, signal.SIGHUP)
    assert not gone(owner.qemu.pid, 0.3)


def test_entry_names_all_three_processes(owner: Owner, cache: Path) -> None:
    entry = json.loads((cache / "boards" / f"{owner.board}.json").read_text())
    assert ProcessId(**entry["qemu"]) == owner.qemu
    assert ProcessId(**entry["supervisor"]) == owner.supervisor
    named = janitor.owner_of(owner.board)
    assert named is not None and named.pid == owner.process.pid and named.alive


def test_janitor_leaves_boards_with_an_owner_alone(owner: Owner) -> None:
    keeper = Janitor()
    assert owner.board in keeper.boards()
    assert not left(owner.board)
    keeper.sweep()
    assert owner.qemu.alive


def test_exit_status_is_told(tmp_path: Path, cache: Path) -> None:
    process = start(tmp_path, "import sys; print('no such machine', file=sys.stderr); sys.exit(3)")
    wait_status(process)
    assert process.exit_code == 3
    assert process.ending == "QEMU ended with exit status 3"
    assert process.log_tail() == "    no such machine"
    assert list((cache / "boards").iterdir()) == []


def test_signal_from_outside_is_told(tmp_path: Path, cache: Path) -> None:
    assert cache
    process = start(tmp_path)
    os.kill(wait_started(process), signal.SIGSEGV)
    wait_status(process)
    assert process.exit_code == -signal.SIGSEGV
    assert process.ending == "QEMU was ended by signal 11 (SIGSEGV)"


def test_lost_supervisor_is_told(tmp_path: Path, cache: Path) -> None:
    assert cache
    process = start(tmp_path)
    wait_started(process)
    os.kill(process.supervisor_pid, signal.SIGKILL)
    wait_status(process)
    assert "supervisor ended without a word" in process.ending
    Janitor().sweep()


def test_program_that_does_not_exist_is_told(tmp_path: Path, cache: Path) -> None:
    assert cache
    entry = janitor.write_entry(janitor.new_board_id(1), [], tmp_path)
    process = QemuProcess(Job(["/no/such/qemu"], [], "keep", tmp_path / "qemu.log", entry, []))
    wait_status(process)
    assert "cannot start QEMU" in process.ending and "No such file" in process.ending


def test_kill_ends_it_and_removes_temporary_files(tmp_path: Path, cache: Path) -> None:
    assert cache
    ram = tmp_path / "ram"
    ram.touch()
    process = start(tmp_path, temporary=[ram])
    pid = wait_started(process)
    process.kill()
    process.kill()
    wait_status(process)
    assert process.exit_code == -signal.SIGKILL
    assert gone(pid)
    assert not ram.exists()


def test_qemu_keeps_no_capability_and_gains_no_privilege(tmp_path: Path, cache: Path) -> None:
    assert cache
    process = start(tmp_path)
    wait_started(process)
    # The child is QEMU once its command line says so; before, it is still the supervisor's copy.
    status = Path(f"/proc/{process.pid}/status")
    while b"-name" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
        time.sleep(0.01)
    text = status.read_text()
    assert "CapEff:\t0000000000000000" in text
    assert "CapPrm:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    process.kill()
    wait_status(process)


def test_janitor_finds_and_ends_an_orphan_without_an_entry(cache: Path) -> None:
    assert cache
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    board = f"{dead.pid}-1-0"
    orphan = subprocess.Popen([sys.executable, "-c", SLEEP, "-name", f"medcheck-{board},debug-threads=on"])
    try:
        keeper = Janitor()
        while not left(board):
            time.sleep(0.01)
        assert left(board) == [f"qemu {orphan.pid} of board {board}"]
        with pytest.raises(BoardError, match=f"qemu {orphan.pid} of board {board}"):
            keeper.assert_clean(0)
        keeper.sweep()
        assert orphan.wait(5) == -signal.SIGKILL
        assert not left(board)
    finally:
        orphan.kill()
        orphan.wait()


def test_somebody_elses_process_is_never_hit() -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        reused = ProcessId(other.pid, ProcessId.of(other.pid).start - 1)
        assert not reused.alive
        assert not reused.kill()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()

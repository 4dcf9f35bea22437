# SPDX-License-Identifier: GPL-2.0-or-later
"""``pytest -n 2``: workers share slots for boards and snapshots, say what they wait for, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from framework.board.janitor import Janitor
from framework.common.paths import ROOT
from framework.snapshot.store import SnapshotStore

pytestmark = [pytest.mark.slow, pytest.mark.artifacts]

MARK = "MEDCHECK_TEST_MARK"

CONFTEST = """
import os
import time
from pathlib import Path
from framework.board.board import Board

def note(*words):
    with Path(os.environ["NOTES"]).open("a") as stream:
        stream.write(" ".join(map(str, words)) + "\\n")

def noted(name):
    original = getattr(Board, name)
    def wrapped(self, *args, **kwargs):
        if name == "start":
            note("start", self.id, time.monotonic_ns(), self._past is None)
        try:
            return original(self, *args, **kwargs)
        finally:
            if name == "stop":
                note("stop", self.id, time.monotonic_ns())
    setattr(Board, name, wrapped)

noted("start")
noted("stop")
"""
GOOD = """
import os
import pytest
from framework.target.checkpoints import Checkpoint

pytestmark = pytest.mark.mc_checkpoint(Checkpoint(os.environ["MOMENT"], guests=False))

@pytest.mark.parametrize("number", range(4))
def test_a_board_answers(dom0, number):
    assert dom0.ssh.run(f"test ! -e /run/mark && echo {number} >/run/mark && cat /run/mark").text == str(number)
"""
TOGETHER = """
import os
import pytest
pytestmark = pytest.mark.mc_checkpoint("dom0")

@pytest.mark.xdist_group("reader")
def test_reads(dom0):
    assert open(os.environ["FIFO"]).read() == "here"
    assert dom0.ssh.run("echo on").text == "on"

@pytest.mark.xdist_group("writer")
def test_writes(dom0):
    with open(os.environ["FIFO"], "w") as stream:
        stream.write("here")
    assert dom0.ssh.run("echo on").text == "on"
"""
WAITING = """
import pytest
pytestmark = pytest.mark.mc_checkpoint("dom0")

@pytest.mark.parametrize("number", range(2))
def test_waits(board, number):
    board.consoles["dom0"].expect([b"never said"], idle_timeout=300)
"""
FAILING = """
import pytest
pytestmark = pytest.mark.mc_checkpoint("dom0")

@pytest.mark.parametrize("number", range(2))
def test_one_fails(dom0, number):
    assert dom0.ssh.run(f"exit {number}").rc == 0
"""


class Run:
    """A pytest with two workers in a process group of its own; ``notes`` is what its boards left of themselves."""

    def __init__(self, folder: Path, text: str, *arguments: str, slots: int, checkpoint: str = "dom0") -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_inner.py").write_text(text)
        os.mkfifo(folder / "fifo")
        self._notes = folder / "notes"
        self._notes.touch()
        command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", *arguments,
                   "--rootdir", str(folder), "--basetemp", str(folder / "base"),
                   "--mc-board-logs", str(folder / "logs"), str(folder / "test_inner.py")]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "MEDCHECK_OFFLINE": "1", "MEDCHECK_BOARDS": str(slots), MARK: self.mark,
                 "NOTES": str(self._notes), "FIFO": str(folder / "fifo"), "TMPDIR": str(self.temporary),
                 "MOMENT": checkpoint},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    @property
    def notes(self) -> list[list[str]]:
        """Words: ``start ID ns cold`` and ``stop ID ns``."""
        return [line.split() for line in self._notes.read_text().splitlines()]

    @property
    def boards(self) -> list[str]:
        """Ids of all boards that were started; each begins with its worker's pid."""
        return [words[1] for words in self.notes if words[0] == "start"]

    def output(self, seconds: float = 300) -> str:
        """Everything it said, once it has ended."""
        return self.process.communicate(timeout=seconds)[0]

    def most_at_once(self) -> int:
        """How many boards there were at the busiest checkpoint."""
        alive: set[str] = set()
        most = 0
        for words in sorted(self.notes, key=lambda words: int(words[2])):
            (alive.add if words[0] == "start" else alive.discard)(words[1])
            most = max(most, len(alive))
        return most

    def remains(self) -> list[str]:
        """Processes and entries that are still there."""
        janitor = Janitor()
        left = [str(item) for board in self.boards for item in janitor.processes_of(board)]
        left += [board for board in self.boards if board in janitor.boards()]
        return left + [str(process) for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        """Those that inherited this run's mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """End whatever is left."""
        for process in self.processes():
            process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Start a :class:`Run`; nothing of it outlives the test, whatever it did."""
    runs: list[Run] = []

    def begin(*arguments: str, **options: object) -> Run:
        runs.append(Run(tmp_path, *arguments, **options))  # type: ignore[arg-type]
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()


@pytest.fixture
def new_checkpoint() -> Iterator[str]:
    """A checkpoint without a snapshot yet; its snapshot is removed afterwards."""
    name = f"workers{uuid.uuid4().hex[:8]}"
    yield name
    store = SnapshotStore()
    for entry in store.entries():
        if name in entry.name:
            assert store.remove(entry.name)


def test_two_workers_share_one_place_and_one_snapshot(start, new_checkpoint):
    run = start(GOOD, slots=1, checkpoint=new_checkpoint)
    output = run.output()
    assert run.process.returncode == 0, output
    assert "4 passed" in output
    assert run.most_at_once() == 1
    cold = [words for words in run.notes if words[0] == "start" and words[3] == "True"]
    assert len(cold) == 1, "the snapshot was made once"
    assert len(run.boards) == 5
    assert len({board.split("-")[0] for board in run.boards}) == 2, "both workers had boards"
    assert len(re.findall(r"^\[gw[01]\] making snapshot \S+ …$", output, re.M)) == 1, output
    assert re.search(r"^\[gw[01]\] all 1 slots for boards are taken; waiting for one$", output, re.M), output
    assert run.remains() == []
    assert list(run.temporary.iterdir()) == []


def test_two_workers_with_two_places_run_at_once_and_make_one_snapshot(start, new_checkpoint):
    run = start(GOOD.replace("range(4)", "range(2)"), slots=2, checkpoint=new_checkpoint)
    output = run.output()
    assert run.process.returncode == 0, output
    assert [words[3] for words in run.notes if words[0] == "start"].count("True") == 1
    assert run.most_at_once() <= 2
    assert run.remains() == []


def test_two_boards_really_run_at_the_same_time(start):
    """Each test waits for the other while it has its board."""
    run = start(TOGETHER, "--dist", "loadgroup", slots=2)
    output = run.output()
    assert run.process.returncode == 0, output
    assert run.most_at_once() == 2
    assert run.remains() == []


def test_a_failure_in_a_worker_is_the_runs_and_shows_its_consoles(start):
    run = start(FAILING, slots=1)
    output = run.output()
    assert run.process.returncode == 1, output
    assert "1 failed, 1 passed" in output, output
    assert "console dom0 (" in output
    assert run.remains() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_board_outlives_workers_that_are_interrupted_or_whose_master_is_killed(start, number):
    run = start(WAITING, slots=1)
    while not run.boards:
        assert run.process.poll() is None, run.output()
        time.sleep(0.1)  # a poll of a file that another process writes; its end is watched above
    family = run.processes()
    assert len(family) >= 3  # pytest and its workers, at least
    if number == signal.SIGINT:
        os.killpg(run.process.pid, signal.SIGINT)
        run.output(120)
        assert run.process.returncode == 2
    else:
        run.process.kill()
        run.output(120)
    psutil.wait_procs(family, timeout=60)
    if number == signal.SIGKILL:
        Janitor().sweep()
    assert run.remains() == []


def test_a_board_that_does_not_exist_is_said_once(start):
    run = start(GOOD, "--mc-board", "nonsense", slots=1)
    output = run.output()
    assert run.process.returncode == pytest.ExitCode.USAGE_ERROR, output
    assert "there is no board called 'nonsense'" in output
    assert "UsageError" not in output, "said for each test"
    assert run.boards == []

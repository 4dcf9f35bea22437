# SPDX-License-Identifier: GPL-2.0-or-later
"""Trivial jobs on a real Dask cluster of two worker processes on this machine; some jobs kill their worker."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from distributed import LocalCluster

from framework.common.errors import InfrastructureError
from framework.common.paths import ROOT
from framework.common.progress import Silent
from framework.jobs.cluster import spread

_OFFER = ("--nthreads", "2", "--resources", "BOARD=1")


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a scheduler without workers."""
    with LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def two_workers(scheduler: str) -> Iterator[str]:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(worker(scheduler))
        yield scheduler


@contextmanager
def worker(scheduler: str) -> Iterator[None]:
    """A worker without a nanny: one that dies does not come back."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-nanny", "--no-dashboard", *_OFFER]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            yield
        finally:
            process.kill()


def note(folder: str) -> str:
    """Leave a file for each time that this runs."""
    Path(folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return Path(folder).name


def die(folder: str) -> str:
    """Kill the worker that runs this, the first time."""
    first = not any(Path(folder).iterdir())
    note(folder)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(folder).name


def busy(folder: str) -> tuple[float, float, int]:
    """Take a while; return when it began and ended, and the worker."""
    begin = time.monotonic()
    Path(folder, str(begin)).touch()
    time.sleep(0.2)
    return begin, time.monotonic(), os.getpid()


def perform(job: tuple[str, str]) -> str:
    return {"note": note, "die": die}[job[0]](job[1])


def test_a_worker_that_dies_costs_its_job_only(two_workers: str, tmp_path: Path) -> None:
    names = ("one", "two", "again", "three")
    for name in names:
        (tmp_path / name).mkdir()
    jobs = {name: ("die" if name == "again" else "note", str(tmp_path / name)) for name in names}
    assert dict(spread(two_workers, jobs, perform, Silent())) == {name: name for name in names}
    assert {name: len(list((tmp_path / name).iterdir())) for name in names} == {
        "one": 1, "two": 1, "again": 2, "three": 1
    }  # fmt: skip


def test_a_job_of_which_workers_die_is_reported(
    two_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.jobs.cluster._DEATHS", 1)
    for name in ("deadly", "one"):
        (tmp_path / name).mkdir()
    jobs = {"deadly": ("die", str(tmp_path / "deadly")), "one": ("note", str(tmp_path / "one"))}
    found = dict(spread(two_workers, jobs, perform, Silent()))
    assert "died, one after the other" in str(found.pop("deadly"))
    assert found == {"one": "one"}


def test_one_board_takes_one_job_at_a_time(two_workers: str, tmp_path: Path) -> None:
    """Each worker has threads for two."""
    found = spread(two_workers, dict.fromkeys("abcd", str(tmp_path)), busy, Silent())
    times = sorted(result for _, result in found if not isinstance(result, InfrastructureError))
    assert len(times) == 4
    for pid in {taken[2] for taken in times}:
        mine = [taken for taken in times if taken[2] == pid]
        assert all(before[1] <= after[0] for before, after in pairwise(mine))


def test_without_a_board_the_jobs_are_given_up(scheduler: str, tmp_path: Path) -> None:
    jobs = {"one": ("note", str(tmp_path))}
    ((_, error),) = spread(scheduler, jobs, perform, Silent(), patience_s=0)
    assert "no worker of the cluster has offered a board" in str(error)
    assert "--resources BOARD=1" in str(error)
    assert not list(tmp_path.iterdir())


def test_no_scheduler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.jobs.cluster._CONNECT_SECONDS", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InfrastructureError, match="no scheduler answers"):
        next(spread(f"tcp://127.0.0.1:{port}", {"one": 1}, str, Silent()))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Time until a clone runs, and its memory; every sample is a new clone of the cached snapshot."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from framework.bench.context import Context
from framework.board.spec import BoardSpec
from framework.common.errors import InfrastructureError
from framework.common.host_speed import host_factor
from framework.common.progress import Silent
from framework.snapshot.restore import clone
from framework.snapshot.store import SnapshotStore
from framework.target.checkpoints import READY, Checkpoint, snapshot, take_over_parked
from framework.target.target import Target
from mediator_ref.abi import CALLS_UID, OPTEE_MSG_UID

SAMPLES = 50
_BUILDS = 3
_IDLE_SECONDS = 2.0


Look = Callable[[Target, Callable[[], float]], float]
"""A measurement of a running clone, given the seconds since it was requested."""


def running(_session: Target, seconds: Callable[[], float]) -> float:
    """Seconds until the virtual CPUs run, the snapshot's check included."""
    return seconds()


def answer(target: Target, seconds: Callable[[], float]) -> float:
    """Seconds until dom0 has executed a command and its answer is here."""
    # The quotes keep the echo of the typed line from looking like the answer.
    target.dom0.console.sendline('echo ans""wer')
    target.dom0.console.expect([rb"answer\r?\n"], idle_timeout=30)
    return seconds()


def smc(target: Target, seconds: Callable[[], float]) -> float:
    """Seconds until a probe guest has made an SMC and its answer is here. Raises InfrastructureError for another's."""
    probe = take_over_parked(target).probe
    if probe.smc(CALLS_UID)[:4] != OPTEE_MSG_UID:
        raise InfrastructureError("the answer was not OP-TEE's", where=probe.name)
    return seconds()


def xtest(target: Target, seconds: Callable[[], float]) -> float:
    """Seconds until a domU's xtest has opened a session, invoked it and closed it again: dozens of SMCs."""
    console = next(iter(target.guests.values())).console
    console.sendline("xtest -t regression 1002")
    console.expect([rb"regression_1002 OK"], idle_timeout=30)
    return seconds()


def private(target: Target, _seconds: Callable[[], float]) -> float:
    """Megabytes that a clone has for itself while its guests idle."""
    time.sleep(_IDLE_SECONDS)
    return _anonymous_mb(target)


def private_busy(target: Target, _seconds: Callable[[], float]) -> float:
    """Megabytes that a clone has for itself after xtest 1001 and 1004 in a domU."""
    console = next(iter(target.guests.values())).console
    for case in ("1001", "1004"):
        console.sendline(f"xtest -t regression {case}")
        console.expect([rb"TEE test application done!"], idle_timeout=60)
    return _anonymous_mb(target)


def _anonymous_mb(target: Target) -> float:
    rollup = Path(f"/proc/{target.board.pid}/smaps_rollup").read_text()
    # Not Private_*: those count pages of the snapshot and of QEMU's binary that only this clone has mapped.
    found = re.findall(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    return sum(map(int, found)) * 1024 / 1e6


def build_beyond_boot(context: Context) -> list[float]:
    """A benchmark: seconds that making a snapshot takes longer than booting the same board."""
    stack, spec = context.stack(), BoardSpec.load("default")
    found = []
    for _ in range(_BUILDS):
        with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
            begin = time.monotonic()
            with Target(spec, stack, Path(folder) / "boot") as target:
                target.boot(Silent())
                boot = time.monotonic() - begin
            store = SnapshotStore(Path(folder))
            begin = time.monotonic()
            with snapshot(store, spec, stack, READY):
                build = time.monotonic() - begin
            store.prune(0)
            found.append(build - boot)
            context.progress.say(f"{boot:.1f} s to boot, {build:.1f} s to make a snapshot")
    return found


def clones(
    look: Look, samples: int = SAMPLES, at_once: int = 1, checkpoint: Checkpoint = READY
) -> Callable[[Context], list[float]]:
    """A benchmark: ``samples`` clones of a checkpoint, always ``at_once`` of them side by side."""
    return lambda context: _measure(context, look, samples, at_once, checkpoint)


def _measure(context: Context, look: Look, samples: int, at_once: int, checkpoint: Checkpoint) -> list[float]:
    stack, spec = context.stack(), BoardSpec.load("default")
    snapshots = SnapshotStore(progress=context.progress)
    with snapshot(snapshots, spec, stack, checkpoint, context.progress):
        host_factor()

    def sample(_number: int) -> float:
        with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
            begin = time.monotonic()
            with snapshot(snapshots, spec, stack, checkpoint) as found:
                board = clone(found, spec, stack, Path(folder))
            with Target(spec, stack, Path(folder), board=board) as target:
                target.adopt(found.about, wake=False)
                return look(target, lambda: time.monotonic() - begin)

    with ThreadPoolExecutor(at_once) as workers:
        return list(workers.map(sample, range(samples)))

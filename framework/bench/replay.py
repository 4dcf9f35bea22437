# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost of deterministic execution: the same work of a guest on the instruction clock and on the host's."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from framework.bench.context import Context
from framework.board.spec import BoardSpec
from framework.jobs.replay import BEGINS, prepared
from framework.snapshot.store import SnapshotStore
from framework.target.target import Target

PAIRS = 4
STIMULUS = """
in_guest vm1 "xtest -t regression 4001"
in_guest vm2 "xtest -t regression 4001"
settle 100
"""
"""Hashes: both CPUs compute all the time. What waits costs nothing on the instruction clock, and may even be faster."""
_DONE = rb"TEE test application done!"


def cost(context: Context) -> list[float]:
    """A benchmark: how many times longer xtest in two guests takes, of the host's time, on the instruction clock."""
    stack, spec = context.stack(), BoardSpec.load("default")
    found = []
    with prepared(
        SnapshotStore(progress=context.progress), spec, stack, STIMULUS, progress=context.progress
    ) as snapshot:

        def seconds(icount: bool) -> float:
            with (
                tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder,
                Target.from_snapshot(snapshot, spec, stack, Path(folder), icount=icount, wake=False) as target,
            ):
                target.board.consoles["dom0"].expect(BEGINS, 60)
                begin = time.monotonic()
                for guest in target.guests.values():
                    guest.console.expect([_DONE], 120)
                return time.monotonic() - begin

        for _ in range(PAIRS):
            counted, plain = seconds(icount=True), seconds(icount=False)
            found.append(counted / plain)
            context.progress.say(f"{plain:.2f} s on the host's clock, {counted:.2f} s on the instruction clock")
    return found

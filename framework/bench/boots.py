# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot times: seconds until guests are up, on a board and on a new machine."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from framework.bench.context import Context
from framework.board.spec import BoardSpec
from framework.jobs.run import RunOptions, run
from framework.target.target import Target

_ROUNDS = 3


def cold_boot(context: Context) -> list[float]:
    """Seconds from power-on to the last of three domUs ready; where the time goes is printed."""
    stack = context.stack()
    samples = []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="medcheck-") as folder:
            with Target(BoardSpec.load("three"), stack, Path(folder)) as target:
                target.boot(context.progress)
            samples.append(target.phases[-1].end)
            steps = ", ".join(f"{phase.name} {phase.end:.1f}" for phase in target.phases)
            context.progress.say(f"cold boot: {steps}")
    return samples


def first_run(context: Context) -> list[float]:
    """Seconds of `run --profile smoke` with an empty cache: everything is fetched and built."""
    before = os.environ.get("MEDCHECK_CACHE")
    with tempfile.TemporaryDirectory(prefix="medcheck-first-") as folder:
        os.environ["MEDCHECK_CACHE"] = f"{folder}/cache"
        try:
            begin = time.monotonic()
            result = run(
                RunOptions(
                    profile="smoke",
                    report=Path(folder) / "report",
                    mirrors=context.options.mirror,
                    overrides=context.overrides,
                ),
                context.progress,
            )
            if result.failure is not None:
                raise result.failure
            return [time.monotonic() - begin]
        finally:
            if before is None:
                del os.environ["MEDCHECK_CACHE"]
            else:
                os.environ["MEDCHECK_CACHE"] = before

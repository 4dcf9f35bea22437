# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost of a column of a matrix, once its Xen is built, and of one that is known already."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from framework.bench.context import Context
from framework.board.spec import BOARDS
from framework.common.errors import ExitCode, InfrastructureError
from framework.jobs.matrix import MatrixOptions, matrix
from framework.jobs.run import RunOptions

_ROUNDS = 3


def column(*, known: bool) -> Callable[[Context], list[float]]:
    """Make a measurement: seconds of a matrix of one column, smoke profile, whose Xen is built and whose result is
    ``known`` already, or not."""

    def measure(context: Context) -> list[float]:
        context.stack()
        samples = []
        with tempfile.TemporaryDirectory(prefix="medcheck-matrix-") as folder:
            for number in range(_ROUNDS):
                # A board of another description has another name: it was never seen.
                board = Path(folder, f"board-{number}.yaml")
                text = (BOARDS / "default.yaml").read_text()
                board.write_text(re.sub(r"(?m)^description:.*$", f"description: measured at {time.time_ns()}", text))
                times = [_seconds(context, board, Path(folder, f"{number}-{turn}")) for turn in ("first", "second")]
                samples.append(times[known])
        return samples

    return measure


def _seconds(context: Context, board: Path, report: Path) -> float:
    begin = time.monotonic()
    options = RunOptions(
        profile="smoke", board=str(board), report=report, overrides=context.overrides,
        offline=context.options.offline, mirrors=context.options.mirror,
    )  # fmt: skip
    result = matrix(MatrixOptions(options), context.progress)
    if result.code is ExitCode.INFRASTRUCTURE:
        raise InfrastructureError(f"nothing was measured: {result.document['reason']}", where=str(report))
    return time.monotonic() - begin

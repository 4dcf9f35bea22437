# SPDX-License-Identifier: GPL-2.0-or-later
"""Seconds for the stimuli of profile ``standard``: each on a board of its own, traced and judged, as ``medcheck run``
does it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from framework.bench.context import Context
from framework.common.errors import InfrastructureError
from framework.jobs.profiles import profiles
from framework.jobs.testsuite import run_stimuli
from framework.report.model import BoardTestReport

_PROFILE = "standard"


def each(context: Context) -> list[float]:
    """Seconds of every stimulus, from the board that is asked for to the verdict."""
    tests, _ = _run(context)
    return [test.seconds for test in tests]


def together(context: Context) -> list[float]:
    """Seconds of all of them, with the start of the process that runs them."""
    _, seconds = _run(context)
    return [seconds]


def _run(context: Context) -> tuple[Sequence[BoardTestReport], float]:
    """Run them once more after a run that made what was missing in the cache. Raises InfrastructureError when one does
    not pass: it may have ended early."""
    context.stack()
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
            begin = time.monotonic()
            tests = run_stimuli(
                profiles()[_PROFILE].tests, context.overrides, "default", None, Path(folder), context.progress
            )
            seconds = time.monotonic() - begin
        if bad := [test.id for test in tests if test.status != "passed"]:
            raise InfrastructureError(f"{len(bad)} of {len(tests)} stimuli did not pass, {bad[0]} among them")
        last = max(tests, key=lambda test: test.seconds)
        context.progress.say(f"{len(tests)} stimuli in {seconds:.1f} s, {last.seconds:.1f} s of them {last.id}")
    return tests, seconds

# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed of a mutation campaign."""

from __future__ import annotations

import tempfile
from pathlib import Path

from framework.bench.context import Context

_SAMPLE = 20
_TESTS = "capabilities or values_go or every_request"


def mutant_run(context: Context) -> list[float]:
    """Seconds of each run of a test with a mutant, for a few tests and mutants, one after the other."""
    # tree-sitter is an extra: the other benchmarks do without.
    from framework.mutants.campaign import Campaign, RunLog, choose, drive
    from framework.mutants.job import build
    from framework.mutants.operators import OPERATORS
    from framework.mutants.worker import Worker

    with tempfile.TemporaryDirectory(prefix="medcheck-mutants-") as name:
        folder = Path(name)
        built = build(
            context.overrides, context.options.offline, context.options.mirror, tuple(OPERATORS), [], context.progress
        )
        log = RunLog(folder / "runs.jsonl")
        with Worker(built.xen, ("-k", _TESTS), built.words("default"), folder) as worker:
            numbers = choose(built.xen.mutants.values(), _SAMPLE, 1)
            campaign = Campaign(built.xen, log, worker.tests, numbers)
            drive(campaign, lambda _number: worker, 1, 0, lambda _job, _run: None)
        return [run.seconds for (_, number), run in log.runs.items() if number]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Turnaround time of a mediator's developer: from an edit to the verdict."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from framework.artifacts.xen import pinned_source
from framework.bench.context import Context
from framework.jobs.run import RunOptions, run
from framework.target.stack import builder_here, open_store

_ROUNDS = 3
_MEDIATOR = "xen/arch/arm/tee/optee.c"


def edit_to_verdict(context: Context) -> list[float]:
    """Seconds from a comment edited in optee.c to the verdict of the smoke profile, by `run --xen-tree`."""
    store = open_store(context.options.offline, context.options.mirror, context.progress)
    source = pinned_source(builder_here(store, context.progress))
    samples = []
    with tempfile.TemporaryDirectory(prefix="medcheck-edit-") as folder:
        tree = Path(folder, "xen")
        source.copy_to(tree)
        path = tree / _MEDIATOR
        original = path.read_text()
        for number in range(_ROUNDS + 1):
            path.write_text(f"/* edit {number} */\n{original}")
            begin = time.monotonic()
            result = run(
                RunOptions(
                    profile="smoke",
                    report=Path(folder, f"report-{number}"),
                    overrides=replace(context.overrides, xen_tree=tree),
                    offline=context.options.offline,
                    mirrors=context.options.mirror,
                ),
                context.progress,
            )
            if result.failure is not None:
                raise result.failure
            samples.append(time.monotonic() - begin)
    # The first round builds the tree as a whole.
    return samples[1:]

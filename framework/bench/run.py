# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck bench``: named measurements, each a list of samples with one unit."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.stack import Overrides
from framework.bench import stimuli
from framework.bench.boots import cold_boot, first_run
from framework.bench.conformance import check_speed
from framework.bench.consoles import console_throughput
from framework.bench.context import Context
from framework.bench.matrix import column
from framework.bench.mutants import mutant_run
from framework.bench.own_xen import edit_to_verdict
from framework.bench.probe import BATCH, probe_calls
from framework.bench.replay import cost
from framework.bench.snapshots import answer, build_beyond_boot, clones, private, private_busy, running, smc, xtest
from framework.bench.trace import trace_read, trace_written
from framework.bench.workloads import checked, cost_of, lockstep, sensing, traced
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import atomic_write_text
from framework.common.terminal import Output
from framework.target.checkpoints import PARKED
from framework.trace.senses import Sense


@dataclass(frozen=True)
class Benchmark:
    """One measurement: ``measure`` returns its samples."""

    unit: str
    text: str
    measure: Callable[[Context], list[float]]


BENCHMARKS: dict[str, Benchmark] = {
    "console_mb_per_s": Benchmark(
        "MB/s", "bytes through a console, with log and watch", lambda _: [console_throughput() for _ in range(5)]
    ),
    "trace_records_per_s": Benchmark("1/s", "records the plugin's sink compresses and writes", trace_written),
    "trace_read_per_s": Benchmark("1/s", "records read from a trace file", trace_read),
    "check_events_per_s": Benchmark("1/s", "events checked offline: traces of 10^4, 10^5, 10^6", check_speed),
    "trace_overhead_ratio": Benchmark("x", "xtest with every SMC traced to without", cost_of(traced)),
    "coverage_overhead_ratio": Benchmark(
        "x", "xtest traced, with the coverage of the mediator, to only traced", cost_of(sensing(Sense.COVERAGE), traced)
    ),
    "senses_overhead_ratio": Benchmark(
        "x", "xtest traced, with all senses, to only traced", cost_of(sensing(*Sense), traced)
    ),
    "lockstep_overhead_ratio": Benchmark("x", "xtest with every call in lock-step to without", cost_of(lockstep)),
    "live_check_ratio": Benchmark("x", "xtest traced and checked live to only traced", cost_of(checked, traced)),
    "probe_calls_per_s": Benchmark("1/s", "calls by a probe guest, each a program of its own", probe_calls()),
    "probe_batched_calls_per_s": Benchmark("1/s", f"… {BATCH} of them in a program", probe_calls(BATCH)),
    "stimulus_s": Benchmark("s", "one stimulus of profile standard: its board, its calls, its verdict", stimuli.each),
    "standard_stimuli_s": Benchmark("s", "all stimuli of profile standard", stimuli.together),
    "cold_boot_s": Benchmark("s", "power-on to three domUs ready", cold_boot),
    "clone_running_s": Benchmark("s", "a clone asked for to its virtual CPUs running", clones(running)),
    "clone_running_pair_s": Benchmark("s", "… two side by side", clones(running, at_once=2)),
    "clone_answer_s": Benchmark("s", "… to a command executed in dom0 and answered", clones(answer)),
    "clone_answer_pair_s": Benchmark("s", "… two side by side", clones(answer, at_once=2)),
    "clone_smc_s": Benchmark("s", "… to an SMC of a probe guest made and answered", clones(smc, checkpoint=PARKED)),
    "clone_xtest_s": Benchmark("s", "… to a session opened, used and closed in a domU (xtest 1002)", clones(xtest)),
    "clone_private_mb": Benchmark("MB", "memory of a clone's own, two seconds idle", clones(private, 5)),
    "clone_private_busy_mb": Benchmark("MB", "… after xtest 1001 and 1004 in a domU", clones(private_busy, 5)),
    "snapshot_beyond_boot_s": Benchmark("s", "making a snapshot beyond booting its board", build_beyond_boot),
    "replay_cost_ratio": Benchmark("x", "xtest 4001 in two guests, on the instruction clock to on the host's", cost),
    "edit_to_verdict_s": Benchmark("s", "an edit of optee.c to the smoke profile's verdict on it", edit_to_verdict),
    "matrix_column_s": Benchmark("s", "a column of a matrix, smoke profile, its Xen built", column(known=False)),
    "matrix_known_s": Benchmark("s", "… whose result is known already", column(known=True)),
    "mutant_run_s": Benchmark("s", "one test of the suite with one mutant of the mediator, to its verdict", mutant_run),
    "first_run_s": Benchmark("s", "the smoke profile with an empty cache", first_run),
}


FORMER = {"template_beyond_boot_s": "snapshot_beyond_boot_s"}
"""Benchmarks by their names of version 0.1: taken as arguments and written beside the new ones until 0.3."""


def summarise(unit: str, samples: Sequence[float]) -> dict[str, object]:
    """Return a benchmark's entry in the JSON file."""
    ordered = sorted(samples)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "unit": unit, "n": len(ordered), "median": statistics.median(ordered), "p95": p95, "max": ordered[-1],
        "samples": list(samples),
    }  # fmt: skip


def bench(
    names: Sequence[str], listing: bool, file: Path | None, overrides: Overrides,
    options: argparse.Namespace, output: Output,
) -> int:  # fmt: skip
    """Run the named benchmarks (all without names) and print or write their numbers."""
    if listing:
        rows = {name: benchmark.text for name, benchmark in BENCHMARKS.items()}
        output.finish(rows, "\n".join(f"{name:<24} {text}" for name, text in rows.items()))
        return ExitCode.GOOD
    names = [FORMER.get(name, name) for name in names]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise UsageError(f"no benchmark {', '.join(unknown)}", hint=f"one of {', '.join(BENCHMARKS)}")
    if file is not None and file.is_dir():
        raise UsageError("--json: expected a file, this is a folder", where=str(file))
    context = Context(options, overrides, output.progress)
    results: dict[str, dict[str, object]] = {}
    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        results[name] = summarise(benchmark.unit, benchmark.measure(context))
        output.say(f"{name}: {results[name]}")
    written = {**results, **{old: results[new] for old, new in FORMER.items() if new in results}}
    if file is not None:
        atomic_write_text(file, json.dumps(written, indent=2) + "\n")
    output.finish(
        written,
        "\n".join(
            f"{name:<24} median {r['median']:.3g} {r['unit']}  p95 {r['p95']:.3g}  max {r['max']:.3g}  n={r['n']}"
            for name, r in results.items()
        ),
    )
    return ExitCode.GOOD

# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed of writing and reading traces without a board: synthetic records through the plugin's own sink."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from framework.bench.context import Context
from framework.common.errors import InfrastructureError
from framework.trace.build import SOURCES, run_compiler
from framework.trace.reader import Reader

_ROUNDS = 3
_RECORD_BYTES = 256
"""About a guest call with its registers and a short message."""


@dataclass(frozen=True, slots=True)
class TraceSpeed:
    """Records per second, from a loop to a closed file and read as events; and bytes of file per record."""

    written: float
    read: float
    bytes_per_record: float


def compile_sink_bench(folder: Path, *, compiler: str = "cc") -> Path:
    """The program that drives the plugin's sink."""
    program = folder / "sink_bench"
    sources = [str(SOURCES / "bench" / "sink_bench.c"), str(SOURCES / "sink.c")]
    run_compiler([compiler, "-std=gnu11", "-O2", "-o", str(program), *sources, "-lpthread", "-ldl"])
    return program


def sink_throughput(program: Path, path: Path, records: int = 1_000_000, size: int = _RECORD_BYTES) -> float:
    """Records per second that the sink takes, compresses and writes to ``path``, closing included."""
    command = [str(program), str(path), str(records), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfrastructureError(f"the sink benchmark failed: {done.stderr.strip()}", where=str(path))
    result = json.loads(done.stdout)
    if result["lost"]:
        raise InfrastructureError(f"the sink lost {result['lost']} records", where=str(path))
    return float(result["records"] / result["seconds"])


def trace_speed(folder: Path | None = None, records: int = 1_000_000) -> TraceSpeed:
    """Measure on a file in ``folder`` (default: a temporary one)."""
    with tempfile.TemporaryDirectory(prefix="medcheck-bench-", dir=folder) as name:
        path = Path(name) / "bench.mct"
        written = sink_throughput(compile_sink_bench(Path(name)), path, records)
        begin = time.perf_counter()
        count = sum(1 for _ in Reader(path).events())
        read = count / (time.perf_counter() - begin)
        return TraceSpeed(written, read, path.stat().st_size / records)


def trace_written(context: Context) -> list[float]:
    """Records per second through the plugin's sink into a closed file."""
    return [speed.written for speed in _speeds(context)]


def trace_read(context: Context) -> list[float]:
    """Records per second from a file to events."""
    return [speed.read for speed in _speeds(context)]


def _speeds(context: Context) -> list[TraceSpeed]:
    found = []
    for _ in range(_ROUNDS):
        speed = trace_speed()
        context.progress.say(f"{speed.written:.0f} records/s written, {speed.read:.0f} records/s read")
        found.append(speed)
    return found


if __name__ == "__main__":
    print(trace_speed())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace plugin's files when runs are appended, boards killed and disks full; and what it refuses to do."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from framework.trace.build import PluginOptions
from framework.trace.reader import Reader
from testcases.integration.trace_payload import IDLE_S, NEEDS, Bench

pytestmark = NEEDS


def test_runs_are_appended(bench: Bench) -> None:
    path = bench.folder / "twice.mct"
    for label in ("first", "second"):
        assert bench.run(PluginOptions(out=path, append=True, label=label)).returncode == 0
    reader = Reader(path)
    count = sum(1 for _ in reader.events())
    assert [segment.meta["label"] for segment in reader.segments] == ["first", "second"]
    assert all(segment.complete for segment in reader.segments)
    assert count == 2 * reader.segments[0].records


def test_a_killed_board_leaves_a_readable_trace(bench: Bench) -> None:
    path = bench.folder / "killed.mct"
    board = bench.start(PluginOptions(out=path, flush_s=0.01), rounds=10_000_000)
    try:
        while not path.exists() or path.stat().st_size < 100_000:
            assert board.poll() is None
    finally:
        board.send_signal(signal.SIGKILL)
        board.communicate()
    reader = Reader(path)
    seqs = [event.seq for event in reader.events()]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 100
    assert not reader.segments[0].complete


@pytest.mark.parametrize("stop", [True, False])
def test_a_full_disk_stops_the_board_or_is_counted(bench: Bench, stop: bool) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    path = bench.folder / f"full{stop}.mct"
    options = PluginOptions(out=path, stop_on_error=stop, codec="none")
    command = bench.command(options, rounds=10_000_000 if stop else 100)
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=IDLE_S, check=False)
    assert "cannot write the trace file: File too large" in done.stderr
    assert ("stopping the board" in done.stderr) == stop
    assert re.search(r"medcheck_trace: [1-9]\d* records were lost", done.stderr)
    reader = Reader(path)
    assert sum(1 for _ in reader.events()) > 0 and reader.truncated and not reader.segments[0].complete


def test_a_trace_at_its_limit_is_cut_and_the_board_goes_on(bench: Bench) -> None:
    path = bench.folder / "limit.mct"
    done = bench.run(PluginOptions(out=path, codec="none", max_mib=1), rounds=1000)
    assert done.returncode == 0 and "has reached its limit of 1 MiB; the board goes on" in done.stderr
    assert path.stat().st_size <= 1 << 20
    reader = Reader(path)
    last = list(reader.events())[-1].counters()
    assert last["lost"] > 0 and last["records"] == reader.segments[0].records + last["lost"]
    assert reader.truncated and not reader.segments[0].complete


def test_arguments_that_make_no_sense_are_refused(bench: Bench) -> None:
    for options, text in (
        (PluginOptions(out=Path("/no/such/folder/t")), "cannot write the trace file /no/such/folder/t"),
        (PluginOptions(lockstep=Path("/no/such/socket")), "no lock-step consumer listens at /no/such/socket"),
        (PluginOptions(out=bench.folder / "x", codec="lzma"), 'cannot understand the argument "codec=lzma"'),
    ):
        done = bench.run(options)
        assert done.returncode != 0 and text in done.stderr


def test_another_qemu_is_refused_with_the_reason(bench: Bench) -> None:
    """The plugin's own check, called the way a QEMU with plugin API 4 would."""
    script = """
import ctypes, sys
class System(ctypes.Structure): _fields_ = [("smp", ctypes.c_int), ("max", ctypes.c_int)]
class Info(ctypes.Structure):
    _fields_ = [("target", ctypes.c_char_p), ("min", ctypes.c_int), ("cur", ctypes.c_int), ("system",
    ctypes.c_bool),
                ("cpus", System)]
plugin = ctypes.CDLL(sys.argv[1], mode=1)  # RTLD_LAZY: QEMU's functions are not here
info = Info(b"aarch64", 2, 4, True, System(1, 1))
sys.exit(10 + plugin.qemu_plugin_install(ctypes.c_uint64(1), ctypes.byref(info), 0, None))
"""
    command = ["python3", "-c", script, str(bench.plugin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert "made for QEMU plugin API 7, this QEMU offers 2 to 4" in done.stderr

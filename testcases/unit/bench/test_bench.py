# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks without a board: the table, what is written, and that nothing is measured without a watcher."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path

import pytest

from framework.artifacts.stack import Overrides
from framework.bench import run as command
from framework.bench.workloads import Rig, lockstep, traced
from framework.common.errors import InfrastructureError, TraceError, UsageError
from framework.common.terminal import Output
from framework.trace.format import Kind
from framework.trace.live import Message
from framework.trace.writer import Writer, pack_record
from testcases.unit.trace.test_live import FakePlugin


@pytest.fixture
def rig() -> Rig:
    return Rig(None, None, None, Path("plugin.so"), None)  # type: ignore[arg-type]  # no board is started


def measured(monkeypatch: pytest.MonkeyPatch, file: Path, *names: str) -> dict[str, dict[str, object]]:
    samples = iter(([3.0, 1.0, 2.0], [7.0]))
    fakes = {name: command.Benchmark("s", name, lambda _: next(samples)) for name in ("one", "two")}
    monkeypatch.setattr(command, "BENCHMARKS", fakes)
    command.bench(names, False, file, Overrides(), argparse.Namespace(), Output(quiet=True))
    loaded: dict[str, dict[str, object]] = json.loads(file.read_text())
    return loaded


def test_numbers_are_written_with_their_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = measured(monkeypatch, tmp_path / "out.json")
    assert found["one"] == {"unit": "s", "n": 3, "median": 2.0, "p95": 3.0, "max": 3.0, "samples": [3.0, 1.0, 2.0]}
    assert list(found) == ["one", "two"]


def test_an_unknown_name_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no benchmark three"):
        measured(monkeypatch, tmp_path / "out.json", "one", "three")
    assert not (tmp_path / "out.json").exists()


def test_lockstep_lets_every_vcpu_go(rig: Rig, tmp_path: Path) -> None:
    with lockstep(rig, tmp_path) as options:
        assert f"lockstep={tmp_path / 'lockstep'}" in options["plugin_args"]
        assert options["outputs"] == [tmp_path / "lockstep"]  # QEMU may run as another user
        plugin = FakePlugin(tmp_path / "lockstep")
        plugin.greet()
        assert plugin.setup[1] & 1 << Kind.GUEST_CALL
        for seq in (1, 2):
            plugin.put(Message.EVENT, pack_record(Kind.GUEST_CALL, seq, [0]), flags=1)
            assert plugin.get()[0] == Message.CONTINUE
        plugin.put(Message.BYE)


def test_lockstep_that_held_nobody_measured_nothing(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no vCPU waited"), lockstep(rig, tmp_path):
        plugin = FakePlugin(tmp_path / "lockstep")
        plugin.greet()
        plugin.put(Message.BYE)


def test_a_board_that_does_not_start_leaves_no_thread(rig: Rig, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), lockstep(rig, tmp_path):
        raise ZeroDivisionError
    for thread in threading.enumerate():
        if thread.name == "lockstep":
            thread.join(10)
    assert threading.active_count() == before


def test_a_trace_without_records_measured_nothing(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="nothing was traced"), traced(rig, tmp_path) as options:
        (trace,) = options["outputs"]
        with Writer(trace, counters=False):
            pass
    with pytest.raises(TraceError), traced(rig, tmp_path / "elsewhere"):
        pass


def test_a_benchmark_has_its_old_name_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an argument, and beside the new name in the file, which is read by machines."""
    for number, name in enumerate(("snapshot_beyond_boot_s", "template_beyond_boot_s")):
        fake = {"snapshot_beyond_boot_s": command.Benchmark("s", "", lambda _: [3.0])}
        monkeypatch.setattr(command, "BENCHMARKS", fake)
        file = tmp_path / f"{number}.json"
        command.bench([name], False, file, Overrides(), argparse.Namespace(), Output(quiet=True))
        found = json.loads(file.read_text())
        assert list(found) == ["snapshot_beyond_boot_s", "template_beyond_boot_s"]
        assert found["snapshot_beyond_boot_s"] == found["template_beyond_boot_s"]
        assert found["snapshot_beyond_boot_s"]["median"] == 3.0

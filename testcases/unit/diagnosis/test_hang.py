# SPDX-License-Identifier: GPL-2.0-or-later
"""Hung, idle or slow: what the words are, whatever QEMU and the host say; and that a diagnosis hides nothing."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import BoardError
from framework.diagnosis import hang as hang
from framework.diagnosis.cpu_location import CpuLocation, Names, parse
from framework.diagnosis.hang import ActivitySample, CpuActivity, HangDetector, judge, sample, words
from framework.diagnosis.symbols import Symbols, elf_symbols

DUMP = """
CPU#0
 PC=000000000026b10c X00=0000000000000000 X01=0000000000000000
X29=00008000bffe7e60 X30=000000000026b090  SP=00008000bffe7e60
PSTATE=00000000800002c9 N--- NS EL2h     FPCR=00000000 FPSR=00000000
Q00=4e00656c69662074:78656e206f4e006e

CPU#1
 PC=000000000e100400 X00=0000000000000000 X30=0000000000000000
PSTATE=00000000600003c4 -ZC- S EL1h     FPCR=00000000 FPSR=00000000

CPU#2
 PC=0000000000000004 X00=0000000000000000
PSTATE=00000000400003cd -Z-- EL3h     FPCR=00000000 FPSR=00000000

CPU#3
R00=00000000 R01=00000000 R15=00010000
PSR=400001d3 -Z-- A S svc32

CPU#10
 PC=0000aaaac5a30a9c X00=0000000000000000
PSTATE=0000000060000000 -ZC- NS EL0t     FPCR=00000000 FPSR=00000000
""".replace("\n", "\r\n")

LOCATIONS = [
    CpuLocation(0, 0x26B10C, 2, False, 0x26B090),
    CpuLocation(1, 0xE100400, 1, True, 0),
    CpuLocation(2, 4, 3),
    CpuLocation(3, None, None),
    CpuLocation(10, 0xAAAAC5A30A9C, 0),
]


def test_registers_of_every_level_are_read():
    assert parse(DUMP) == LOCATIONS
    assert parse("") == []


def test_places_are_named_by_level_and_only_xen_by_xens_symbols(tmp_path):
    names = Names(_object(tmp_path, "int idle_loop(void) { return 1; }\nint other(void) { return 2; }"))
    begin = _address(tmp_path / "code.o", "idle_loop")
    said = [names.describe(replace(location, pc=location.pc and begin + 1)) for location in LOCATIONS]
    assert [text.split(": ", 1)[1] for text in said] == [
        "idle_loop+0x1 in Xen (EL2)",
        "in OP-TEE (S-EL1)",
        "in the firmware (EL3)",
        "QEMU shows no 64-bit program counter (AArch32 code?)",
        "in a program of dom0 or a guest (EL0)",
    ]
    assert names.describe(CpuLocation(0, 0xFFFF, 2)) == "CPU 0 at 0xffff: in no known function in Xen (EL2)"
    assert names.caller(CpuLocation(0, 0, 2, False, begin + 1)) == "idle_loop+0x1"
    assert names.caller(CpuLocation(0, 0, 1, False, begin + 1)) is None
    assert Names(None).describe(LOCATIONS[0]).endswith("in Xen (EL2; no symbols of it are given)")


def test_linux_is_named_where_somebody_can():
    location = CpuLocation(0, 0xFFFF800080000010, 1)
    assert Names(None).describe(location).endswith(": in dom0 or a guest (EL1)")
    assert (
        Names(None, lambda pc: f"schedule+{pc & 0xFF:#x}")
        .describe(location)
        .endswith(": schedule+0x10 in Linux (EL1: dom0 or a guest)")
    )


def test_a_file_without_symbols_is_said_and_spoils_nothing(tmp_path):
    (tmp_path / "no-elf").write_bytes(b"nothing")
    assert "its symbols cannot be read" in Names(tmp_path / "no-elf").describe(LOCATIONS[0])
    with pytest.raises(BoardError, match="cannot be read"):
        elf_symbols(tmp_path / "absent")
    stripped = _object(tmp_path, "int f(void) { return 1; }")
    subprocess.run(["strip", str(stripped)], check=True)
    assert "it has no symbol table" in Names(stripped).describe(LOCATIONS[0])


def test_functions_end_where_their_size_says():
    symbols = Symbols([(0x100, 0x10, "sized"), (0x180, 0, "label"), (0x200, 0, "last"), (0x200, 8, "better")], 0x300)
    found = [symbols.name(address) for address in (0xFF, 0x100, 0x10F, 0x110, 0x180, 0x1FF, 0x207, 0x208)]
    assert found == [None, "sized+0x0", "sized+0xf", None, "label+0x0", "label+0x7f", "better+0x7", None]
    assert Symbols([], 0).name(0) is None


def test_labels_of_assembly_code_are_places_too(tmp_path):
    path = _object(tmp_path, 'asm(".text\\nvectors: .skip 64\\n.data\\ndata: .skip 64");\nint f(void) { return 1; }')
    assert elf_symbols(path).name(_address(path, "vectors") + 0x20) == "vectors+0x20"


def test_memory_is_read_from_the_monitors_words():
    text = "ffff800080010c00: 0xd503201f 0x14000000\r\nffff800080010c08: 0x00000001\r\n"
    assert words(text) == bytes.fromhex("1f2003d5 00000014 01000000")
    assert words("0xffff800080010c00: Cannot access memory\r\n") == b""


# Two samples, ten seconds apart

IDLE, SPIN, ASLEEP = CpuActivity(0.15, 0.02, 1500), CpuActivity(9.8, 0.1, 30), CpuActivity(0.0, 0.0, 0)
STARVED = CpuActivity(4.0, 5.0, 200)


def samples(
    *uses: CpuActivity, printed: int = 0, trace: int | None = None, frozen: bool = False
) -> tuple[ActivitySample, ActivitySample]:
    cpus = {f"CPU {number}": CpuActivity(100.0, 5.0, 7000) for number in range(len(uses))}
    later = {
        f"CPU {number}": CpuActivity(100.0 + use.ran, 5.0 + use.waited, 7000 + use.woken)
        for number, use in enumerate(uses)
    }
    recorded = None if trace is None else 5000
    before = ActivitySample(50.0, {"xen": 10, "dom0": 20}, recorded, cpus)
    after = None if trace is None else 5000 + trace
    return before, ActivitySample(60.0, {"xen": 10, "dom0": 20 + printed}, after, later, frozen)


@pytest.mark.parametrize(
    ("pair", "status", "word", "reason", "still"),
    [
        (samples(ASLEEP, ASLEEP), "paused", "hung", "its state is paused", "consoles, CPU 0, CPU 1"),
        (samples(ASLEEP, ASLEEP), "running", "hung", "every CPU sleeps, and nothing woke one, not even a timer",
         "consoles, CPU 0, CPU 1"),
        (samples(ASLEEP, trace=0), "running", "hung", "every CPU sleeps", "consoles, SMCs, CPU 0"),
        (samples(ASLEEP, frozen=True), None, "hung", "a signal has stopped QEMU itself", "consoles, CPU 0"),
        (samples(ASLEEP), None, "hung", "QEMU's monitor does not answer", "consoles, CPU 0"),
        (samples(IDLE, IDLE, trace=0), "running", "idle", "woken 300 times a second", "consoles, SMCs"),
        (samples(IDLE, ASLEEP), "running", "idle", "CPU 1 slept all the while, and nothing woke it", "consoles, CPU 1"),
        (samples(IDLE, SPIN), "running", "slow", "CPU 1 for 98% of the time", "consoles"),
        (samples(IDLE, STARVED), "running", "slow",
         "the host is busy with other things and lets CPU 1 wait", "consoles"),
        (samples(SPIN, SPIN, printed=7), "running", "running", "console dom0 printed 7 bytes", ""),
        (samples(IDLE, IDLE, trace=64), "running", "running", "SMCs were recorded", "consoles"),
        (samples(SPIN), None, "slow", "QEMU's monitor does not answer", "consoles"),
    ],
)  # fmt: skip
def test_verdicts(pair, status, word, reason, still):
    verdict = judge(*pair, status)
    assert (verdict.word, ", ".join(verdict.still), verdict.seconds) == (word, still, 10.0)
    assert reason in verdict.reason
    assert str(verdict).startswith(f"{word}: ")
    assert "stood still for 10.0 s" in str(verdict)


# A board that is none


class Monitor:
    """Answers like QEMU, or with an error."""

    def __init__(self, status: str = "running", fails: str = "") -> None:
        self.status = status
        self.fails = fails
        self.asked: list[str] = []

    def execute(self, command: str, **arguments: Any) -> Any:
        self.asked.append(str(arguments.get("command_line", command)))
        if self.fails in (command, arguments.get("command_line")):
            raise BoardError(f"QEMU did not answer {command}")
        return {"status": self.status} if command == "query-status" else DUMP


class Machine:
    """A board as far as looking goes: a folder in the location of /proc."""

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        self.pid = 77
        self.run_dir = folder
        self.consoles = {"dom0": SimpleNamespace(bytes_seen=3)}
        self.outputs = (folder / "trace", folder / "socket")
        self.qmp = monitor
        self.stack = SimpleNamespace(kernel=folder / "Image")
        self.uptime = 12.0
        self.in_lockstep = self.icount = False
        self.ends = False
        self.proc = folder / "proc/77"
        self.state("S")
        for tid, name in ((77, "ld-linux-x86-64"), (78, "CPU 0/TCG"), (79, "IO mon_iothread"), (80, "CPU 1/TCG")):
            self.thread(tid, name, 1_500_000_000)

    def ends_within(self, _seconds: float) -> bool:
        return self.ends

    def state(self, letter: str) -> None:
        self.proc.mkdir(parents=True, exist_ok=True)
        (self.proc / "stat").write_text(f"77 (ld (x) {letter}) {letter} 1 77 0")

    def thread(self, tid: int, name: str, ran: int) -> None:
        task = self.proc / f"task/{tid}"
        task.mkdir(parents=True, exist_ok=True)
        (task / "comm").write_text(f"{name}\n")
        (task / "schedstat").write_text(f"{ran} 250000000 9\n")
        (task / "status").write_text("Name:\tx\nvoluntary_ctxt_switches:\t42\nnonvoluntary_ctxt_switches:\t7\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(hang, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(hang, "_SAMPLE_SECONDS", 0.0)
    return Machine(tmp_path, Monitor())


def test_a_look_reads_the_cpus_threads_and_the_files_that_are_files(machine):
    machine.outputs[0].write_bytes(b"12345")
    machine.outputs[1].mkdir()
    seen = sample(machine)
    assert seen.cpus == {"CPU 0": CpuActivity(1.5, 0.25, 42), "CPU 1": CpuActivity(1.5, 0.25, 42)}
    assert (seen.consoles, seen.trace, seen.frozen) == ({"dom0": 3}, 5, False)
    machine.state("T")
    machine.outputs[0].unlink()
    assert (sample(machine).trace, sample(machine).frozen) == (None, True)


def test_a_host_that_does_not_count_nanoseconds_counts_ticks(machine):
    for tid in (78, 80):
        (machine.proc / f"task/{tid}/schedstat").unlink()
        ticks = 3 * os.sysconf("SC_CLK_TCK")
        (machine.proc / f"task/{tid}/stat").write_text(f"{tid} (CPU 0/TCG) S {'0 ' * 10}{ticks} {ticks // 2} 0")
    assert sample(machine).cpus == {"CPU 0": CpuActivity(4.5, 0.0, 42), "CPU 1": CpuActivity(4.5, 0.0, 42)}


def test_a_board_that_is_gone_is_no_board_that_hangs(machine):
    detector = HangDetector(machine)
    before = detector.sample()
    assert before is not None
    for tid in (78, 80):
        (machine.proc / f"task/{tid}/comm").write_text("ld-linux-x86-64")
    assert detector.sample() is None
    assert detector.explain(before) is None
    assert machine.qmp.asked == []


def test_an_explanation_has_the_verdict_the_places_and_a_file_with_everything(machine):
    detector = HangDetector(machine)
    text = detector.explain(detector.sample())
    assert text.startswith("hung: every CPU sleeps")
    assert "CPU 0 at 0x26b10c: in Xen (EL2; no symbols of it are given)" in text
    written = (machine.run_dir / "hang.txt").read_text()
    assert "CPU 1 at 0xe100400: in OP-TEE (S-EL1)" in written
    assert "Q00=4e00656c69662074" in written
    assert "\r" not in written
    assert "console dom0: 0 bytes" in written
    assert [path.name for path in machine.run_dir.glob("*hang*")] == ["hang.txt"]


def test_a_cpu_that_spins_is_looked_at_again(machine):
    detector = HangDetector(machine)
    before = replace(detector.sample(), at=0.0)
    machine.thread(78, "CPU 0/TCG", 10**18)
    text = detector.explain(before)
    assert text.startswith("slow: ")
    assert "in Xen (EL2; no symbols of it are given), 5 times in a row" in text
    assert "S-EL1), 5 times" not in text
    assert machine.qmp.asked.count("info registers -a") == 5


def test_only_a_running_board_that_rests_for_long_is_hopeless(machine, monkeypatch):
    monkeypatch.setattr(hang, "_FOREVER_SECONDS", 0.0)
    detector = HangDetector(machine)
    assert not detector.hopeless()
    detector.sample()
    assert detector.hopeless()
    machine.qmp.status = "paused"
    assert not detector.hopeless()
    machine.qmp.status = "running"
    machine.in_lockstep = True
    assert not detector.hopeless()
    machine.in_lockstep = False
    machine.qmp.fails = "query-status"
    assert not detector.hopeless()
    monkeypatch.setattr(hang, "_FOREVER_SECONDS", 1000.0)
    assert not detector.hopeless()


def test_what_moves_begins_the_count_anew_and_a_rest_is_told_from_its_beginning(machine, monkeypatch):
    clock = iter([100.0, 110.0, 120.0, 130.0])
    monkeypatch.setattr(hang.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(hang, "host_factor", lambda: 1.0)
    detector = HangDetector(machine)
    detector.sample()
    machine.consoles["dom0"].bytes_seen += 1
    detector.sample()
    last = detector.sample()
    assert not detector.hopeless()
    assert "stood still for 20.0 s: consoles, CPU 0, CPU 1" in detector.explain(last)


def test_a_board_is_idle_while_no_smc_comes_and_no_cpu_has_work(machine, monkeypatch):
    at = 100.0
    monkeypatch.setattr(hang.time, "monotonic", lambda: at)
    detector = HangDetector(machine)

    def idle_after(seconds):
        nonlocal at
        at += seconds
        return detector.idle()

    assert idle_after(0) == 0
    assert [idle_after(0.1), idle_after(1), idle_after(1)] == [0, pytest.approx(1.1), pytest.approx(2.1)]
    machine.thread(78, "CPU 0/TCG", 3 * 10**9)
    assert idle_after(1) == 0, "a CPU had work"
    assert idle_after(20) == 20
    machine.consoles["dom0"].bytes_seen += 1
    assert idle_after(1) == 21, "a kernel complains that nothing goes on"
    machine.in_lockstep = True
    assert idle_after(1) == 0


def test_an_smc_ends_idleness(machine, tmp_path, monkeypatch):
    at = 100.0
    monkeypatch.setattr(hang.time, "monotonic", lambda: at)
    machine.outputs = [tmp_path / "board.trace"]
    machine.outputs[0].write_bytes(b"one")
    detector = HangDetector(machine)
    detector.idle()
    at = 110.0
    assert detector.idle() == 10
    machine.outputs[0].write_bytes(b"one, two")
    at = 120.0
    assert detector.idle() == 0


def test_a_reader_in_lock_step_may_be_the_reason(machine):
    detector = HangDetector(machine)
    assert "lock-step" not in detector.explain(detector.sample())
    machine.in_lockstep = True
    assert "a CPU that seems to sleep may be held by the reader" in detector.explain(detector.sample())


@pytest.mark.parametrize(
    ("fails", "told"),
    [("query-status", "the registers are not known: QEMU did not answer query-status"),
     ("info registers -a", "the registers are not known: QEMU did not answer human-monitor-command")],
)  # fmt: skip
def test_a_monitor_that_does_not_answer_is_a_finding(machine, fails, told):
    machine.qmp.fails = fails
    detector = HangDetector(machine)
    text = detector.explain(detector.sample())
    assert text.startswith("hung: ")
    assert told in text


def test_a_monitor_that_fails_because_qemu_ends_is_no_hang(machine):
    machine.qmp.fails = "query-status"
    machine.ends = True
    detector = HangDetector(machine)
    assert detector.explain(detector.sample()) is None
    assert not (machine.run_dir / "hang.txt").exists()


def test_a_stopped_qemu_is_not_asked(machine):
    detector = HangDetector(machine)
    before = detector.sample()
    machine.state("T")
    assert detector.explain(before).startswith("hung: a signal has stopped QEMU itself")
    assert machine.qmp.asked == []


def test_a_diagnosis_that_fails_is_told_and_raises_nothing(machine, monkeypatch):
    detector = HangDetector(machine)
    assert detector.explain(None) == "unknown: there was no earlier sample to compare with"
    monkeypatch.setattr(machine, "run_dir", machine.run_dir / "absent")
    assert "hang.txt cannot be written" in detector.explain(detector.sample())
    monkeypatch.setattr(hang, "judge", lambda *_: 1 // 0)
    assert "the diagnosis failed: ZeroDivisionError" in detector.explain(detector.sample())


def _object(folder: Path, source: str) -> Path:
    (folder / "code.c").write_text(source + "\n")
    command = ["cc", "-O1", "-fno-ipa-icf", "-c", "-o", str(folder / "code.o"), str(folder / "code.c")]
    subprocess.run(command, check=True)
    return folder / "code.o"


def _address(path: Path, name: str) -> int:
    listed = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
    return next(int(line.split()[0], 16) for line in listed.splitlines() if line.split()[-1] == name)

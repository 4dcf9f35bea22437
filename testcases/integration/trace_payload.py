# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the bare-metal board of one page (``payloads/trace.S``) on a real QEMU with the trace plugin."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from framework.trace.build import PluginOptions
from framework.trace.event import Event
from framework.trace.format import Kind
from framework.trace.reader import Reader

TOOLS = ("aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "aarch64-linux-gnu-objcopy", "cc")
NEEDS = [
    pytest.mark.artifacts,
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs " + ", ".join(TOOLS)),
]
"""Marks of every test that runs the payload."""

SOURCE = Path(__file__).parent / "payloads" / "trace.S"
LOAD = 0x4020_0000
ARG, LIST, READONLY, DOORBELL, MMIO = (0x8000_0000 + n * 4096 for n in range(5))
CALLS = (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
ROUNDS = 3
IDLE_S = 60


@dataclass
class Bench:
    """Runs the payload on a QEMU with the plugin."""

    qemu: list[str]
    plugin: Path
    folder: Path
    images: dict[int, Path] = field(default_factory=dict)

    def image(self, rounds: int) -> Path:
        """The payload, assembled to repeat its guest program ``rounds`` times."""
        if rounds not in self.images:
            base = self.folder / f"payload{rounds}"
            subprocess.run([TOOLS[0], "--defsym", f"ROUNDS={rounds}", "-o", f"{base}.o", SOURCE], check=True)
            subprocess.run([TOOLS[1], f"-Ttext={LOAD:#x}", "-o", f"{base}.elf", f"{base}.o"], check=True)
            subprocess.run([TOOLS[2], "-O", "binary", f"{base}.elf", f"{base}.bin"], check=True)
            self.images[rounds] = Path(f"{base}.bin")
        return self.images[rounds]

    def command(self, options: PluginOptions, rounds: int = ROUNDS, extra: tuple[str, ...] = ()) -> list[str]:
        """QEMU's command line."""
        return [
            *self.qemu,
            "-machine",
            "virt,secure=on,virtualization=on,gic-version=3",
            "-cpu",
            "cortex-a53",
            "-smp",
            "1",
            "-m",
            "256",
            "-nodefaults",
            "-display",
            "none",
            "-semihosting",
            "-device",
            f"loader,file={self.image(rounds)},addr={LOAD:#x},cpu-num=0,force-raw=on",
            *options.qemu(self.plugin),
            *extra,
        ]

    def run(
        self, options: PluginOptions, rounds: int = ROUNDS, extra: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        command = self.command(options, rounds, extra)
        return subprocess.run(command, capture_output=True, text=True, timeout=IDLE_S, check=False)

    def start(self, options: PluginOptions, rounds: int = ROUNDS) -> subprocess.Popen[str]:
        """Run in the background."""
        return subprocess.Popen(self.command(options, rounds), stderr=subprocess.PIPE, text=True)


def events(path: Path, *kinds: Kind) -> list[Event]:
    """The records of a trace; with ``kinds`` only those."""
    return [event for event in Reader(path).events() if not kinds or event.kind in kinds]

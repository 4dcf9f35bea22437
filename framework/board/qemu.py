# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of a board's QEMU. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from framework.board.spec import BoardSpec
from framework.common.errors import UsageError

NAME_PREFIX = "medcheck-"
"""Every QEMU of ours carries ``-name medcheck-<board id>``: the janitor finds it by that, with or without
an entry file."""

_SYSTEM = [Path(name) for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")]

_INSTRUCTION_CLOCK = [
    # One thread executes all CPUs in turns, each instruction takes 4 ns, and time in which all CPUs wait is
    # skipped; the calendar and what QEMU takes for random begin with the same values each time.
    "-accel", "tcg,thread=single",
    "-icount", "shift=2,sleep=off",
    "-rtc", "base=2026-01-01T00:00:00,clock=vm",
    "-seed", "1",
    # What a guest gives a virtio device is handled at once, by the thread of the CPU that gave it.
    "-global", "virtio-mmio.ioeventfd=off",
]  # fmt: skip


class Bundle(Protocol):
    """A QEMU that can be started (framework.artifacts.qemu_bundle.QemuBundle)."""

    def argv(self, program: str = ...) -> list[str]:
        """Return the beginning of the command line."""


class BoardFiles(Protocol):
    """The files a board consists of; framework.artifacts.stack.Stack has them all and more."""

    @property
    def qemu(self) -> Bundle:
        """The emulator."""

    @property
    def flash(self) -> Path:
        """The secure flash: TF-A's BL1 at 0, FIP at 256 KiB."""

    @property
    def xen(self) -> Path:
        """The hypervisor, a flat image."""

    @property
    def kernel(self) -> Path:
        """dom0's kernel, an arm64 Image."""

    @property
    def dom0_ramdisk(self) -> Path:
        """dom0's userland."""


@dataclass(frozen=True)
class Ram:
    """File with guest RAM. Without one, RAM is anonymous memory that leaves no file behind.

    ``share`` False gives this board a private copy-on-write view of the file (a clone). The board removes
    the file when it ends unless ``keep``.
    """

    path: Path
    share: bool = True
    keep: bool = True


def opt(value: object) -> str:
    """Quote a value for QEMU's option syntax, where a comma ends it."""
    return str(value).replace(",", ",,")


def console_names(spec: BoardSpec) -> list[str]:
    """Return the names of a board's consoles in the order of their devices."""
    return ["xen", "optee", "dom0", *(f"guest{slot}" for slot in range(spec.guest_slots))]


def machine_argv(spec: BoardSpec, ram: Ram | None) -> list[str]:
    """Return the part of the line that a saved board and its clones must share to the letter, RAM apart."""
    size = f"{spec.memory_mib}M"
    if ram is None:
        memory = f"memory-backend-memfd,id=m,size={size},share=on"
    else:
        # A private view opens the file for reading only: no clone can damage what it was cloned from.
        share = "share=on" if ram.share else "share=off,readonly=on,rom=off"
        memory = f"memory-backend-file,id=m,size={size},mem-path={opt(ram.path)},{share}"
    return [
        "-machine", f"{spec.machine},memory-backend=m",
        "-cpu", spec.cpu,
        "-smp", str(spec.smp),
        "-m", str(spec.memory_mib),
        "-object", memory,
        "-nodefaults", "-no-user-config", "-display", "none",
    ]  # fmt: skip


def device_argv(spec: BoardSpec, fds: Mapping[str, int]) -> list[str]:
    """Return consoles, network and random numbers; ``fds`` gives each console's and ``qmp``'s connected
    socket."""
    argv: list[str] = []
    for name in [*console_names(spec), "qmp"]:
        argv += ["-chardev", f"socket,id={name},fd={fds[name]}"]
    argv += ["-qmp", "chardev:qmp"]
    argv += ["-serial", "chardev:xen", "-serial", "chardev:optee"]
    argv += ["-device", "virtio-serial-device", "-device", "virtconsole,chardev=dom0,name=dom0"]
    for slot in range(spec.guest_slots):
        argv += ["-device", f"virtserialport,chardev=guest{slot},name=guest{slot}"]
    # Port 0: the system picks a free one, so boards cannot collide; QMP tells which.
    # Restricted: guests reach neither the host, its loopback included, nor what lies behind it; only SSH comes in.
    network = "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"
    argv += ["-netdev", network, "-device", "virtio-net-device,netdev=n0"]
    argv += ["-device", "virtio-rng-device"]
    return argv


def boot_argv(spec: BoardSpec, files: BoardFiles, dtb: Path) -> list[str]:
    """Return what only a board that boots from power-on has: the files in RAM and the device tree."""
    argv: list[str] = []
    for file, address in (
        (files.xen, spec.load_map.xen),
        (files.kernel, spec.load_map.dom0_kernel),
        (files.dom0_ramdisk, spec.load_map.dom0_ramdisk),
    ):
        argv += ["-device", f"loader,file={opt(file)},addr={address:#x},force-raw=on"]
    return [*argv, "-dtb", str(dtb)]


def flash_argv(files: BoardFiles) -> list[str]:
    """Return the secure flash, which the board cannot write."""
    return ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={opt(files.flash)}"]


def common_argv(board_id: str, *, icount: bool = False) -> list[str]:
    """Return what every board has: its name, the accelerator, the clock, the sandbox, paused at power-on."""
    clock = _INSTRUCTION_CLOCK if icount else ["-accel", "tcg,thread=multi"]
    return [
        "-name", f"{NAME_PREFIX}{board_id},debug-threads=on",
        *clock,
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        # A reset of the board would boot it again behind the test's back: QEMU ends instead, and the owner
        # sees it.
        "-no-reboot",
        "-S",
    ]  # fmt: skip


def plugin_argv(plugin: Path | None, arguments: Sequence[str]) -> list[str]:
    """Return the trace plugin with its ``key=value`` arguments, or nothing without one."""
    if plugin is None:
        if arguments:
            raise UsageError("plugin arguments were given without a plugin")
        return []
    return ["-plugin", ",".join([f"file={opt(plugin)}", *map(opt, arguments)])]


def program_files(argv: Sequence[str]) -> list[Path]:
    """Return what a program at the beginning of a command line reads: of a bundle, its loader, libraries and program,
    and else, its own file and the system's folders of libraries."""
    named = [Path(word) for word in argv if word.startswith("/")]
    return [*named, *([] if "--library-path" in argv else _SYSTEM)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations of a board's CPUs: QEMU's register dump, parsed and put into words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framework.common.errors import BoardError
from framework.diagnosis.symbols import elf_symbols

NameLinux = Callable[[int], str | None]
"""Names the location of an address in Linux; None if it cannot."""

_CPU = re.compile(r"^CPU#(\d+)\s*$", re.MULTILINE)
_PC = re.compile(r"\bPC=([0-9a-f]+)")
_LR = re.compile(r"\bX30=([0-9a-f]+)")
_LEVEL = re.compile(r"^PSTATE=[0-9a-f]+ [N-][Z-][C-][V-] (NS |S )?EL(\d)", re.MULTILINE)


@dataclass(frozen=True)
class CpuLocation:
    """Location of one CPU. ``level`` is its exception level (None: AArch32 code, or QEMU does not say);
    ``link`` is X30, where a leaf function returns to."""

    cpu: int
    pc: int | None
    level: int | None
    secure: bool = False
    link: int | None = None


def parse(registers: str) -> list[CpuLocation]:
    """Read what QEMU's ``info registers -a`` prints for an arm64 machine."""
    parts = _CPU.split(registers.replace("\r", ""))[1:]
    locations = []
    for number, text in zip(parts[::2], parts[1::2], strict=True):
        pc, link, level = _PC.search(text), _LR.search(text), _LEVEL.search(text)
        locations.append(
            CpuLocation(
                int(number),
                None if pc is None else int(pc[1], 16),
                None if level is None else int(level[2]),
                level is not None and level[1] == "S ",
                None if link is None else int(link[1], 16),
            )
        )
    return locations


class Names:
    """Puts CPU locations into words. ``xen_syms`` are the symbols of the Xen that runs, if available; ``linux`` knows
    the kernel."""

    def __init__(self, xen_syms: Path | None, linux: NameLinux | None = None) -> None:
        self._linux = linux
        self._xen = None
        self._no_xen = "no symbols of it are given"
        if xen_syms is not None:
            try:
                self._xen = elf_symbols(xen_syms)
            except BoardError as error:
                self._no_xen = error.what

    def describe(self, location: CpuLocation) -> str:
        """``CPU 0 at 0x26b10c: idle_loop+0x188 in Xen (EL2)``. Xen's names are for non-secure EL2 only: the same number
        at another level is an address in another program."""
        if location.pc is None:
            return f"CPU {location.cpu}: QEMU shows no 64-bit program counter (AArch32 code?)"
        return f"CPU {location.cpu} at {location.pc:#x}: {self._where(location, location.pc)}"

    def caller(self, location: CpuLocation) -> str | None:
        """Return the location that X30 points to, for code of Xen; None elsewhere."""
        if self._xen is None or location.link is None or location.level != 2 or location.secure:
            return None
        return self._xen.name(location.link)

    def _where(self, location: CpuLocation, pc: int) -> str:
        if location.level == 3:
            return "in the firmware (EL3)"
        if location.secure:
            return {0: "in a trusted application (S-EL0)", 1: "in OP-TEE (S-EL1)"}.get(
                location.level if location.level is not None else -1, "in the secure world"
            )
        if location.level == 2:
            if self._xen is None:
                return f"in Xen (EL2; {self._no_xen})"
            return f"{self._xen.name(pc) or 'in no known function'} in Xen (EL2)"
        if location.level == 1:
            name = None if self._linux is None else self._linux(pc)
            return "in dom0 or a guest (EL1)" if name is None else f"{name} in Linux (EL1: dom0 or a guest)"
        return "in a program of dom0 or a guest (EL0)" if location.level == 0 else "QEMU does not say in what"

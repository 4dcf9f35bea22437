# SPDX-License-Identifier: GPL-2.0-or-later
"""Liveness of a board's hypervisor, its free memory, and what it said of OP-TEE: from its console, and from its answer
to a debug key, or to a hypercall of dom0's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from framework.common.errors import MedcheckError
from framework.guests.xen_console import free_kib
from framework.target.target import Target

_PLENTY_MIB = 64
"""Free memory of Xen's that no call to the mediator comes near to needing: a call takes a few pages."""

_THREADS = re.compile(
    rb"^\[ {0,9}\d{1,9}\.\d{3}\] \(XEN\) {1,4}(?:\[[^\]\n]{0,40}\] )?"
    rb"OP-TEE supports (\d{1,4}) simultaneous threads per guest", re.MULTILINE
)  # fmt: skip
"""Xen's own line in a console's log: what a guest prints stands behind ``d1v0`` or ``(d1)``."""
_BOOT_BYTES = 4 << 20
"""Xen says it while it boots, before there is any guest; logs grow to a GiB."""


@dataclass(frozen=True)
class Hypervisor:
    """``alive``: False when Xen's console shows its end, True when it answers, None when there is neither: Xen may live
    all the same. ``memory_free``: the answer shows that it has enough memory.
    """

    alive: bool | None
    memory_free: bool = False


def hypervisor_of(target: Target) -> Hypervisor:
    """Ask a board's hypervisor for a sign of life."""
    if xen_died(target):
        return Hypervisor(False)
    if not target.board.alive:
        return Hypervisor(None)  # stopped by a test, or lost with QEMU
    free = _free_mib(target)
    if xen_died(target):
        return Hypervisor(False)
    return Hypervisor(None) if free is None else Hypervisor(True, free >= _PLENTY_MIB)


def _free_mib(target: Target) -> int | None:
    """Xen's free memory in MiB; None when it does not tell."""
    try:
        return free_kib(target.board.consoles["xen"]) >> 10
    except MedcheckError:
        if xen_died(target) or not target.board.alive:
            return None
    try:
        # Where its console takes no input, as with conswitch= on its command line.
        free = target.dom0.xl.info().get("free_memory", "")
    except MedcheckError:
        return None
    return int(free) if free.isdecimal() and len(free) < 10 else 0


def xen_died(target: Target) -> bool:
    """Whether Xen's console shows its end."""
    return any(problem.kind.startswith("xen-") and problem.fatal for problem in target.board.problems)


def threads_said(run_dir: Path) -> int | None:
    """OP-TEE's number of threads, from the console's log in a board's folder: a trace begins after Xen asked for it.
    None when Xen did not say it."""
    console = run_dir / "consoles" / "xen.log"
    if not console.exists():
        return None
    with console.open("rb") as log:
        said = _THREADS.search(log.read(_BOOT_BYTES))
    return int(said[1]) if said else None

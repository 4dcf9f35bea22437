# SPDX-License-Identifier: GPL-2.0-or-later
"""Liveness of a board's hypervisor, and its free memory, from its console and from its answer to a debug key, or to a
hypercall of dom0's."""

from __future__ import annotations

from dataclasses import dataclass

from framework.common.errors import MedcheckError
from framework.guests.xen_console import free_kib
from framework.target.target import Target

_PLENTY_MIB = 64
"""Free memory of Xen's that no call to the mediator comes near to needing: a call takes a few pages."""


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

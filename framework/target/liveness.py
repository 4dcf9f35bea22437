# SPDX-License-Identifier: GPL-2.0-or-later
"""Liveness of a board's hypervisor, and its free memory, from its console and from its answer to a hypercall."""

from __future__ import annotations

from dataclasses import dataclass

from framework.common.errors import MedcheckError
from framework.target.target import Target

_PLENTY_MIB = 64
"""Free memory of Xen's that no call to the mediator comes near to needing: a call takes a few pages."""


@dataclass(frozen=True)
class Hypervisor:
    """``alive``: False when Xen's console shows its end, True when dom0 gets an answer to a hypercall, None when there
    is neither: Xen may live all the same. ``memory_free``: the answer shows that it has enough memory.
    """

    alive: bool | None
    memory_free: bool = False


def hypervisor_of(target: Target) -> Hypervisor:
    """Ask a board's hypervisor for a sign of life (``xl info``)."""
    if xen_died(target):
        return Hypervisor(False)
    if not target.board.alive:
        return Hypervisor(None)  # stopped by a test, or lost with QEMU
    try:
        free = target.dom0.xl.info().get("free_memory", "")
    except MedcheckError:
        return Hypervisor(False if xen_died(target) else None)
    if xen_died(target):
        return Hypervisor(False)
    return Hypervisor(True, free.isdecimal() and len(free) < 10 and int(free) >= _PLENTY_MIB)


def xen_died(target: Target) -> bool:
    """Whether Xen's console shows its end."""
    return any(problem.kind.startswith("xen-") and problem.fatal for problem in target.board.problems)

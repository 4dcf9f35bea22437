"""Whether the hypervisor of a board lives: by what its console says, and by a call that it answers."""

from __future__ import annotations

from framework.common.errors import MedcheckError
from framework.target.target import Target

_ANSWER_SECONDS = 20.0


def hypervisor_lives(target: Target) -> bool | None:
    """Whether Xen still works: False when QEMU is gone or Xen's console shows its end, True when dom0 gets an answer
    to a hypercall (``xl info``), None when dom0 does not answer: then Xen may live all the same."""
    if not target.board.alive or xen_died(target):
        return False
    try:
        answered = target.dom0.run("xl info >/dev/null", idle_timeout=_ANSWER_SECONDS).rc == 0
    except MedcheckError:
        answered = False
    if xen_died(target):
        return False
    return True if answered else None


def xen_died(target: Target) -> bool:
    """Whether Xen's console shows its end."""
    return any(problem.kind.startswith("xen-") and problem.fatal for problem in target.board.problems)

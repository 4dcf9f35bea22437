# SPDX-License-Identifier: GPL-2.0-or-later
"""Deterministic execution with ``-icount``: all clones of a board execute the same instructions.

QEMU's ``-icount`` makes the board's clock a count of instructions, executes all CPUs in turns in one thread, and
skips the time in which all of them wait. Four things stand between that and two clones that do the same:

* A board that was saved on the host's clock has no count: :mod:`framework.snapshot.icount_state` gives its state one.
* A restored machine announces itself to its network, by the host's clock. :func:`framework.snapshot.save.fill` forbids
  that for every clone.
* QEMU's main thread serves what guests give their virtio devices: :mod:`framework.board.qemu` gives that to the CPUs'
  thread.
* QEMU's main thread and the one that executes the CPUs both let timers expire, and it matters which: an interrupt that
  comes from the other thread ends the turn of the CPU that executes. :func:`pin_threads_realtime` lets the main thread
  work only while the CPUs' thread waits for it: both on one core, under real-time priorities, which no other policy
  gives (a thread of the normal policy may be preferred to a real-time one for 50 ms of each second: Linux' "fair
  server").

What comes in from outside (typed input, the network) comes by the host's clock and ends all that, so whatever such a
clone is to do must be in it when it is saved: :mod:`framework.jobs.replay`.

Sources: QEMU system/cpu-timers.c (section "timer" and its subsection), accel/tcg/tcg-accel-ops-rr.c,
accel/tcg/icount-common.c, net/announce.c; Arm ARM D24 (PMCEID0_EL0), sched(7).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from framework.common.errors import InfrastructureError

_DISTURBING, _CPUS, _HIGHEST = 1, 2, 3
"""Real-time priorities of QEMU's threads."""

_CPUS_THREAD = "ALL CPUs/TCG"
_REMINDS_CPUS = "call_rcu"
"""QEMU's thread that frees memory; it ends a CPU's turn when that keeps it waiting."""


_REFUSED = "this user may not set real-time priorities, without which no two clones do the same"
_HINT = f"run as root, or allow it: `ulimit -r` must say {_HIGHEST} or more (rtprio in /etc/security/limits.conf)"


def pin_threads_realtime(pid: int) -> None:
    """Let QEMU's threads that could disturb the CPUs work only while the CPUs' thread waits; call it before that
    begins. The monitor's and the trace writer's do not disturb, and must not wait for the main thread to be idle.

    Raises InfrastructureError when this user may not set real-time priorities, or when QEMU is not as expected.
    """
    core = {max(os.sched_getaffinity(0))}
    executes = 0
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        name = (task / "comm").read_text().strip()
        executes += name == _CPUS_THREAD
        try:
            os.sched_setaffinity(int(task.name), core)
            disturbs = name == _REMINDS_CPUS or int(task.name) == pid
            priority = _CPUS if name == _CPUS_THREAD else _DISTURBING if disturbs else _HIGHEST
            os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(priority))
        except PermissionError as error:
            raise InfrastructureError(_REFUSED, where=f"QEMU (pid {pid})", hint=_HINT) from error
    if executes != 1:
        raise InfrastructureError(f"{executes} of QEMU's threads execute CPUs, not one", where=f"QEMU (pid {pid})")


def unpin_threads(pid: int) -> None:
    """Undo :func:`pin_threads_realtime`: the monitor of such a board does not answer while its CPUs never wait.

    From then on the board runs at the host's pace. Does nothing for threads, or a QEMU, that are gone.
    """
    everywhere = os.sched_getaffinity(0)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(int(task.name), everywhere)


def require_realtime() -> None:
    """Raise the InfrastructureError of :func:`pin_threads_realtime` now, before any work; also on a host with one core
    only, which a guest that computes for ever would take from all other programs."""
    if len(os.sched_getaffinity(0)) < 2:
        raise InfrastructureError(
            "a replay takes a whole core, and this host has no other one",
            hint="use a host with two cores or more (does an affinity mask forbid them?), or --host-clock",
        )
    refused: list[PermissionError] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_HIGHEST))  # This thread's alone.
        except PermissionError as error:
            refused.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if refused:
        raise InfrastructureError(_REFUSED, hint=_HINT) from refused[0]

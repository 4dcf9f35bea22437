"""Boards whose clones all do the same, instruction by instruction: time is what their CPUs have executed.

QEMU's ``-icount`` makes the board's clock a count of instructions, executes all CPUs in turns in one thread, and
skips the time in which all of them wait. Four things stand between that and two clones that do the same:

* A board that was saved on the host's clock has no count. :func:`converted` gives its state one that begins at the
  time at which it was saved; without, time would jump back by the board's uptime, and all timers with it. It also
  sets the one bit of the CPUs' identification by which QEMU says that it counts instructions, and on which it
  refuses to differ.
* A restored machine announces itself to its network, by the host's clock. :func:`framework.board.saving.fill` forbids
  that for every clone.
* QEMU's main thread serves what guests give their virtio devices: :mod:`framework.board.qemu` gives that to the CPUs'
  thread.
* QEMU's main thread and the one that executes the CPUs both let timers expire, and it matters which: an interrupt that
  comes from the other thread ends the turn of the CPU that executes. :func:`keep_order` lets the main thread work only
  while the CPUs' thread waits for it: both on one core, under real-time priorities, which no other policy gives (a
  thread of the normal policy may be preferred to a real-time one for 50 ms of each second: Linux' "fair server").

What comes in from outside (typed input, the network) comes by the host's clock and ends all that, so whatever such a
clone is to do must be in it when it is saved: :mod:`framework.replay`.

Sources: QEMU system/cpu-timers.c (section "timer" and its subsection), accel/tcg/tcg-accel-ops-rr.c,
accel/tcg/icount-common.c, net/announce.c; Arm ARM D24 (PMCEID0_EL0), sched(7).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from pathlib import Path

from framework.board.device_state import (
    Register,
    describe,
    odd,
    read,
    register_number,
    registers_of,
    section,
    walk,
)
from framework.errors import InfrastructureError

_PMCEID0_EL0: Register = (3, 3, 9, 12, 6)
_PMCEID0_AARCH32 = 0xF_4E06
"""The low half of the number that QEMU gives the register's AArch32 view: coprocessor 15, 32 bits, c9, c12, 6."""
_INST_RETIRED = 1 << 8

_DISTURBING, _CPUS, _HIGHEST = 1, 2, 3
"""Real-time priorities of QEMU's threads."""

_FOOTER = 0x7E
_SUBSECTION = 5
_TIMER_ICOUNT = b"timer/icount"

_CPUS_THREAD = "ALL CPUs/TCG"
_REMINDS_CPUS = "call_rcu"
"""QEMU's thread that frees memory; it ends a CPU's turn when that keeps it waiting."""


_REFUSED = "this user may not set real-time priorities, without which no two clones do the same"
_HINT = f"run as root, or allow it: `ulimit -r` must say {_HIGHEST} or more (rtprio in /etc/security/limits.conf)"


def converted(state: bytes) -> bytes:
    """The device state of a board that was saved on the host's clock, for one on the instruction clock.

    Raises BoardError when the state is not a stream of the expected form.
    """
    mended = bytearray(state)
    devices = describe(mended)
    for cpu in devices:
        if cpu["name"] == "cpu":
            registers = registers_of(mended, cpu)
            for number in (register_number(_PMCEID0_EL0), _PMCEID0_AARCH32):
                if number not in registers:
                    raise odd(f"a CPU without the register {number:#x}")
                at = registers[number]
                struct.pack_into(">Q", mended, at, read(mended, ">Q", at) | _INST_RETIRED)
    timer = next((device for device in devices if device["name"] == "timer"), None)
    if timer is None:
        raise odd("no clock in it")
    begin = section(mended, timer)
    end = begin + sum(field["size"] for field in timer["fields"])
    if mended[end] != _FOOTER:
        raise odd("its clock counts instructions already")
    places = dict(walk(timer["fields"], begin))
    if "cpu_clock_offset" not in places:
        raise odd("a clock without time")
    saved_at = read(mended, ">q", places["cpu_clock_offset"])
    name = bytes([_SUBSECTION, len(_TIMER_ICOUNT)]) + _TIMER_ICOUNT
    mended[end:end] = name + struct.pack(">Iqq", 1, saved_at, 0)
    return bytes(mended)


def keep_order(pid: int) -> None:
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


def drop_order(pid: int) -> None:
    """End what :func:`keep_order` began: nothing comes from such a board's monitor while its CPUs never wait.

    From here on the board does what it does at the host's pace. Does nothing for threads, or a QEMU, that are gone.
    """
    everywhere = os.sched_getaffinity(0)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(int(task.name), everywhere)


def require_order() -> None:
    """Raise the InfrastructureError of :func:`keep_order` now, before any work, if that would raise it later."""
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

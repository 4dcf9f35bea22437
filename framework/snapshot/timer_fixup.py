# SPDX-License-Identifier: GPL-2.0-or-later
"""Repair of a saved board's device state: timers that QEMU does not re-arm on restore.

QEMU saves an Arm CPU's EL1 physical and virtual timers, but re-arms none of the others on restore: the EL2
physical timer (CNTHP, the one Xen lives by), the EL2 virtual and the secure one keep their registers and never
fire. A CPU whose only wake-up they are would sleep for ever. :func:`wake_timers` makes every such timer that is
armed look expired, as hardware would show it to a CPU that was late: ISTATUS set in its control register, its
interrupt pending at the CPU's redistributor. The hypervisor takes one timer interrupt, finds what is due and
programs the timer anew. So a board can be saved at any time, without waiting for it to be quiet.

Another repair is for QEMU since 11.1, in which WFE sleeps: it loses a SEV that comes while another CPU's thread is
about to sleep (``helper_sev`` wakes it without the lock under which that thread has just seen that no event is there).
Xen's spin locks wait by WFE, so the other CPU soon waits for the one that sleeps. The architecture's own remedy is the
timer's event stream, which ends every WFE after a while. Linux uses it: nothing hangs while a CPU has the registers of
a Linux guest. Xen and probes do not: :func:`wake_timers` switches on the hypervisor's stream, which no guest sees.

Sources: QEMU target/arm/machine.c, target/arm/helper.c, target/arm/tcg/op_helper.c, system/cpus.c,
hw/intc/arm_gicv3_common.c; Arm ARM D13 (CNTHP_CTL_EL2 and its kin, CNTHCTL_EL2); BSA for the interrupt numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from framework.snapshot.vmstate import (
    Register,
    State,
    describe,
    read,
    register_number,
    registers_of,
    unexpected_format,
    walk,
)

_ENABLE, _MASKED, _ISTATUS = 1, 2, 4

_CNTHCTL: Register = (3, 4, 14, 1, 0)
_EVENT_STREAM = 1 << 2 | 15 << 4
"""EVNTEN, and EVNTI: an event whenever bit 15 of the counter becomes 1, with QEMU's 62.5 MHz every millisecond."""


@dataclass(frozen=True)
class _Timer:
    """A timer that QEMU does not re-arm: ``register`` is its control register as op0, op1, CRn, CRm, op2,
    ``interrupt`` the number of its private peripheral interrupt."""

    name: str
    register: Register
    interrupt: int


_FORGOTTEN = (
    _Timer("CNTHP", (3, 4, 14, 2, 1), 26),
    _Timer("CNTHV", (3, 4, 14, 3, 1), 28),
    _Timer("CNTPS", (3, 7, 14, 2, 1), 29),
)


@dataclass(frozen=True)
class Woken:
    """A timer that would never have fired."""

    cpu: int
    timer: str

    def __str__(self) -> str:
        return f"{self.timer} of CPU {self.cpu}"


def wake_timers(state: State) -> list[Woken]:
    """Make every armed timer that QEMU would forget fire at once, and switch on the hypervisor's event stream; return
    the timers.

    Raises BoardError when the state is not a stream of the expected form: a board restored from it might hang without a
    visible cause.
    """
    devices = describe(state)
    cpus = [device for device in devices if device["name"] == "cpu"]
    gic = next((device for device in devices if device["name"] == "arm_gicv3"), None)
    if not cpus or gic is None:
        raise unexpected_format("no Arm CPU or no GICv3 in it")
    pending = [at for path, at in walk(gic["fields"], gic["at"]) if path == "cpu.gicr_ipendr0"]
    if len(pending) != len(cpus):
        raise unexpected_format(f"{len(pending)} redistributors for {len(cpus)} CPUs")
    woken = []
    for cpu in cpus:
        number = int(cpu["instance_id"])
        registers = registers_of(state, cpu)
        for timer in _FORGOTTEN:
            at = registers.get(register_number(timer.register))
            if at is None:
                continue
            control = read(state, ">Q", at)
            if control & (_ENABLE | _MASKED) != _ENABLE:
                continue
            struct.pack_into(">Q", state, at, control | _ISTATUS)
            waiting = read(state, ">I", pending[number])
            struct.pack_into(">I", state, pending[number], waiting | 1 << timer.interrupt)
            woken.append(Woken(number, timer.name))
        at = registers.get(register_number(_CNTHCTL))
        if at is not None:
            struct.pack_into(">Q", state, at, read(state, ">Q", at) | _EVENT_STREAM)
    return woken

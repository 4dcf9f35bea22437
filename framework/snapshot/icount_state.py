# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversion of a device state that was saved on the host's clock, for a board on the instruction clock.

A board that was saved on the host's clock has no instruction count. :func:`converted` gives its state one that begins
at the time at which it was saved; without, time would jump back by the board's uptime, and all timers with it. It also
sets the one bit of the CPUs' identification by which QEMU says that it counts instructions, and on which it refuses to
differ.

Sources: QEMU system/cpu-timers.c (section "timer" and its subsection); Arm ARM D24 (PMCEID0_EL0).
"""

from __future__ import annotations

import struct

from framework.snapshot.vmstate import (
    FOOTER,
    Register,
    describe,
    read,
    register_number,
    registers_of,
    unexpected_format,
    walk,
)

_PMCEID0_EL0: Register = (3, 3, 9, 12, 6)
_PMCEID0_AARCH32 = 0xF_4E06
"""The low half of the number that QEMU gives the register's AArch32 view: coprocessor 15, 32 bits, c9, c12, 6."""
_INST_RETIRED = 1 << 8

_SUBSECTION = 5
_TIMER_ICOUNT = b"timer/icount"


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
                    raise unexpected_format(f"a CPU without the register {number:#x}")
                at = registers[number]
                struct.pack_into(">Q", mended, at, read(mended, ">Q", at) | _INST_RETIRED)
    timer = next((device for device in devices if device["name"] == "timer"), None)
    if timer is None:
        raise unexpected_format("no clock in it")
    begin = timer["at"]
    end = begin + sum(field["size"] for field in timer["fields"])
    if mended[end] != FOOTER:
        raise unexpected_format("its clock counts instructions already")
    places = dict(walk(timer["fields"], begin))
    if "cpu_clock_offset" not in places:
        raise unexpected_format("a clock without time")
    saved_at = read(mended, ">q", places["cpu_clock_offset"])
    name = bytes([_SUBSECTION, len(_TIMER_ICOUNT)]) + _TIMER_ICOUNT
    mended[end:end] = name + struct.pack(">Iqq", 1, saved_at, 0)
    return bytes(mended)

"""A saved board's device state: read by QEMU's own description of it, and mended where QEMU forgets timers.

QEMU saves an Arm CPU's EL1 physical and virtual timers, but re-arms none of the others on restore: the EL2
physical timer (CNTHP, the one Xen lives by), the EL2 virtual and the secure one keep their registers and never
fire. A CPU whose only wake-up they are would sleep for ever. :func:`wake_timers` makes every such timer that is
armed look expired, as hardware would show it to a CPU that was late: ISTATUS set in its control register, its
interrupt pending at the CPU's redistributor. The hypervisor takes one timer interrupt, finds what is due and
programs the timer anew. So a board can be saved at any moment, with no waiting for quiet.

Sources: QEMU migration/savevm.c (stream and "vmdesc"), target/arm/machine.c, target/arm/helper.c,
hw/intc/arm_gicv3_common.c; Arm ARM D13 (CNTHP_CTL_EL2 and its kin); BSA for the interrupt numbers.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.errors import BoardError

_MAGIC = b"QEVM\x00\x00\x00\x03"
_SECTION_FULL = 4
_DESCRIPTION = 6
_LONGEST_DESCRIPTION = 1 << 20
_DEVICES = 4 << 20

_ENABLE, _MASKED, _ISTATUS = 1, 2, 4


@dataclass(frozen=True)
class _Timer:
    """A timer that QEMU does not re-arm: ``register`` is its control register as op0, op1, CRn, CRm, op2,
    ``interrupt`` the number of its private peripheral interrupt."""

    name: str
    register: tuple[int, int, int, int, int]
    interrupt: int


_FORGOTTEN = (
    _Timer("CNTHP", (3, 4, 14, 2, 1), 26),
    _Timer("CNTHV", (3, 4, 14, 3, 1), 28),
    _Timer("CNTPS", (3, 7, 14, 2, 1), 29),
)


@dataclass(frozen=True)
class Woken:
    """A timer that would have slept for ever."""

    cpu: int
    timer: str

    def __str__(self) -> str:
        return f"{self.timer} of CPU {self.cpu}"


State = bytearray | mmap.mmap
"""A stream in memory, or a mapped file: a board without shared RAM writes gigabytes."""


def wake_timers(state: State) -> list[Woken]:
    """Make every armed timer that QEMU would forget fire at once; return which those were.

    Raises BoardError when the state is not a stream of the expected form: a board restored from it might hang
    without anybody knowing why.
    """
    devices = _describe(state)
    cpus = [device for device in devices if device["name"] == "cpu"]
    gic = next((device for device in devices if device["name"] == "arm_gicv3"), None)
    if not cpus or gic is None:
        raise _odd("no Arm CPU or no GICv3 in it")
    pending = [at for path, at in _walk(gic["fields"], _section(state, gic)) if path == "cpu.gicr_ipendr0"]
    if len(pending) != len(cpus):
        raise _odd(f"{len(pending)} redistributors for {len(cpus)} CPUs")
    woken = []
    for cpu in cpus:
        number = int(cpu["instance_id"])
        registers = _registers(state, cpu)
        for timer in _FORGOTTEN:
            at = registers.get(_register_number(timer.register))
            if at is None:
                continue
            control = _read(state, ">Q", at)
            if control & (_ENABLE | _MASKED) != _ENABLE:
                continue
            struct.pack_into(">Q", state, at, control | _ISTATUS)
            waiting = _read(state, ">I", pending[number])
            struct.pack_into(">I", state, pending[number], waiting | 1 << timer.interrupt)
            woken.append(Woken(number, timer.name))
    return woken


def _describe(state: State) -> list[dict[str, Any]]:
    """The devices in the stream, from the JSON with which QEMU ends it."""
    if state[: len(_MAGIC)] != _MAGIC:
        raise _odd("it does not begin like one")
    # The description ends the stream; before it stand a mark and its length.
    for at in range(len(state) - 2, max(0, len(state) - _LONGEST_DESCRIPTION), -1):
        if state[at] != 0x7B or at < 5 or state[at - 5] != _DESCRIPTION:
            continue
        if _read(state, ">I", at - 4) == len(state) - at:
            try:
                return list(json.loads(state[at:])["devices"])
            except (ValueError, KeyError) as error:
                raise _odd(f"its description cannot be read: {error}") from error
    raise _odd("it ends without a description of itself")


def _section(state: State, device: Mapping[str, Any]) -> int:
    """Where a device's fields begin."""
    name = device["name"].encode()
    head = bytes([len(name)]) + name + struct.pack(">II", device["instance_id"], device["version"])
    # Devices stand at the end, behind whatever RAM the stream holds.
    at = state.find(head, max(0, len(state) - _DEVICES))
    if at < 5 or state[at - 5] != _SECTION_FULL or state.find(head, at + 1) >= 0:
        raise _odd(f"the section of {device['name']} is not there, or there twice")
    return at + len(head)


def _walk(fields: Sequence[Mapping[str, Any]], at: int, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name every field and say where it lies, in the order of the stream."""
    for field in fields:
        path = prefix + field["name"]
        for _ in range(field.get("array_len", 1)):
            yield path, at
            if "struct" in field:
                yield from _walk(field["struct"]["fields"], at, f"{path}.")
            at += field["size"]


def _registers(state: State, cpu: Mapping[str, Any]) -> dict[int, int]:
    """Where the value of each AArch64 system register of a CPU lies, by the register's number."""
    places: dict[str, list[int]] = {}
    for path, at in _walk(cpu["fields"], _section(state, cpu)):
        places.setdefault(path, []).append(at)
    try:
        (length,) = places["cpreg_vmstate_array_len"]
        indexes, values = places["cpreg_vmstate_indexes"], places["cpreg_vmstate_values"]
    except KeyError as error:
        raise _odd(f"a CPU without {error}") from error
    count = _read(state, ">i", length)
    if not len(indexes) == len(values) == count:
        raise _odd(f"a CPU has {count} registers, {len(indexes)} numbers and {len(values)} values")
    # The low half of KVM's register id is the encoding; bit 20 of the number is set for AArch64's only.
    return {
        _read(state, ">Q", index) & 0x1F_FFFF: value for index, value in zip(indexes, values, strict=True)
    }


def _register_number(register: tuple[int, int, int, int, int]) -> int:
    op0, op1, crn, crm, op2 = register
    return 0x13_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def _read(state: State, form: str, at: int) -> int:
    try:
        return int(struct.unpack_from(form, state, at)[0])
    except struct.error as error:
        raise _odd(f"it ends at {len(state)}, in the middle of something") from error


def _odd(what: str) -> BoardError:
    return BoardError(
        f"the device state is not what this QEMU was known to write: {what}", where="saving a board"
    )

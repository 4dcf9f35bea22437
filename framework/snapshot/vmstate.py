"""QEMU's saved device state, read by QEMU's own description of it: what is in it, and where.

Sources: QEMU migration/savevm.c (stream and "vmdesc"), target/arm/machine.c (the registers of a CPU).
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from framework.common.errors import BoardError

_MAGIC = b"QEVM\x00\x00\x00\x03"
_SECTION_FULL = 4
_DESCRIPTION = 6
_LONGEST_DESCRIPTION = 1 << 20
_DEVICES = 4 << 20

Register = tuple[int, int, int, int, int]
"""An AArch64 system register as op0, op1, CRn, CRm, op2."""

State = bytearray | mmap.mmap
"""A stream in memory, or a mapped file: a board without shared RAM writes gigabytes."""


def describe(state: State) -> list[dict[str, Any]]:
    """The devices in the stream, from the JSON with which QEMU ends it."""
    if state[: len(_MAGIC)] != _MAGIC:
        raise unexpected_format("it does not begin like one")
    # The description ends the stream; before it stand a mark and its length.
    for at in range(len(state) - 2, max(0, len(state) - _LONGEST_DESCRIPTION), -1):
        if state[at] != 0x7B or at < 5 or state[at - 5] != _DESCRIPTION:
            continue
        if read(state, ">I", at - 4) == len(state) - at:
            try:
                return list(json.loads(state[at:])["devices"])
            except (ValueError, KeyError) as error:
                raise unexpected_format(f"its description cannot be read: {error}") from error
    raise unexpected_format("it ends without a description of itself")


def section(state: State, device: Mapping[str, Any]) -> int:
    """Where a device's fields begin."""
    name = device["name"].encode()
    head = bytes([len(name)]) + name + struct.pack(">II", device["instance_id"], device["version"])
    # Devices stand at the end, behind whatever RAM the stream holds.
    at = state.find(head, max(0, len(state) - _DEVICES))
    if at < 5 or state[at - 5] != _SECTION_FULL or state.find(head, at + 1) >= 0:
        raise unexpected_format(f"the section of {device['name']} is not there, or there twice")
    return at + len(head)


def walk(fields: Sequence[Mapping[str, Any]], at: int, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name every field and say where it lies, in the order of the stream."""
    for field in fields:
        path = prefix + field["name"]
        for _ in range(field.get("array_len", 1)):
            yield path, at
            if "struct" in field:
                yield from walk(field["struct"]["fields"], at, f"{path}.")
            at += field["size"]


def registers_of(state: State, cpu: Mapping[str, Any]) -> dict[int, int]:
    """Where the value of each AArch64 system register of a CPU lies, by the register's number."""
    places: dict[str, list[int]] = {}
    for path, at in walk(cpu["fields"], section(state, cpu)):
        places.setdefault(path, []).append(at)
    try:
        (length,) = places["cpreg_vmstate_array_len"]
        indexes, values = places["cpreg_vmstate_indexes"], places["cpreg_vmstate_values"]
    except KeyError as error:
        raise unexpected_format(f"a CPU without {error}") from error
    count = read(state, ">i", length)
    if not len(indexes) == len(values) == count:
        raise unexpected_format(f"a CPU has {count} registers, {len(indexes)} numbers and {len(values)} values")
    # The low half of KVM's register id is the encoding; bit 20 of the number is set for AArch64's only.
    return {read(state, ">Q", index) & 0x1F_FFFF: value for index, value in zip(indexes, values, strict=True)}


def register_number(register: Register) -> int:
    op0, op1, crn, crm, op2 = register
    return 0x13_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def read(state: State, form: str, at: int) -> int:
    try:
        return int(struct.unpack_from(form, state, at)[0])
    except struct.error as error:
        raise unexpected_format(f"it ends at {len(state)}, in the middle of something") from error


def unexpected_format(what: str) -> BoardError:
    return BoardError(f"the device state is not what this QEMU was known to write: {what}", where="saving a board")

# SPDX-License-Identifier: GPL-2.0-or-later
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
_END = 0
_SECTION_FULL = 4
_DESCRIPTION = 6
FOOTER = 0x7E
_FOOTER_SIZE = 5
_LONGEST_DESCRIPTION = 1 << 20

Register = tuple[int, int, int, int, int]
"""An AArch64 system register as op0, op1, CRn, CRm, op2."""

State = bytearray | mmap.mmap
"""A stream in memory, or a mapped file: a board without shared RAM writes gigabytes."""


def describe(state: State) -> list[dict[str, Any]]:
    """The devices in the stream, from the JSON with which QEMU ends it; each also says where its fields begin
    (``at``).

    That is reckoned from the stream's end, backwards, by the sizes in the description. Nothing is searched for: what
    guests have in their memory or registers can look like anything.
    """
    if state[: len(_MAGIC)] != _MAGIC:
        raise unexpected_format("it does not begin like one")
    # The description ends the stream; before it stand a mark and its length.
    for at in range(len(state) - 2, max(0, len(state) - _LONGEST_DESCRIPTION), -1):
        if state[at] != 0x7B or at < 6 or state[at - 5] != _DESCRIPTION:
            continue
        if read(state, ">I", at - 4) == len(state) - at:
            try:
                devices = list(json.loads(state[at:])["devices"])
                _locate(state, devices, at - 6)
            except (ValueError, KeyError, TypeError) as error:
                raise unexpected_format(f"its description cannot be read: {error}") from error
            return devices
    raise unexpected_format("it ends without a description of itself")


def _locate(state: State, devices: Sequence[dict[str, Any]], end: int) -> None:
    """Note where each device's fields begin; the last one's section stands before the mark at ``end``."""
    if state[end] != _END:
        raise unexpected_format("no end before its description")
    for device in reversed(devices):
        name = device["name"].encode()
        footer = end - _FOOTER_SIZE
        begin = footer - _size(device)
        header = begin - 4 - 4 - len(name) - 1 - 4 - 1
        if header < 0:
            raise unexpected_format(f"the section of {device['name']} is not there")
        number = state[footer + 1 : footer + 5]
        want = bytes([_SECTION_FULL]) + number + bytes([len(name)]) + name + struct.pack(">I", device["instance_id"])
        # Devices of the old kind do not say their version.
        want += struct.pack(">I", device["version"]) if "version" in device else bytes(state[begin - 4 : begin])
        if state[footer] != FOOTER or state[header:begin] != want:
            raise unexpected_format(f"the section of {device['name']} is not where its size says")
        device["at"] = begin
        end = header


def _size(node: Mapping[str, Any]) -> int:
    """The bytes of a section's, or a subsection's, fields and subsections."""
    fields: int = sum(field["size"] * field.get("array_len", 1) for field in node.get("fields", ()))
    return fields + sum(2 + len(sub["vmsd_name"]) + 4 + _size(sub) for sub in node.get("subsections", ()))


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
    """Return the offset of the value of each AArch64 system register of a CPU, by the register's number."""
    places: dict[str, list[int]] = {}
    for path, at in walk(cpu["fields"], cpu["at"]):
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Device states: synthetic streams in QEMU's form, and what must not be taken for one."""

from __future__ import annotations

import json
import struct

import pytest

from framework.common.errors import BoardError
from framework.snapshot.timer_fixup import wake_timers

CNTHP_CTL = 0x6030_0000_0013_E711
CNTPS_CTL = 0x6030_0000_0013_FF11
CNTHCTL = 0x6030_0000_0013_E708
OTHER = 0x6030_0000_0013_C000


def section(number: int, name: str, instance: int, version: int, data: bytes) -> bytes:
    head = struct.pack(">BIB", 4, number, len(name)) + name.encode() + struct.pack(">II", instance, version)
    return head + data + struct.pack(">BI", 0x7E, number)


def stream(
    controls: list[dict[int, int]], ram: bytes = b"", clock: int | None = None, counted: bool = False
) -> bytearray:
    """A board whose CPUs have these registers; the redistributors' pending bits are all clear. ``clock``: when it was
    saved, in nanoseconds of its own time; ``counted``: it counted instructions then."""
    gic = b"\x11\x22\x33\x44" + b"".join(struct.pack(">II", 0xAAAA, 0) for _ in controls)
    redistributor = {
        "fields": [
            {"name": "gicr_ienabler0", "type": "uint32", "size": 4},
            {"name": "gicr_ipendr0", "type": "uint32", "size": 4},
        ]
    }
    cpu_field = {"name": "cpu", "type": "struct", "size": 8, "struct": redistributor}
    devices = [
        {
            "name": "arm_gicv3", "instance_id": 0, "version": 1,
            "fields": [{"name": "gicd_ctlr", "type": "uint32", "size": 4}, *[cpu_field] * len(controls)],
        }
    ]  # fmt: skip
    body = section(1, "arm_gicv3", 0, 1, gic)
    for number, registers in enumerate(controls):
        count = len(registers)
        data = struct.pack(f">i{count}Q{count}Q", count, *registers, *registers.values())
        body += section(2 + number, "cpu", number, 22, data)
        devices.append(
            {
                "name": "cpu", "instance_id": number, "version": 22,
                "fields": [
                    {"name": "cpreg_vmstate_array_len", "type": "int32", "size": 4},
                    {"name": "cpreg_vmstate_indexes", "type": "uint64", "size": 8, "array_len": count},
                    {"name": "cpreg_vmstate_values", "type": "uint64", "size": 8, "array_len": count},
                ],
            }
        )  # fmt: skip
    if clock is not None:
        counted_ticks = b"\x05\x0ctimer/icount" + struct.pack(">Iqq", 1, clock, 0) if counted else b""
        body = section(0, "timer", 0, 2, struct.pack(">qqq", -1, 0, clock) + counted_ticks) + body
        names = ("cpu_ticks_offset", "unused", "cpu_clock_offset")
        fields = [{"name": name, "type": "int64", "size": 8} for name in names]
        timer: dict[str, object] = {"name": "timer", "instance_id": 0, "version": 2, "fields": fields}
        if counted:
            more = [{"name": "bias", "size": 8}, {"name": "icount", "size": 8}]
            timer["subsections"] = [{"vmsd_name": "timer/icount", "fields": more}]
        devices.insert(0, timer)
    text = json.dumps({"page_size": 4096, "devices": devices}).encode()
    return bytearray(b"QEVM\0\0\0\x03" + ram + body + struct.pack(">BBI", 0, 6, len(text)) + text)


def pending(state: bytearray, cpu: int) -> int:
    at = state.index(b"\x11\x22\x33\x44") + 4 + 8 * cpu + 4
    return int(struct.unpack_from(">I", state, at)[0])


def test_an_armed_timer_looks_expired_afterwards() -> None:
    state = stream([{OTHER: 7, CNTHP_CTL: 1}, {OTHER: 7, CNTHP_CTL: 0}])
    assert [str(item) for item in wake_timers(state)] == ["CNTHP of CPU 0"]
    assert pending(state, 0) == 1 << 26
    assert pending(state, 1) == 0
    assert struct.pack(">QQ", 7, 5) in state, "ISTATUS is set, other registers stay"


@pytest.mark.parametrize("control", [0, 2, 3, 4, 6, 7])
def test_a_timer_that_is_off_or_masked_is_left_alone(control: int) -> None:
    state = stream([{CNTHP_CTL: control}])
    before = bytes(state)
    assert wake_timers(state) == []
    assert state == before


def test_every_forgotten_timer_of_every_cpu_is_woken() -> None:
    state = stream([{CNTHP_CTL: 1, CNTPS_CTL: 1}] * 4)
    assert len(wake_timers(state)) == 8
    assert {pending(state, cpu) for cpu in range(4)} == {1 << 26 | 1 << 29}


def test_no_cpu_waits_for_ever_for_an_event() -> None:
    state = stream([{OTHER: 7, CNTHCTL: 1}] * 2)
    assert wake_timers(state) == []
    assert state.count(struct.pack(">QQ", 7, 0xF5)) == 2, "EVNTEN and EVNTI are set, what the hypervisor chose stays"


def test_ram_that_looks_like_a_section_is_not_taken_for_one() -> None:
    fake = section(9, "cpu", 0, 22, bytes(40))
    state = stream([{CNTHP_CTL: 1}], ram=fake + bytes(8 << 20))
    assert len(wake_timers(state)) == 1
    assert pending(state, 0) == 1 << 26


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1, -40])
def test_a_state_cut_short_is_refused(length: int) -> None:
    state = stream([{CNTHP_CTL: 1}])
    with pytest.raises(BoardError, match="device state"):
        wake_timers(state[:length])


def test_a_board_without_gic_is_refused() -> None:
    state = stream([{CNTHP_CTL: 1}])
    other = bytearray(bytes(state).replace(b"arm_gicv3", b"arm_gicv9"))
    with pytest.raises(BoardError, match="no GICv3"):
        wake_timers(other)


def test_what_a_guest_plants_right_before_the_devices_is_not_taken_for_one() -> None:
    planted = b"".join(
        section(number, name, 0, version, bytes(40))
        for number, name, version in [(1, "arm_gicv3", 1), (2, "cpu", 22), (3, "timer", 2)]
    )
    state = stream([{CNTHP_CTL: 1}], ram=planted)
    assert len(wake_timers(state)) == 1
    assert pending(state, 0) == 1 << 26
    assert planted in state, "the guest's own memory stays"


def test_what_a_guest_plants_in_registers_is_not_taken_for_a_cpu() -> None:
    head = section(3, "cpu", 0, 22, b"")[:-5]
    words = struct.unpack(">3Q", head.rjust(24, b"\x7e"))
    state = stream([{CNTHP_CTL: 1, **{OTHER + number: word for number, word in enumerate(words)}}])
    assert head in state
    assert [str(item) for item in wake_timers(state)] == ["CNTHP of CPU 0"]


def test_a_section_that_is_not_where_its_size_says_is_refused() -> None:
    state = stream([{CNTHP_CTL: 1}])
    at = state.index(b"\x7e\0\0\0\1")
    with pytest.raises(BoardError, match="arm_gicv3 is not where"):
        wake_timers(state[:at] + b"\0" + state[at:])

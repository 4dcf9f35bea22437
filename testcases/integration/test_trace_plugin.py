# SPDX-License-Identifier: GPL-2.0-or-later
"""What the trace plugin records in a real QEMU. Needs a C compiler and an aarch64 assembler."""

from __future__ import annotations

import re
from pathlib import Path

from framework.trace.build import PluginOptions
from framework.trace.calls import Call, fold
from framework.trace.event import Event
from framework.trace.format import BlockFlag, BlockKind, Flag, Kind, P2mType
from framework.trace.reader import Reader
from testcases.integration.trace_payload import ARG, LIST, NEEDS, READONLY, ROUNDS, Bench, events

pytestmark = NEEDS


def test_plugin_qemu_and_reader_count_the_same(bench: Bench, recorded: Path) -> None:
    """Three independent counts: QEMU's exception log, the plugin's counters, and the records read."""
    reader = Reader(recorded)
    read = list(reader.events())
    assert reader.segments[0].complete
    counters = read[-1].counters()
    log = (bench.folder / "int.log").read_text()
    taken = re.findall(r"Taking exception.*\n\.\.\.from EL(\d) to EL(\d)\n\.\.\.with ESR (0x[0-9a-f]+)/", log)
    smc = sum((low, high) == ("1", "2") and int(ec, 16) in (0x13, 0x17) for low, high, ec in taken)
    hvc = sum((low, high) == ("1", "2") and int(ec, 16) in (0x12, 0x16) for low, high, ec in taken)
    el3 = sum((low, high, int(ec, 16)) == ("2", "3", 0x17) for low, high, ec in taken)
    assert (counters["guest_smc"], counters["guest_hvc"], counters["el2_smc"]) == (smc, hvc, el3)
    assert smc + hvc == sum(event.kind == Kind.GUEST_CALL for event in read) > 0
    assert el3 == sum(event.kind == Kind.EL3_CALL for event in read) == sum(e.kind == Kind.EL3_RETURN for e in read)
    assert [event.seq for event in read] == list(range(1, len(read) + 1))


def test_both_conduits_are_seen_with_registers(recorded: Path) -> None:
    first, second = (e for e in events(recorded, Kind.GUEST_CALL)[:2])
    assert (first.conduit, second.conduit) == ("smc", "hvc")
    assert first.regs[0] == 0xBF00FF01 and first.regs[1] == 0x11 and first.regs[17] == 0x17
    assert first.vmid == 7 and first.domain is None
    there, back = events(recorded, Kind.EL3_CALL, Kind.EL3_RETURN)[:2]
    assert there.regs[7] == 2 and there.parent == first.seq and back.parent == there.seq
    assert back.regs[:2] == (0x384FB3E0, 0xE7F811E3)


def test_what_is_not_the_tees_is_counted_not_recorded(bench: Bench) -> None:
    path = bench.folder / "tee.mct"
    assert bench.run(PluginOptions(out=path)).returncode == 0
    found = events(path)
    assert all(event.is_tee for event in found)
    counters = found[-1].counters()
    assert (counters["psci"], counters["hypercall"]) == (ROUNDS, ROUNDS)
    assert counters["guest_smc"] + counters["guest_hvc"] > counters[f"kind_{int(Kind.GUEST_CALL)}"]


def test_an_aarch32_guest_is_recorded_and_labelled(recorded: Path) -> None:
    found = [event for event in events(recorded, Kind.GUEST_CALL) if event.flags & Flag.AARCH32]
    assert [(event.conduit, event.regs[0] & 0xFFFFFFFF) for event in found] == [
        ("smc", 0xBF00FF01),
        ("hvc", 0xBF00FF01),
        ("hvc", 0xC600FFFF),
    ]


def test_memory_is_what_the_guest_and_el3_saw(recorded: Path) -> None:
    """The argument page, its page list to the end with every page's translation, and the shadow at EL3 both
    ways."""
    call = next(item for item in fold(events(recorded)) if isinstance(item, Call) and item.fid == 0x32000004)
    asked = {block.kind: block for block in call.start.blocks()}
    page = asked[BlockKind.GUEST_ARG]
    assert page.ipa == ARG and page.p2m is P2mType.RAM_RW and page.level == 3
    assert page.page()[:8] == bytes([1, 0, 0, 0, 0x22, 0, 0, 0]) and len(page.page()) == 4096
    assert asked[BlockKind.GUEST_LIST].ipa == LIST and asked[BlockKind.GUEST_LIST].cookie == 0xC00C1E
    named = list(asked[BlockKind.TRANSLATIONS].translations())
    assert [t.ipa for t in named] == [READONLY, ARG, 0x8020_0000]
    assert [t.p2m for t in named] == [P2mType.RAM_RO, P2mType.RAM_RW, None]
    assert [t.writable for t in named] == [False, True, False] and named[1].ma == page.ma
    there, back = call.exchanges[0].el3[0]
    shadow = there.block(BlockKind.SHADOW_ARG)
    assert shadow is not None and shadow.ma == there.regs[2] and shadow.page()[20:24] != b"\x0f\xf0\0\0"
    listed = there.block(BlockKind.SHADOW_LIST)
    assert listed is not None and listed.data[:8] == (0xAAAA000).to_bytes(8, "little")
    assert back is not None and back.regs[0] == 0xFFFF0004 and not back.blocks()
    again = there.block(BlockKind.GUEST_ARG)
    assert again is not None and again.page() == page.page()
    last = call.exchanges[1].el3[0][1]
    left = last.block(BlockKind.SHADOW_ARG) if last is not None else None
    assert left is not None and left.page()[20:24] == (0xF00F).to_bytes(4, "little")
    result = call.result()
    assert result is not None and result[20:24] == (0xF00F).to_bytes(4, "little")


def test_an_unmapped_argument_page_is_recorded_as_that(recorded: Path) -> None:
    bad = next(e for e in events(recorded, Kind.GUEST_CALL) if e.regs[0] == 0x32000004 and e.regs[2] == 0x9000_0000)
    block = bad.block(BlockKind.GUEST_ARG)
    assert block is not None and block.flags == BlockFlag.UNMAPPED and not block.readable and block.ma == 0


def test_instruction_counting_gives_the_same_trace_twice(bench: Bench, recorded: Path) -> None:
    """One thread for all CPUs and a virtual clock that counts instructions: bit for bit, times included."""
    traces = []
    for name in ("one", "two"):
        path = bench.folder / f"icount-{name}.mct"
        assert bench.run(PluginOptions(out=path), extra=("-icount", "shift=2,sleep=off")).returncode == 0
        traces.append([event.raw for event in Reader(path).events()])
    assert traces[0] == traces[1]
    assert [event.kind for event in map(Event, traces[0])] == [event.kind for event in events(recorded) if event.is_tee]

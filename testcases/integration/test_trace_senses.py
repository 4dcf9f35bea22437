# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plugin's senses see of the payload's hypervisor, on a real QEMU."""

from __future__ import annotations

import subprocess

import pytest

from framework.trace.build import PluginOptions
from framework.trace.coverage import read_coverage
from framework.trace.format import Kind
from framework.trace.senses import Sense
from testcases.integration.trace_payload import CALLS, LOAD, NEEDS, ROUNDS, Bench, events

pytestmark = NEEDS


def addresses(bench: Bench) -> dict[str, int]:
    """The payload's labels, as linked."""
    bench.image(ROUNDS)
    listed = subprocess.run(
        ["aarch64-linux-gnu-nm", f"{bench.folder}/payload{ROUNDS}.elf"], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(value, 16) for value, _, name in map(str.split, listed.splitlines())}


@pytest.mark.parametrize("clock", [(), ("-icount", "shift=2,sleep=off")], ids=["host", "instructions"])
def test_each_load_and_store_on_the_guests_pages_is_recorded(bench: Bench, clock: tuple[str, ...]) -> None:
    """The payload copies 96 bytes of the argument, descending, and writes ``ret`` back once OP-TEE is done."""
    path = bench.folder / "reads.mct"
    done = bench.run(PluginOptions(out=path, senses=frozenset({Sense.READS, Sense.TIME})), extra=clock)
    assert done.returncode == 0, done.stderr
    argument = addresses(bench)["guest_arg"]
    seen: dict[bool, set[tuple[int, int, int]]] = {True: set(), False: set()}
    for event in events(path, *CALLS):
        accesses = event.accesses()
        assert (accesses is None) == (event.kind in (Kind.GUEST_CALL, Kind.EL3_RETURN))
        for access in accesses or ():
            seen[access.store].add((event.kind, access.ma - argument, access.length))
            assert LOAD <= access.pc < argument
    assert seen == {False: {(Kind.EL3_CALL, 0, 96)}, True: {(Kind.GUEST_RETURN, 20, 4)}}
    spent = {(e.kind, e.instructions()) for e in events(path, *CALLS) if e.regs[0] == 0x32000004}
    if clock:
        # QEMU's counters beside the code cannot be used there, and no number is better than a wrong one.
        assert {taken for _, taken in spent} == {None}
    else:
        assert all(taken and 10 < taken < 200 for kind, taken in spent if kind == Kind.EL3_CALL)


def test_every_instruction_and_each_way_of_a_branch_are_counted(bench: Bench) -> None:
    """The copy's loop: 12 rounds of each of ROUNDS calls, of which the last falls through."""
    labels, file = addresses(bench), bench.folder / "counts"
    start, end = labels["el2_trap"], labels["guest_done"]
    options = PluginOptions(out=bench.folder / "coverage.mct")
    command = bench.command(options)
    at = command.index("-plugin") + 1
    command[at] += f",cover={start:#x}-{end:#x},coverage={file}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = read_coverage(file)
    assert found is not None and found.ranges == ((start, end),)
    loops = [address for address, count in found.counts.items() if count == 12 * ROUNDS]
    assert len(loops) == 4
    assert found.outcomes[max(loops)] == 3

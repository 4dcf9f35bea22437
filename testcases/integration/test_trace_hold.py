# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU whose CPU the trace plugin holds at a point: it stands there, goes on by itself, and nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from framework.trace.build import PluginOptions
from framework.trace.event import Event
from framework.trace.format import Kind
from framework.trace.live import Held, Hold, HoldMode, HoldNews, LiveConsumer
from testcases.integration.trace_payload import CALLS, IDLE_S, NEEDS, Bench

pytestmark = NEEDS

UNKNOWN = 0xFFFF
"""Domain and virtual CPU on a board whose hypervisor has no symbols."""
STANDS_S = 0.4


def run(bench: Bench, path: Path, *holds: Hold) -> tuple[list[tuple[HoldNews, Sequence[int]]], list[Event]]:
    """Run the board with ``holds`` asked for at its first events, one at each; what became of them, and its calls."""
    news: list[tuple[HoldNews, Sequence[int]]] = []
    calls: list[Event] = []
    left = list(holds)
    plugin = PluginOptions(lockstep=path, timeout_s=STANDS_S)
    with LiveConsumer(path, hold=CALLS, on_hold=lambda *each: news.append(each)) as consumer:
        board = bench.start(plugin, 3)
        consumer.accept(IDLE_S)

        def handler(held: Held) -> None:
            calls.append(held.event)
            if left:
                consumer.hold(left.pop(0))

        consumer.serve(handler)
        stderr = board.communicate(timeout=IDLE_S)[1]
    assert board.returncode == 0, stderr
    return news, calls


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.name)
def test_a_cpu_stands_at_an_event_and_goes_on_by_itself(bench: Bench, tmp_path: Path, kind: Kind) -> None:
    """It stands before the event is recorded, and each event is recorded once, as if it had not stood."""
    news, calls = run(bench, tmp_path / "s", Hold(UNKNOWN, UNKNOWN, kind, passing=2))
    assert [each for each, _ in news] == [HoldNews.REACHED, HoldNews.EXPIRED]
    late = [after for before, after in pairwise(calls) if after.time_ns - before.time_ns > STANDS_S * 1e9]
    assert [event.kind for event in late] == [kind]
    _, undisturbed = run(bench, tmp_path / "t")
    assert [(event.kind, event.regs) for event in calls] == [(event.kind, event.regs) for event in undisturbed]
    assert [event.seq for event in calls] == [event.seq for event in undisturbed]


def test_a_cpu_stands_at_an_address(bench: Bench, tmp_path: Path) -> None:
    """The instruction at which it stands is executed once."""
    _, undisturbed = run(bench, tmp_path / "t")
    after_smc = next(event.pc for event in undisturbed if event.kind == Kind.EL3_RETURN)
    news, calls = run(bench, tmp_path / "s", Hold(UNKNOWN, UNKNOWN, after_smc))
    assert [each for each, _ in news] == [HoldNews.REACHED, HoldNews.EXPIRED]
    assert [(event.kind, event.regs) for event in calls] == [(event.kind, event.regs) for event in undisturbed]


def test_another_domain_does_not_stand(bench: Bench, tmp_path: Path) -> None:
    """A point that the wanted vCPU never comes to holds nothing; a new wish ends the one before."""
    never = Hold(7, 0, Kind.GUEST_CALL)
    news, calls = run(bench, tmp_path / "s", never, Hold(7, 0, mode=HoldMode.NONE))
    assert [each for each, _ in news] == [HoldNews.RELEASED]
    assert len(calls) > 2

# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules against a probe and a plugin that the test plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

import pytest

from framework.common.errors import GuestError
from framework.guests.xl import Xl
from framework.probe.client import Probe
from framework.probe.ops import Call, Op
from framework.probe.schedule import EVENTS, Point, Schedule, Stand
from framework.trace.format import Kind
from framework.trace.live import Hold, HoldMode, HoldNews

OPS: tuple[Op, ...] = (Call((0x32000004,)),)
BLOCKS = (0x1000, 0x1010, 0x1020)
DONE, BUSY = 8 | 1 << 32, 8 | 2 << 16
"""Heads of Join's records: done with a payload of one word, the vCPU's number, and not yet."""


class Board:
    """Probe, plugin and toolstack: vCPU 1 stands where it is asked to, unless ``passes_by``."""

    def __init__(self, ends: HoldNews = HoldNews.RELEASED, *, passes_by: bool = False) -> None:
        self.ends, self.passes_by = ends, passes_by
        self.holds: list[Hold] = []
        self.pinned: tuple[tuple[int, int, int], ...] = ()
        self._news: deque[tuple[HoldNews, Sequence[int]]] = deque()
        self._stands = False

    def pin(self, *places: tuple[int, int, int]) -> None:
        self.pinned = places

    def hold(self, wanted: Hold) -> None:
        if wanted.mode is HoldMode.NONE and self.holds[-1].mode is HoldMode.PATH:
            self._news.append((HoldNews.PATH, BLOCKS))
        elif wanted.mode is HoldMode.NONE:
            self._news.append((self.ends, ()))
        elif wanted.mode is HoldMode.AT_POINT and not self.passes_by:
            self._news.append((HoldNews.REACHED, ()))
            self._stands = True
        self._stands &= wanted.mode is not HoldMode.NONE
        self.holds.append(wanted)

    def news(self, timeout_s: float) -> tuple[HoldNews, Sequence[int]] | None:  # noqa: ARG002
        return self._news.popleft() if self._news else None

    def execute(self, program: bytes, timeout_s: float) -> bytes:  # noqa: ARG002
        words = []
        if program[0] == 8:
            words = [BUSY, 0] if self._stands else [DONE, 0, 1]
        return b"".join(word.to_bytes(8, "little") for word in words)

    def close(self) -> None:
        pass

    def schedule(self) -> Schedule:
        return Schedule(Probe(self, domid=5), self, cast("Xl", self))


def test_each_virtual_cpu_has_a_cpu_of_its_own() -> None:
    board = Board()
    board.schedule()
    assert board.pinned == ((0, 0, 0), (5, 0, 0), (5, 1, 1))


@pytest.mark.parametrize("ends", [HoldNews.RELEASED, HoldNews.OTHER_WAITS])
def test_one_stands_while_the_other_goes_on(ends: HoldNews) -> None:
    board = Board(ends)
    with board.schedule().hold(Kind.EL3_CALL, *OPS) as stand:
        assert stand.reached
        assert board.holds == [Hold(5, 1, Kind.EL3_CALL)]
    assert board.holds[-1].mode is HoldMode.NONE
    assert stand.ended is ends
    assert str(stand.point) == "EL3_CALL" and str(Point(0x1000)) == "0x1000"


def test_what_never_comes_to_the_point_has_ended() -> None:
    board = Board(passes_by=True)
    with board.schedule().hold(Point(0x1000, passing=3), *OPS) as stand:
        assert not stand.reached
    assert board.holds[0].passing == 3


def test_a_hold_that_ended_by_itself_is_an_error() -> None:
    schedule = Board(HoldNews.EXPIRED).schedule()
    with pytest.raises(GuestError, match="until the hold ended by itself"), schedule.hold(Kind.EL3_CALL, *OPS):
        pass


def test_every_order_is_made() -> None:
    board = Board()
    board._stands = False
    made: list[tuple[Stand, int | None]] = list(board.schedule().orders(lambda: OPS, lambda: 7))
    assert [answer for _, answer in made] == [None, *[7] * (len(EVENTS) + len(BLOCKS))]
    assert [hold.at for hold in board.holds if hold.mode is HoldMode.AT_POINT] == [*EVENTS, *BLOCKS]


def test_orders_that_were_not_made_are_an_error() -> None:
    with pytest.raises(GuestError, match="came to 0 of 7 points"):
        list(Board(passes_by=True).schedule().orders(lambda: OPS, lambda: 7))

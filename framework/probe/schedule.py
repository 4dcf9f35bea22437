# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules: one virtual CPU of a probe stands still at a point of Xen while another goes on.

    first, second = PreparedCall(probe, RegisterShm(tmem(ref=7))), PreparedCall(probe, RegisterShm(tmem(ref=7)))
    with schedule.hold(Kind.EL3_CALL, *first.ops) as stand:    # vCPU 1 is about to call OP-TEE, and stays there
        answer = second.make().arg.ret                         # vCPU 0: any programs
    first.made(stand.records)                                  # vCPU 1 went on, to its end

    for stand, answer in schedule.orders(lambda: first.ops, second.make):
        ...                                                    # the same at each block of the mediator

So the order of two calls is made, not awaited. The vCPU that stands may have a lock that the other one needs: that one
only waits then, the first goes on, and ``stand.ended`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from framework.common.errors import GuestError
from framework.common.host_speed import host_factor
from framework.guests.xl import Xl
from framework.probe.call import Parking, StdCall
from framework.probe.client import Probe
from framework.probe.message import Message
from framework.probe.ops import Drive, Join, Op, Read, Run, Write
from framework.probe.program import Program
from framework.probe.wire import Record, Status
from framework.trace.format import Kind
from framework.trace.live import Hold, HoldMode, HoldNews
from mediator_ref.abi import CALL_WITH_ARG, RpcCmd, RpcFunc, split
from mediator_ref.events import PAGE_SIZE

FIRST = 1
"""The virtual CPU that stands; number 0, which talks with the client, goes on."""
EVENTS = (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
_SETTLE_S = 60.0
_GLANCE_S = 0.002

T = TypeVar("T")


class Bells(Protocol):
    """The part of :class:`framework.probe.link.DoorbellServer` that is used here."""

    def hold(self, wanted: Hold) -> None:
        """Have a vCPU stand at a point of Xen."""
        ...

    def news(self, timeout_s: float) -> tuple[HoldNews, Sequence[int]] | None:
        """Return the next thing that became of a hold."""
        ...


@dataclass(frozen=True, order=True)
class Point:
    """A place at which a vCPU may stand: the address of an instruction of Xen's, or a kind of event before it happens.

    ``passing``: at which time that it comes there. ``name``: for people.
    """

    at: int
    passing: int = 1
    name: str = ""

    def __str__(self) -> str:
        return self.name or (Kind(self.at).name if self.at in set(Kind) else f"{self.at:#x}")


@dataclass
class Stand:
    """What became of the vCPU that was to stand at ``point``.

    ``reached``: it came there. ``joined``: it is at the end of its instructions, whose ``records`` are here.
    ``ended``: RELEASED, or OTHER_WAITS when it had what the other one needed. ``path``: see :meth:`Schedule.path`.
    """

    point: Point
    reached: bool = False
    joined: bool = False
    ended: HoldNews = HoldNews.RELEASED
    records: tuple[Record, ...] = field(default=(), repr=False)
    path: tuple[Point, ...] = field(default=(), repr=False)


class Schedule:
    """Holds virtual CPU 1 of a probe. ``bells``: of the probe's board, which runs in lock-step; ``xl``: its toolstack.

    The probe's two virtual CPUs get a CPU each, and dom0 stays with number 0: Xen would leave one of them to the CPU
    of the one that stands.
    """

    def __init__(self, probe: Probe, bells: Bells, xl: Xl) -> None:
        if probe.domid is None:
            raise GuestError("the domain of this probe is not known", where=probe.name)
        self._probe, self._bells, self._domain = probe, bells, probe.domid
        xl.pin((0, 0, 0), (self._domain, 0, 0), (self._domain, FIRST, 1))

    @contextmanager
    def hold(self, point: Point | Kind, *ops: Op, lives: bool = True) -> Iterator[Stand]:
        """Start ``ops`` on virtual CPU 1, and enter the block when it stands at ``point``, or has ended without
        coming there; at the block's end it goes on to its end, unless the block is the domain's death (``lives``).

        Raises GuestError when it does neither in time, or stood for so long that the hold ended by itself.
        """
        stand = Stand(point if isinstance(point, Point) else Point(int(point)))
        self._bells.hold(Hold(self._domain, FIRST, stand.point.at, stand.point.passing))
        self._probe.run(Run(FIRST, ops))
        self._await(stand, ops)
        try:
            yield stand
        finally:
            self._bells.hold(Hold(self._domain, FIRST, mode=HoldMode.NONE))
            if lives and not stand.joined:
                self._join(stand, ops, _SETTLE_S)
            while (news := self._bells.news(0.0)) is not None:
                stand.ended = news[0]
        if stand.ended is HoldNews.EXPIRED:
            raise GuestError(f"vCPU {FIRST} stood at {stand.point} until the hold ended by itself")

    def path(self, *ops: Op) -> Stand:
        """Run ``ops`` on virtual CPU 1 without holding it; ``path`` has the blocks of the mediator that it executes."""
        self._bells.hold(Hold(self._domain, FIRST, mode=HoldMode.PATH))
        self._probe.run(Run(FIRST, ops))
        stand = Stand(Point(0))
        self._join(stand, ops, _SETTLE_S)
        self._bells.hold(Hold(self._domain, FIRST, mode=HoldMode.NONE))
        news = self._bells.news(_SETTLE_S)
        if news is None or news[0] is not HoldNews.PATH:
            raise GuestError("the trace plugin does not tell which code was executed", where=self._probe.name)
        stand.path = tuple(Point(address) for address in news[1])
        return stand

    def orders(self, first: Callable[[], Sequence[Op]], second: Callable[[], T]) -> Iterator[tuple[Stand, T | None]]:
        """Make ``second`` on virtual CPU 0 while ``first``, which prepares its instructions each time, stands on the
        other one: at each kind of event, and at each block of the mediator that it executes when it is alone.

        Yields what became of both; at first of ``first`` alone. Raises GuestError when it seldom came to where it was
        to stand: then nothing was ordered.
        """
        alone = self.path(*first())
        yield alone, None
        points = (*map(Point, EVENTS), *alone.path)
        stood = 0
        for point in points:
            with self.hold(point, *first()) as stand:
                answer = second()
            stood += stand.reached
            yield stand, answer
        if not alone.path or 2 * stood < len(points):
            raise GuestError(f"it came to {stood} of {len(points)} points at which it was to stand")

    def _await(self, stand: Stand, ops: Sequence[Op]) -> None:
        end = time.monotonic() + _SETTLE_S * host_factor()
        while not (stand.reached or stand.joined):
            news = self._bells.news(_GLANCE_S)
            if news is not None:
                stand.reached = news[0] is HoldNews.REACHED
            else:
                self._join(stand, ops, 0.0)
            if time.monotonic() > end:
                raise GuestError(f"vCPU {FIRST} neither comes to {stand.point} nor ends", where=self._probe.name)

    def _join(self, stand: Stand, ops: Sequence[Op], timeout_s: float) -> None:
        """Take the records of vCPU 1; with a time of 0, leave them when it is not at its end."""
        program = Program((Join(FIRST, timeout_s, tuple(ops)),))
        (record,) = self._probe.execute(program, timeout_s=timeout_s + _SETTLE_S)
        if record.status is Status.TIMEOUT and not timeout_s:
            return
        if not record.ok:
            raise GuestError(f"vCPU {FIRST} has not ended: {record}", where=self._probe.name)
        stand.records, stand.joined = record.inner, True


class PreparedCall:
    """A standard call that either virtual CPU makes, as often as wanted, up to the first request that ``park`` names.

    ``ops``: its instructions.
    """

    def __init__(self, probe: Probe, message: Message, *, park: Sequence[Parking] = ()) -> None:
        self._probe, self._page = probe, probe.pages(1)
        self._content, self._buffers = message.place(probe)
        lists = [op for buffer in self._buffers if buffer is not None for op in buffer.list_ops()]
        funcs = tuple(int(where) for where in park if isinstance(where, RpcFunc))
        cmds = tuple(int(where) for where in park if isinstance(where, RpcCmd))
        drive = Drive((CALL_WITH_ARG, *split(self._page)), funcs=funcs, cmds=cmds)
        self.ops: tuple[Op, ...] = (Write(self._page, self._content), *lists, drive, Read(self._page, PAGE_SIZE))

    def make(self) -> StdCall:
        """Make it on virtual CPU 0."""
        return self.made(self._probe.run(*self.ops))

    def made(self, records: Sequence[Record]) -> StdCall:
        """Return the call of which these are the records; virtual CPU 0 may go on with it."""
        call = StdCall(self._probe, self._page, tuple(self._buffers), self._content)
        record, page = records[-2:]
        call.regs, call.page, call.rpcs = record.regs, page.data, list(record.rpcs)
        return call

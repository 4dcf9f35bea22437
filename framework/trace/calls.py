# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls folded from events: a guest's request, everything that happened because of it, and the answer.

A standard call may be suspended by OP-TEE many times (RPC); each suspension ends one :class:`Exchange` and
the guest's CALL_RETURN_FROM_RPC begins the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from framework.trace.event import Block, Event
from framework.trace.format import BlockKind, Kind
from mediator_ref import abi

_STANDARD = (abi.CALL_WITH_ARG, abi.RETURN_FROM_RPC)
_MOST_OPEN = 4096
"""Calls without an answer that are kept; the plugin itself follows 256. What else a file claims is made up."""


def message_page(block: Block | None) -> bytes | None:
    """The page that holds a message; None when it was not read, or is no page."""
    return block.page() if block is not None and block.is_page else None


@dataclass(slots=True)
class Exchange:
    """One trip through Xen: a guest's trap, Xen's SMCs to EL3 and their answers, and Xen's answer to the
    guest."""

    guest_call: Event | None = None
    el3: list[tuple[Event, Event | None]] = field(default_factory=list)
    guest_return: Event | None = None

    @property
    def start(self) -> Event:
        """The first event."""
        return self.guest_call if self.guest_call is not None else self.el3[0][0]

    @property
    def end(self) -> Event | None:
        """The last event; None while something is missing."""
        if self.guest_call is not None:
            return self.guest_return
        return self.el3[-1][1] if self.el3 else None

    @property
    def el3_ns(self) -> int:
        """Board time spent below Xen."""
        return sum(back.time_ns - there.time_ns for there, back in self.el3 if back is not None)

    @property
    def el2_instructions(self) -> int | None:
        """What the hypervisor executed, in all its stretches; None when one was not seen."""
        ends = [there for there, _ in self.el3] + ([self.guest_return] if self.guest_return is not None else [])
        taken = [event.instructions() for event in ends]
        known = [number for number in taken if number is not None]
        return sum(known) if taken and len(known) == len(taken) else None

    @property
    def rpc(self) -> int | None:
        """The RPC function (``abi.RpcFunc``) this exchange ended with; None when it ended the call."""
        last = self.guest_return
        return last.regs[0] & 0xFFFF if last is not None and abi.is_rpc(last.regs[0]) else None

    def rpc_page(self) -> bytes | None:
        """The RPC message as the guest received it."""
        return message_page(self.guest_return.block(BlockKind.GUEST_RPC)) if self.guest_return is not None else None


@dataclass(slots=True)
class Call:
    """A call from its first trap to its last return. ``finished`` is False when the trace ends or the domain
    dies before."""

    exchanges: list[Exchange]
    finished: bool = False

    @property
    def start(self) -> Event:
        """The first event."""
        return self.exchanges[0].start

    @property
    def end(self) -> Event | None:
        """The last event; None for an unfinished call."""
        return self.exchanges[-1].end if self.finished else None

    @property
    def fid(self) -> int:
        """The function id, 32 bits."""
        return abi.fid_of(self.start.regs[0])

    @property
    def from_guest(self) -> bool:
        """Whether a guest made the call; otherwise Xen did for itself."""
        return self.exchanges[0].guest_call is not None

    @property
    def thread(self) -> int | None:
        """OP-TEE's thread id, known once it has suspended the call."""
        for exchange in self.exchanges:
            if exchange.rpc is not None and exchange.guest_return is not None:
                return exchange.guest_return.regs[3] & abi.U32
        return None

    @property
    def duration_ns(self) -> int | None:
        """Board time from first trap to last return."""
        end = self.end
        return None if end is None else end.time_ns - self.start.time_ns

    def argument(self) -> bytes | None:
        """The guest's argument page at the trap."""
        return message_page(self.start.block(BlockKind.GUEST_ARG))

    def result(self) -> bytes | None:
        """The guest's argument page at the return."""
        end = self.end
        return message_page(end.block(BlockKind.GUEST_ARG)) if end is not None else None


def fold(events: Iterable[Event]) -> Iterator[Call | Event]:
    """Calls in the order in which they end, with everything that is no part of a call (domains, doorbells,
    counters) between them; what never ended comes last."""
    folder = _Folder()
    for event in events:
        yield from folder.feed(event)
    yield from folder.rest()


class _Folder:
    def __init__(self) -> None:
        self._open: dict[int, tuple[Call, Exchange]] = {}  # guest calls that Xen has not answered, by seq
        self._asked: dict[int, tuple[Call | None, Exchange, int]] = {}  # EL3 calls without an answer, by seq
        self._suspended: dict[tuple[int | None, int], Call] = {}  # by domain and OP-TEE thread

    def feed(self, event: Event) -> Iterator[Call | Event]:
        kind = event.kind
        if kind == Kind.GUEST_CALL:
            yield from self._guest_call(event)
        elif kind == Kind.EL3_CALL:
            yield from self._el3_call(event)
        elif kind == Kind.EL3_RETURN:
            yield from self._el3_return(event)
        elif kind == Kind.GUEST_RETURN:
            yield from self._guest_return(event)
        else:
            if kind == Kind.DOMAIN_DESTROY:
                yield from self._drop(event.subject)
            yield event

    def rest(self) -> Iterator[Call]:
        unfinished = [call for call, _ in self._open.values()] + list(self._suspended.values())
        unfinished += [Call([exchange]) for call, exchange, _ in self._asked.values() if call is None]
        seen: set[int] = set()
        for call in sorted(unfinished, key=lambda c: c.start.seq):
            if id(call) not in seen:
                seen.add(id(call))
                yield call

    def _guest_call(self, event: Event) -> Iterator[Call]:
        exchange = Exchange(guest_call=event)
        call = None
        if abi.fid_of(event.regs[0]) == abi.RETURN_FROM_RPC:
            call = self._suspended.pop((event.domain, event.regs[3] & abi.U32), None)
        if call is None:
            call = Call([])
        call.exchanges.append(exchange)
        self._open[event.seq] = (call, exchange)
        if len(self._open) > _MOST_OPEN:
            yield self._open.pop(next(iter(self._open)))[0]
        if not event.is_tee:  # recorded on request only; its return is not followed
            self._open.pop(event.seq, None)
            call.finished = True
            yield call

    def _el3_call(self, event: Event) -> Iterator[Call]:
        call, exchange = self._open.get(event.parent, (None, Exchange()))
        exchange.el3.append((event, None))
        self._asked[event.seq] = (call, exchange, len(exchange.el3) - 1)
        if len(self._asked) > _MOST_OPEN:
            owner, oldest, _ = self._asked.pop(next(iter(self._asked)))
            if owner is None:
                yield Call([oldest])

    def _el3_return(self, event: Event) -> Iterator[Call]:
        if event.parent not in self._asked:
            return
        call, exchange, index = self._asked.pop(event.parent)
        exchange.el3[index] = (exchange.el3[index][0], event)
        if call is None:
            yield Call([exchange], finished=True)

    def _guest_return(self, event: Event) -> Iterator[Call]:
        if event.parent not in self._open:
            return
        call, exchange = self._open.pop(event.parent)
        exchange.guest_return = event
        standard = exchange.guest_call is not None and abi.fid_of(exchange.guest_call.regs[0]) in _STANDARD
        if standard and abi.is_rpc(event.regs[0]):
            key = (event.domain, event.regs[3] & abi.U32)
            replaced = self._suspended.pop(key, None)
            self._suspended[key] = call
            if replaced is not None:
                yield replaced
            if len(self._suspended) > _MOST_OPEN:
                yield self._suspended.pop(next(iter(self._suspended)))
        else:
            call.finished = True
            yield call

    def _drop(self, domain: int) -> Iterator[Call]:
        for key in [key for key in self._suspended if key[0] == domain]:
            yield self._suspended.pop(key)
        for seq in [seq for seq, (call, _) in self._open.items() if call.start.domain == domain]:
            yield self._open.pop(seq)[0]

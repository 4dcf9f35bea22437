# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a bad trace out of a good one: change one register or a few bytes, at one event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mediator_ref.events import (
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    Event,
    GuestCall,
    GuestReturn,
    PageView,
)
from mediator_ref.limits import Limits
from mediator_ref.simulator.board import Board

Carrier = GuestCall | El3Call | El3Return | GuestReturn


@dataclass(frozen=True, slots=True)
class Example:
    """A rule's good and bad trace, and the limits they are judged by."""

    rule: str
    good: tuple[Event, ...]
    bad: tuple[Event, ...]
    limits: Limits = field(default_factory=Limits)


Make = Callable[[], Example]


def board(limits: Limits | None = None, defects: frozenset[str] = frozenset()) -> Board:
    """A booted board with dom0 and one guest, domain 1."""
    made = Board(limits=limits or Limits(), defects=defects)
    made.create(0)
    made.create(1)
    return made


def example(rule: str, good: Board, bad: Board | list[Event], limits: Limits | None = None) -> Example:
    """Put an example together."""
    events = bad.events if isinstance(bad, Board) else bad
    return Example(rule, tuple(good.events), tuple(events), limits or Limits())


def index_of(events: list[Event], kind: type[Carrier], nth: int = -1) -> int:
    """Index of the nth event of a kind, from the end by default."""
    return [i for i, event in enumerate(events) if type(event) is kind][nth]


def with_register(events: list[Event], kind: type[Carrier], register: int, value: int, *, nth: int = -1) -> list[Event]:
    """One register of one event changed."""
    at = index_of(events, kind, nth)
    event = events[at]
    assert isinstance(event, Carrier)
    regs = (*event.regs[:register], value, *event.regs[register + 1 :])
    return [*events[:at], replace(event, regs=regs), *events[at + 1 :]]


def with_guest_bytes(
    events: list[Event], kind: type[Carrier], ipa: int, offset: int, data: bytes, *, nth: int = -1
) -> list[Event]:
    """A few bytes of a guest page changed as one event shows it."""
    at = index_of(events, kind, nth)
    event = events[at]
    assert isinstance(event, Carrier)
    view = event.mem[ipa]
    assert view.data is not None
    page = view.data[:offset] + data + view.data[offset + len(data) :]
    mem: Mapping[int, PageView] = {**event.mem, ipa: replace(view, data=page)}
    return [*events[:at], replace(event, mem=mem), *events[at + 1 :]]


def with_shadow_bytes(
    events: list[Event],
    kind: type[El3Call] | type[El3Return],
    ma: int,
    offset: int,
    data: bytes,
    *,
    nth: int = -1,
) -> list[Event]:
    """A few bytes of a page of the hypervisor changed as one event shows it."""
    at = index_of(events, kind, nth)
    event = events[at]
    assert isinstance(event, El3Call | El3Return)
    old = event.shadow[ma]
    shadow = {**event.shadow, ma: old[:offset] + data + old[offset + len(data) :]}
    return [*events[:at], replace(event, shadow=shadow), *events[at + 1 :]]


def without_books(events: list[Event]) -> list[Event]:
    """The trace without the hypervisor's own books, which would show a fault sooner."""
    return [
        replace(event, books=None)
        if isinstance(event, GuestCall | El3Call | GuestReturn | DomainDying | DomainDestroyed)
        else event
        for event in events
    ]


def until(events: list[Event], kind: type[Carrier], nth: int = -1) -> list[Event]:
    """The trace up to and with one event."""
    return events[: index_of(events, kind, nth) + 1]

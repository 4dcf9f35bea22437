# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's own memory: a call, and a domain's end, leave what the lists account for (alloc_domheap_pages,
xzalloc)."""

from __future__ import annotations

from mediator_ref.books import Books, Lists
from mediator_ref.events import El3Call, GuestReturn
from mediator_ref.knowledge import HeapSeen, Pending, TrackedDomain
from mediator_ref.rules import RuleId
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_OTHERS = "something else ran at the same time that may take memory"


def account(lists: Lists | None, books: Books, *, end: bool = False) -> HeapSeen | None:
    """Add up what is free, what is the domain's and what its lists hold: the sum does not change with a call.

    ``end``: leave out the hypercalls that go on with a domain's end. ``None`` when a part of it was not recorded.
    """
    if lists is None or books.heap is None:
        return None
    heap = books.heap
    pages = heap.free + heap.pool_pages + heap.domain_pages + lists.shadow_pages
    hypercalls = books.hypercalls - heap.continued if end else books.hypercalls
    return HeapSeen(pages, heap.pool_bytes, lists.objects, -1 if books.busy else hypercalls)


def check_call(state: State, pending: Pending, event: GuestReturn, books: Books) -> None:
    """HEAP-1: exact when nothing else happened on the board between the guest's call and its answer."""
    before, now = pending.heap, account(books.lists, books)
    if before is None or now is None:
        state.unchecked(RuleId.HEAP_1, "what the domain held, or free memory, was not recorded", event)
    elif not pending.alone or state.tally.events - pending.since != pending.steps + 1 or not _quiet(before, now):
        state.unchecked(RuleId.HEAP_1, _OTHERS, event)
    else:
        _compare(state, RuleId.HEAP_1, event, before, now, pending, pending.domain)


def check_end(state: State, domain: TrackedDomain, event: El3Call, books: Books) -> None:
    """HEAP-2: from the beginning of a domain's end to OP-TEE's being told."""
    before, now = domain.book.dying, account(books.lists, books, end=True)
    if before is None or now is None:
        state.unchecked(RuleId.HEAP_2, "what the domain held, or free memory, was not recorded", event)
    elif now.pages < before.pages and not _quiet(before, now):
        state.unchecked(RuleId.HEAP_2, _OTHERS, event)
    else:
        _compare(state, RuleId.HEAP_2, event, before, now, None, domain)


def _quiet(before: HeapSeen, now: HeapSeen) -> bool:
    return before.hypercalls == now.hypercalls >= 0


def _compare(
    state: State,
    rule: RuleId,
    event: GuestReturn | El3Call,
    before: HeapSeen,
    now: HeapSeen,
    pending: Pending | None,
    domain: TrackedDomain,
) -> None:
    """Pages are compared always, bytes of small objects when the lists have the same entries as before."""
    lost = []
    if now.pages < before.pages:
        lost.append(Difference("pages", str(before.pages), str(now.pages)))
    if now.objects == before.objects and now.pool_bytes > before.pool_bytes:
        lost.append(Difference("bytes in use", str(before.pool_bytes), str(now.pool_bytes)))
    if lost:
        state.fail(rule, event, "memory of the hypervisor is gone", *lost, pending=pending, domain=domain)
    elif now.pages > before.pages:
        state.unchecked(rule, "memory was given back elsewhere at the same time", event)
    else:
        state.ok(rule)

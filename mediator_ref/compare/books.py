# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's own books against themselves and against what a correct mediator holds (struct optee_domain).

Each difference is reported at the first event that shows it, and again only after it was gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mediator_ref.books import Books, Lists, is_own, mfn_of
from mediator_ref.compare import heap, pins
from mediator_ref.domain import Domain, StdCall
from mediator_ref.events import DomainDestroyed, DomainDying, El3Call, Event, GuestCall, GuestReturn
from mediator_ref.knowledge import FOLLOWS, Pending, TrackedDomain, uncertain
from mediator_ref.rules import RuleId
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_AGAINST_REFERENCE = (RuleId.BOOK_2, RuleId.BOOK_3, RuleId.BOOK_4)
NOT_RECORDED = "the hypervisor's lists were not recorded"
OTHER_VCPU = "another vCPU of the domain was in the mediator"


def called(state: State, pending: Pending, event: GuestCall) -> None:
    """Note what the books say when a guest traps."""
    books, domain = event.books, pending.domain
    pending.steps, pending.since = 0, state.tally.events
    # A call of another domain that is in the hypervisor all the while takes memory, and no event tells.
    pending.alone = state.one_in_hypervisor
    if books is None or domain.in_hypervisor > 1:  # what another vCPU is changing, or holds for a moment, is no measure
        return
    if books.lists is not None:
        domain.book.lists = books.lists
        domain.book.named = books.lists.named()
        domain.book.excess = _excess(books.lists)
    pins.note(domain, books)
    pending.heap = heap.account(domain.book.lists, books)


def handed_over(state: State, pending: Pending, event: El3Call) -> None:
    """BOOK-1, REF-1, REF-2 and MEM-10 when OP-TEE gets a call."""
    pending.steps += 1
    lists = event.books.lists if event.books is not None else None
    pending.handed = (lists, pending.domain.activity) if lists is not None else None
    if event.books is not None and not pending.domain.in_hypervisor:
        _itself(state, pending.domain, event, event.books, pending)


def answered(state: State, pending: Pending, event: GuestReturn) -> None:
    """All rules about a call that is over, or waits for the guest."""
    books, domain = event.books, pending.domain
    if books is None:
        for rule in (RuleId.BOOK_1, *_AGAINST_REFERENCE, RuleId.REF_1, RuleId.REF_2, RuleId.HEAP_1):
            state.unchecked(rule, NOT_RECORDED, event)
        return
    if domain.in_hypervisor:
        for rule in (RuleId.BOOK_1, *_AGAINST_REFERENCE):
            state.unchecked(rule, OTHER_VCPU, event)
        domain.book.lists = None
        return
    _itself(state, domain, event, books, pending)
    if books.lists is not None:
        _against_reference(state, pending, event, books.lists)
    heap.check_call(state, pending, event, books)


def _itself(state: State, domain: TrackedDomain, event: Event, books: Books, pending: Pending | None = None) -> None:
    """What needs no knowledge of the past: BOOK-1, and the references of the pages that the lists name."""
    if books.lists is None:
        state.unchecked(RuleId.BOOK_1, "the lists could not be read", event)
        domain.book.lists = None
        return
    if domain.book.lists is None:  # what was wrong before is not this call's
        domain.book.excess = _excess(books.lists)
    else:
        _counters(state, domain, event, books.lists, pending)
    _owned(state, domain, event, books.lists, pending)
    before, domain.book.lists = domain.book.lists, books.lists
    pins.check(state, domain, event, books, before, pending)


def _excess(lists: Lists) -> dict[str, int]:
    """What the counters have beyond the lists, by what they count, where that is not 0."""
    found = {
        "calls": lists.call_count - len(lists.calls),
        "buffers": lists.buffer_count - len(lists.buffers),
        "pages": lists.buffer_pages - sum(len(buffer.frames) for buffer in lists.buffers),
    }
    return {name: value for name, value in found.items() if value}


def _counters(state: State, domain: TrackedDomain, event: Event, lists: Lists, pending: Pending | None) -> None:
    """BOOK-1: the counters are those of the lists, and no cookie is there twice."""
    counted = {"calls": lists.call_count, "buffers": lists.buffer_count, "pages": lists.buffer_pages}
    book, excess = domain.book, _excess(lists)
    wrong = False
    for name, value in counted.items():
        now, before = excess.get(name, 0), book.excess.get(name, 0)
        if now != before:
            wrong = True
            follows = book.differs or (pending is not None and pending.differs)
            if name == "pages" and follows and now - book.followed != (leaked := domain.defects.leaked_pages):
                # A reply that was wrongly taken for memory (D11), say: D3's count begins anew behind it.
                book.followed = now - leaked
                state.unchecked(RuleId.BOOK_1, FOLLOWS, event)
                continue
            difference = Difference(f"count of {name}", str(value - now + before), str(value))
            amount = now - book.followed if name == "pages" else 0
            state.fail(RuleId.BOOK_1, event, "a counter does not agree with its list", difference, pending=pending,
                       domain=domain, amount=amount)  # fmt: skip
    book.excess = excess
    buffers, rpcs = [b.cookie for b in lists.buffers], [rpc.cookie for rpc in lists.rpcs]
    for what, cookies in (("buffers", buffers), ("RPC pages", rpcs)):
        for cookie, count in Counter(cookies).items():
            if count > 1 and _new(domain, RuleId.BOOK_1, what, cookie):
                wrong = True
                difference = Difference(f"{what} with cookie {cookie:#x}", "1", str(count))
                state.fail(RuleId.BOOK_1, event, "a cookie is in the list twice", difference, pending=pending,
                           domain=domain, cookie=cookie)  # fmt: skip
    if not wrong:
        state.ok(RuleId.BOOK_1)


def _owned(state: State, domain: TrackedDomain, event: Event, lists: Lists, pending: Pending | None) -> None:
    """STD-7: no page of the hypervisor counts as the domain's, which has a limit, and could be given it."""
    for what, word in lists.shadows():
        if is_own(word):
            difference = Difference(f"owner of the {what}", "none", "the domain")
            reason = "a page of the hypervisor counts as the domain's"
            state.fail(RuleId.STD_7, event, reason, difference, pending=pending, domain=domain)


def _new(domain: TrackedDomain, *what: object) -> bool:
    """Note a difference; tell whether it was not there before."""
    book = domain.book
    new = what not in book.faults and what not in book.still
    book.still.add(what)
    return new


def _against_reference(state: State, pending: Pending, event: GuestReturn, lists: Lists) -> None:
    """BOOK-2 to BOOK-4."""
    domain = pending.domain
    tainted = next((call.tainted for call in _calls(domain) if call.tainted), "")
    why = uncertain(pending) or pending.tainted or tainted
    if why:
        for rule in _AGAINST_REFERENCE:
            state.unchecked(rule, why, event)
        return
    for rule, found in (
        (RuleId.BOOK_2, _buffers(domain, lists)),
        (RuleId.BOOK_3, _rpc_pages(domain, lists)),
        (RuleId.BOOK_4, _std_calls(domain, lists)),
    ):
        wrong = False
        for cookie, reason, difference in found:
            wrong = True
            if not _new(domain, rule, difference.field, difference.observed):
                continue
            if pending.differs or domain.book.differs:
                state.unchecked(rule, FOLLOWS, event)
            else:
                state.fail(rule, event, reason, difference, pending=pending, cookie=cookie)
        if not wrong:
            state.ok(rule)
    domain.book.faults, domain.book.still = domain.book.still, set()
    domain.book.differs = False


def _calls(domain: Domain) -> Iterable[StdCall]:
    return (*domain.calls.values(), *domain.running.values())


Found = Iterable[tuple[int | None, str, Difference]]
"""Cookie that a difference is about, its reason, and the difference."""


def _buffers(domain: Domain, lists: Lists) -> Found:
    """Compare the list of buffers with those that OP-TEE may use."""
    held = {buffer.cookie: buffer for buffer in lists.buffers}
    in_use = {cookie for call in _calls(domain) for cookie in call.cookies}
    for cookie, buffer in held.items():
        due = domain.buffers.get(cookie)
        where, pages = f"buffer {cookie:#x}", len(buffer.frames)
        if due is None:
            yield cookie, "a buffer is held that OP-TEE does not have", Difference(where, "none", f"{pages} pages")
            continue
        frames = [mfn_of(word) for word in buffer.frames]
        if due.mfns and None not in frames and tuple(frames) != due.mfns:
            wrong = [i for i, (a, b) in enumerate(zip(due.mfns, frames, strict=False)) if a != b]
            expected, observed = f"{due.pages} pages", f"{pages} pages"
            if wrong:
                expected, observed = f"page {wrong[0]} is {due.mfns[wrong[0]]:#x}", f"{frames[wrong[0]] or 0:#x}"
            yield cookie, "a buffer has other pages than OP-TEE was given", Difference(where, expected, observed)
        elif buffer.shadow and not due.rpc and cookie not in in_use:
            difference = Difference(f"page list of {where}", "none", "kept")
            yield cookie, "OP-TEE has read the list, and it is kept", difference
    for cookie, due in domain.buffers.items():
        if cookie not in held:
            difference = Difference(f"buffer {cookie:#x}", f"{due.pages} pages", "none")
            yield cookie, "a buffer that OP-TEE has is not held", difference


def _rpc_pages(domain: Domain, lists: Lists) -> Found:
    """Compare the list of RPC pages with those that OP-TEE may use."""
    held = {rpc.cookie: rpc for rpc in lists.rpcs}
    for cookie, rpc in held.items():
        due = domain.rpcs.get(cookie)
        where = f"RPC page {cookie:#x}"
        if due is None:
            difference = Difference(where, "none", f"gfn {rpc.gfn:#x}")
            yield cookie, "an RPC page is held that OP-TEE does not have", difference
            continue
        for name, expected, observed in (
            ("gfn", due.ipa >> 12, rpc.gfn),
            ("frame", due.mfn, mfn_of(rpc.page)),
            ("shadow", due.ma >> 12 if due.ma is not None else None, mfn_of(rpc.shadow)),
        ):
            if None not in (expected, observed) and expected != observed:
                difference = Difference(f"{name} of {where}", f"{expected:#x}", f"{observed:#x}")
                yield cookie, "an RPC page is another than the guest offered", difference
    for cookie in domain.rpcs.keys() - held.keys():
        difference = Difference(f"RPC page {cookie:#x}", "held", "none")
        yield cookie, "an RPC page that OP-TEE has is not held", difference


def _std_calls(domain: Domain, lists: Lists) -> Found:
    """Compare the list of calls with those that have not ended."""
    waiting = {call.thread: call for call in lists.calls if not call.in_flight}
    for thread, due in domain.calls.items():
        held = waiting.pop(thread, None)
        where = f"call of thread {thread}"
        if held is None:
            yield None, "a suspended call has no context", Difference(where, "suspended", "none")
            continue
        if due.arg_ipa is not None and held.ipa != due.arg_ipa:
            difference = Difference(f"argument of {where}", f"{due.arg_ipa:#x}", f"{held.ipa:#x}")
            yield None, "the context is another call's", difference
        shadow = mfn_of(held.shadow)
        if due.ma is not None and shadow is not None and shadow != due.ma >> 12:
            difference = Difference(f"shadow of {where}", f"{due.ma:#x}", f"{shadow << 12:#x}")
            yield None, "the context is another call's", difference
    for thread in waiting:
        difference = Difference(f"call of thread {thread}", "none", "suspended")
        yield None, "a call waits that OP-TEE has not suspended", difference
    in_flight = sum(1 for call in lists.calls if call.in_flight)
    if in_flight != len(domain.running):
        difference = Difference("calls in flight", str(len(domain.running)), str(in_flight))
        yield None, "a call is in flight without a vCPU in the mediator", difference


# The end of a domain


def dying(event: DomainDying, domain: TrackedDomain) -> None:
    """Note what a domain holds when its end begins."""
    if event.books is not None and not domain.in_hypervisor:
        if event.books.lists is not None:
            domain.book.lists = event.books.lists
        domain.book.dying = heap.account(domain.book.lists, event.books, end=True)


def vm_destroyed(state: State, event: El3Call, domain: TrackedDomain) -> None:
    """BOOK-5, REF-1, REF-2 and HEAP-2 when OP-TEE is told that a domain is gone."""
    books = event.books
    if books is None or books.domid != domain.domid:
        for rule in (RuleId.BOOK_5, RuleId.HEAP_2):
            state.unchecked(rule, NOT_RECORDED, event)
        return
    heap.check_end(state, domain, event, books)
    _itself(state, domain, event, books)
    if books.lists is None:
        state.unchecked(RuleId.BOOK_5, "the lists could not be read", event)
        return
    left = [
        Difference(what, "none", str(len(entries)))
        for what, entries in (
            ("calls", books.lists.calls),
            ("RPC pages", books.lists.rpcs),
            ("buffers", books.lists.buffers),
        )
        if entries
    ]
    if left:
        state.fail(RuleId.BOOK_5, event, "the domain still holds something", *left, domain=domain)
    else:
        state.ok(RuleId.BOOK_5)


def destroyed(state: State, event: DomainDestroyed, domain: TrackedDomain) -> None:
    """BOOK-5 once a domain is gone: its context is, too."""
    if event.books is None:
        return
    if event.books.context and domain.destroyed:
        state.fail(RuleId.BOOK_5, event, "the mediator's context is left", Difference("context", "none", "there"),
                   domain=domain)  # fmt: skip
    elif domain.destroyed:
        state.ok(RuleId.BOOK_5)

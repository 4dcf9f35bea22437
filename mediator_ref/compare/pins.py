# SPDX-License-Identifier: GPL-2.0-or-later
"""References of the guest's pages: pinned while OP-TEE may use them, unpinned once, and nothing more (get_page,
put_page)."""

from __future__ import annotations

from dataclasses import replace

from mediator_ref.books import Books, Lists, is_allocated, is_own, mfn_of, taken
from mediator_ref.events import El3Call, Event
from mediator_ref.knowledge import BookState, PageSeen, Pending, TrackedDomain
from mediator_ref.rules import RuleId
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_BUSY = -1


def _at(books: Books) -> int:
    return _BUSY if books.busy else books.hypercalls


def _seen(word: int, named: int) -> PageSeen | None:
    count = taken(word)
    return None if count is None else PageSeen(count - named, is_own(word), is_allocated(word))


def note(domain: TrackedDomain, books: Books) -> None:
    """Note the references that the pages a call names have before it, and which held pages the guest has given away."""
    book = domain.book
    if book.lists is None:
        return
    for word in book.lists.pages():
        mfn = mfn_of(word)
        if mfn is not None and mfn in book.held and not is_allocated(word):
            book.held[mfn] = replace(book.held[mfn], allocated=False)
    for word in books.frames:
        mfn = mfn_of(word)
        if mfn is None:
            continue
        seen = _seen(word, book.named[mfn])
        if seen is not None and seen.spare >= 0:
            book.pages[mfn] = seen, _at(books)


def check(
    state: State, domain: TrackedDomain, event: Event, books: Books, before: Lists | None, pending: Pending | None
) -> None:
    """REF-1, REF-2 and MEM-10 on the pages that the lists name, and on those that they named before.

    ``before``: the lists when they were last read. Pages in no list are forgotten once no call of the domain is under
    way.
    """
    lists, book, at = books.lists, domain.book, _at(books)
    assert lists is not None
    same = before is not None and before.buffers == lists.buffers and before.rpcs == lists.rpcs
    if not same:
        book.named = lists.named()
    passed = set[RuleId]()
    for word in books.frames:
        mfn = mfn_of(word)
        if mfn is not None and mfn not in book.named:
            passed |= _check_page(state, domain, event, mfn, word, at, pending)
    if same:
        passed |= {RuleId.REF_1, RuleId.REF_2, RuleId.MEM_10} if book.held else set()
    else:
        passed |= _check_held(state, domain, event, lists, at, pending)
    book.held_at = at
    for rule in passed:
        state.ok(rule)
    if not (domain.running or domain.in_hypervisor or isinstance(event, El3Call)):
        book.pages.clear()


def _check_held(
    state: State, domain: TrackedDomain, event: Event, lists: Lists, at: int, pending: Pending | None
) -> set[RuleId]:
    """Check the pages that the lists name; return the rules that held at least once."""
    words = {mfn: word for word in lists.pages() if (mfn := mfn_of(word)) is not None}
    usable, passed = domain.pinned(), set[RuleId]()
    for mfn, word in words.items():
        passed |= _check_page(state, domain, event, mfn, word, at, pending)
        if mfn in usable and is_own(word):
            passed.add(RuleId.MEM_10)
        elif mfn in usable and taken(word) is not None:
            difference = Difference("frame", "kept", f"{mfn:#x} released")
            state.fail(RuleId.MEM_10, event, "OP-TEE may still use the frame", difference, pending=pending,
                       domain=domain)  # fmt: skip
    seen = {mfn: _seen(word, domain.book.named[mfn]) for mfn, word in words.items()}
    domain.book.held = {mfn: page for mfn, page in seen.items() if page is not None}
    return passed


def _before(book: BookState, mfn: int) -> tuple[PageSeen, int] | None:
    """Return a page as it was last seen, and the number of hypercalls then."""
    held = book.held.get(mfn)
    return (held, book.held_at) if held is not None else book.pages.get(mfn)


def _check_page(
    state: State, domain: TrackedDomain, event: Event, mfn: int, word: int, at: int, pending: Pending | None
) -> set[RuleId]:
    """Check one page; return the rules that it passed."""
    named = domain.book.named[mfn]
    seen, known = _seen(word, named), _before(domain.book, mfn)
    where = f"references of frame {mfn:#x}"
    if seen is None:
        state.unchecked(RuleId.REF_1, "the references of a page could not be read", event)
        return set()
    if known is not None and known[0].own and not (known[0].allocated or seen.own or named):
        # The guest gave it away while it was held: it went with the last reference, and is another's.
        return {RuleId.REF_2}
    if seen.spare < 0:
        if known is None or known[0].spare != seen.spare:  # else reported when it came to be so
            difference = Difference(where, f"at least {named}", str(named + seen.spare))
            reason = "a page has fewer references than entries that name it"
            state.fail(RuleId.REF_1, event, reason, difference, pending=pending, domain=domain)
        return set()
    passed = {RuleId.REF_1} if named else set()
    if known is None or known[0].spare < 0:
        return passed
    before, then = known
    if (before.spare, before.own) == (seen.spare, seen.own):
        passed.add(RuleId.REF_2)
    elif then != at or at == _BUSY:
        state.unchecked(RuleId.REF_2, "a hypercall that may take references ran at the same time", event)
    elif before.own and not seen.own:
        difference = Difference(f"owner of frame {mfn:#x}", "the domain", "another")
        state.fail(RuleId.REF_2, event, "a page was taken from its domain", difference, pending=pending, domain=domain)
    else:
        difference = Difference(where, str(named + before.spare), str(named + seen.spare))
        reason = "a page keeps a reference" if seen.spare > before.spare else "a page lost a reference of another's"
        state.fail(RuleId.REF_2, event, reason, difference, pending=pending, domain=domain)
    return passed

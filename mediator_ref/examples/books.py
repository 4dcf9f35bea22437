# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for the hypervisor's own books, lists, references, memory, and for OP-TEE's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mediator_ref import abi
from mediator_ref.books import Books, HeldBuffer, Lists, SharedMemory, frame_word, mfn_of
from mediator_ref.events import El3Call, El3Return, Event, GuestReturn
from mediator_ref.examples.mutate import Example, board, example, index_of
from mediator_ref.examples.rpc import asked
from mediator_ref.simulator.board import Board
from mediator_ref.simulator.optee import ask

Carrier = type[El3Call] | type[GuestReturn]


def with_books(events: list[Event], kind: Carrier, change: Callable[[Books], Books], *, nth: int = -1) -> list[Event]:
    """The books of one event changed, and the trace up to it."""
    at = index_of(events, kind, nth)
    event = events[at]
    assert isinstance(event, El3Call | GuestReturn)
    assert event.books is not None
    return [*events[:at], replace(event, books=change(event.books))]


def with_lists(events: list[Event], kind: Carrier, change: Callable[[Lists], Lists], *, nth: int = -1) -> list[Event]:
    """The same for the lists alone."""

    def changed(books: Books) -> Books:
        assert books.lists is not None
        return replace(books, lists=change(books.lists))

    return with_books(events, kind, changed, nth=nth)


def registered() -> Board:
    """Domain 1 has registered a buffer of two pages."""
    made = board()
    made.message(1, abi.message(abi.MsgCmd.REGISTER_SHM, made.buffer(1, 2)))
    return made


def ended() -> Board:
    """A domain with a buffer is destroyed."""
    made = registered()
    made.destroy(1)
    return made


def book_1() -> Example:
    """A page more is counted than the buffers have."""
    made = registered()
    bad = with_lists(made.events, GuestReturn, lambda lists: replace(lists, buffer_pages=lists.buffer_pages + 1))
    return example("BOOK-1", made, bad)


def book_2() -> Example:
    """A buffer is held that OP-TEE was never given."""
    made = registered()

    def more(lists: Lists) -> Lists:
        return replace(lists, buffers=(*lists.buffers, HeldBuffer(0xB1, 0, 0, ())), buffer_count=2)

    return example("BOOK-2", made, with_lists(made.events, GuestReturn, more))


def book_3() -> Example:
    """The RPC page is held under another frame number of the guest's."""
    made, _ = asked(ask(abi.RpcCmd.GET_TIME))

    def moved(lists: Lists) -> Lists:
        return replace(lists, rpcs=tuple(replace(rpc, gfn=rpc.gfn + 1) for rpc in lists.rpcs))

    return example("BOOK-3", made, with_lists(made.events, GuestReturn, moved))


def book_4() -> Example:
    """A call that waits in the guest is still in flight."""
    made, _ = asked(ask(abi.RpcCmd.GET_TIME))

    def flying(lists: Lists) -> Lists:
        return replace(lists, calls=tuple(replace(call, in_flight=True) for call in lists.calls))

    return example("BOOK-4", made, with_lists(made.events, GuestReturn, flying))


def book_5() -> Example:
    """The buffer is still held when OP-TEE is told that its domain is gone."""
    made = ended()
    at = index_of(made.events, GuestReturn)
    last = made.events[at]
    assert isinstance(last, GuestReturn)
    return example("BOOK-5", made, with_books(made.events, El3Call, lambda _: last.books or Books(1)))


def book_6() -> Example:
    """OP-TEE has another page in its list than those of the registered buffer."""
    made = registered()
    at = index_of(made.events, El3Return)
    event = made.events[at]
    assert isinstance(event, El3Return) and event.partition is not None and event.partition.shared is not None
    foreign = SharedMemory(0xB0, (0x7FFFF,))
    seen = replace(event, partition=replace(event.partition, shared=(*event.partition.shared, foreign)))
    return example("BOOK-6", made, [*made.events[:at], seen])


def _references(books: Books, more: int, *, listed: bool) -> Books:
    """Change the references of the pages in the lists, or of those that are in none."""
    assert books.lists is not None
    names = books.lists.named()

    def other(word: int) -> int:
        mfn = mfn_of(word) or 0
        return frame_word(mfn, 1 + names[mfn] + more) if (mfn in names) == listed else word

    buffers = tuple(replace(b, frames=tuple(map(other, b.frames))) for b in books.lists.buffers)
    lists = replace(books.lists, buffers=buffers)
    return replace(books, lists=lists, frames=tuple(map(other, books.frames)))


def ref_1() -> Example:
    """The pages of a buffer are not pinned when OP-TEE gets it."""
    made = registered()
    return example("REF-1", made, with_books(made.events, El3Call, lambda b: _references(b, -1, listed=True)))


def ref_2() -> Example:
    """After a call that named them pages keep a reference."""
    made = registered()
    return example("REF-2", made, with_books(made.events, GuestReturn, lambda b: _references(b, 1, listed=False)))


def _with_free(books: Books, more: int) -> Books:
    assert books.heap is not None
    return replace(books, heap=replace(books.heap, free=books.heap.free + more))


def heap_1() -> Example:
    """After a refused call a page is gone."""
    made = board()
    made.message(1, abi.message(abi.MsgCmd.REGISTER_SHM, made.buffer(1, 2, bad=1)))
    return example("HEAP-1", made, with_books(made.events, GuestReturn, lambda books: _with_free(books, -1)))


def heap_2() -> Example:
    """At a domain's end a page that it held does not come back."""
    made = ended()
    return example("HEAP-2", made, with_books(made.events, El3Call, lambda books: _with_free(books, -1)))


EXAMPLES = (book_1, book_2, book_3, book_4, book_5, book_6, ref_1, ref_2, heap_1, heap_2)

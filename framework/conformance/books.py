# SPDX-License-Identifier: GPL-2.0-or-later
"""The books of both sides, the hypervisor's and OP-TEE's, from the blocks of a record (``docs/trace-format.md``)."""

from __future__ import annotations

import struct

from framework.trace.format import BlockFlag, BlockKind
from framework.trace.writer import pack_block
from mediator_ref.books import Books, Heap, HeldBuffer, HeldCall, HeldRpc, Lists, Partition, SharedMemory
from mediator_ref.events import PAGE_SIZE

_BOOKS, _FRAMES, _HEAP = int(BlockKind.BOOKS), int(BlockKind.FRAMES), int(BlockKind.HEAP)
BOOK_KINDS = frozenset((_BOOKS, _FRAMES, _HEAP))
PARTITION = int(BlockKind.PARTITION)
_UNREADABLE = int(BlockFlag.UNREADABLE)
_U32, _BUSY = (1 << 32) - 1, 1 << 63
_HEADER, _CALL, _RPC, _BUFFER = 3, 4, 4, 3

Found = tuple[int, int, int, int, int, bytes]
"""Kind, flags, ``ma``, ``pte``, ``cookie`` and data of one block."""


def books(found: list[Found]) -> Books:
    """Put the blocks of one record together. Raises ValueError when they make no sense."""
    context, lists, heap = True, None, None
    frames: tuple[int, ...] = ()
    state = domid = 0
    for kind, flags, ma, pte, cookie, data in found:
        state, domid = pte, cookie
        if kind == _FRAMES:
            frames = _words(data)
        elif kind == _HEAP:
            heap = Heap(*_Words(_words(data)).take(5))
        else:
            context = bool(ma)
            lists = None if flags & _UNREADABLE else _lists(_Words(_words(data))) if context else Lists()
    return Books(domid, context, lists, frames, heap, state & ~_BUSY, bool(state & _BUSY))


def _words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])


class _Words:
    """Reader of words, from the first to the last."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self._words = words
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there are any left."""
        return self._at < len(self._words)

    def take(self, count: int) -> tuple[int, ...]:
        """Return the next ``count`` words. Raises ValueError when there are fewer."""
        found = self._words[self._at : self._at + count]
        if len(found) < count:
            raise ValueError("a book ends too early")
        self._at += count
        return found


def _lists(words: _Words) -> Lists:
    """Take the words of a BOOKS block apart."""
    lengths, counts, pages = words.take(_HEADER)
    calls, rpcs, buffers = [], [], []
    for _ in range(lengths & 0xFFFF):
        shadow, ipa, thread, address = words.take(_CALL)
        calls.append(HeldCall(shadow, ipa, thread & _U32, bool(thread >> 32), address))
    for _ in range(lengths >> 16 & 0xFFFF):
        rpcs.append(HeldRpc(*words.take(_RPC)))
    for _ in range(lengths >> 32 & 0xFFFF):
        cookie, size, shadow = words.take(_BUFFER)
        buffers.append(HeldBuffer(cookie, min(size >> 32, 63), shadow, words.take(size & _U32)))
    return Lists(tuple(calls), tuple(rpcs), tuple(buffers), counts & _U32, counts >> 32, pages & _U32)


def partition(flags: int, pte: int, cookie: int, data: bytes) -> Partition:
    """Read a PARTITION block. Raises ValueError when it makes no sense."""
    words, shared = _Words(_words(data)), []
    while words.more:
        name, pages = words.take(2)
        shared.append(SharedMemory(name, tuple(address // PAGE_SIZE for address in words.take(pages))))
    return Partition(cookie, None if flags & _UNREADABLE else tuple(shared), bool(pte))


def partition_block(found: Partition | None) -> list[bytes]:
    """Make the block that :func:`partition` reads."""
    if found is None:
        return []
    words: list[int] = []
    for memory in found.shared or ():
        words += (memory.cookie, len(memory.frames), *(mfn * PAGE_SIZE for mfn in memory.frames))
    data = struct.pack(f"<{len(words)}Q", *words)
    flags = BlockFlag.UNREADABLE if found.shared is None else BlockFlag(0)
    return [pack_block(BlockKind.PARTITION, data, size=0, flags=flags, pte=int(found.busy), cookie=found.client)]


def blocks_of(books: Books | None) -> list[bytes]:
    """Make the blocks that :func:`books` reads."""
    if books is None:
        return []
    state = books.hypercalls | (_BUSY if books.busy else 0)
    found = []
    if books.lists is not None or not books.context:
        words = _words_of(books.lists) if books.lists is not None and books.context else ()
        found.append(_block(BlockKind.BOOKS, words, books.domid, state, ma=1 if books.context else 0))
    if books.frames:
        found.append(_block(BlockKind.FRAMES, books.frames, books.domid, state))
    if books.heap is not None:
        heap = books.heap
        words = (heap.free, heap.pool_pages, heap.pool_bytes, heap.domain_pages, heap.continued)
        found.append(_block(BlockKind.HEAP, words, books.domid, state))
    return found


def _block(kind: BlockKind, words: tuple[int, ...], domid: int, state: int, ma: int = 0) -> bytes:
    data = struct.pack(f"<{len(words)}Q", *words)
    return pack_block(kind, data, size=0, pte=state, cookie=domid, ma=ma)


def _words_of(lists: Lists) -> tuple[int, ...]:
    lengths = len(lists.calls) | len(lists.rpcs) << 16 | len(lists.buffers) << 32
    words = [lengths, lists.call_count & _U32 | (lists.buffer_count & _U32) << 32, lists.buffer_pages & _U32]
    for call in lists.calls:
        words += (call.shadow, call.ipa, call.thread | call.in_flight << 32, call.address)
    for rpc in lists.rpcs:
        words += (rpc.cookie, rpc.gfn, rpc.page, rpc.shadow)
    for buffer in lists.buffers:
        words += (buffer.cookie, len(buffer.frames) | buffer.order << 32, buffer.shadow, *buffer.frames)
    return tuple(words)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's own books of a domain as an observer finds them: lists, references of pages, memory; and OP-TEE's.

A page is one number, a *frame word*, because there are many of them: its frame number (bits 0 to 39), its references
(40 to 55, the largest value meaning more), and what is known of it (60 counted, 61 the frame number is not known, 62
the domain owns it, 63 it is allocated, which is one of its references).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_MFN, _COUNT, _COUNT_AT = (1 << 40) - 1, 0xFFFF, 40
_MOST_ORDER = 20
_COUNTED, _UNKNOWN, _OWN, _ALLOCATED = 1 << 60, 1 << 61, 1 << 62, 1 << 63


def frame_word(mfn: int, references: int, *, allocated: bool = True, own: bool = True) -> int:
    """Make a frame word. ``references`` counts the allocation as one, if there is one."""
    flags = _COUNTED | (_ALLOCATED if allocated else 0) | (_OWN if own else 0)
    return flags | min(references, _COUNT) << _COUNT_AT | mfn & _MFN


def mfn_of(word: int) -> int | None:
    """Return the frame number, ``None`` when it is not known, or there is no page."""
    return None if not word or word & _UNKNOWN else word & _MFN


def taken(word: int) -> int | None:
    """Count the references of a page beside its allocation; ``None`` when it was not counted."""
    count = word >> _COUNT_AT & _COUNT
    if not word & _COUNTED or count == _COUNT:
        return None
    return count - (1 if word & _ALLOCATED else 0)


def is_own(word: int) -> bool:
    """Tell whether the page belongs to the domain."""
    return bool(word & _OWN)


def is_allocated(word: int) -> bool:
    """Tell whether the page is kept without anything that refers to it."""
    return bool(word & _ALLOCATED)


@dataclass(frozen=True, slots=True)
class HeldCall:
    """An entry of the list of calls (``struct optee_std_call``). ``shadow`` is a frame word, 0 without a page;
    ``thread`` is OP-TEE's, 0xffffffff while it runs."""

    shadow: int
    ipa: int
    thread: int
    in_flight: bool
    address: int


@dataclass(frozen=True, slots=True)
class HeldRpc:
    """An entry of the list of RPC pages (``struct shm_rpc``). ``page`` (the guest's) and ``shadow`` are frame
    words."""

    cookie: int
    gfn: int
    page: int
    shadow: int


@dataclass(frozen=True, slots=True)
class HeldBuffer:
    """An entry of the list of buffers (``struct optee_shm_buf``): ``frames`` are frame words, ``shadow`` is that of the
    page list (0: none any more), which has ``1 << order`` pages."""

    cookie: int
    order: int
    shadow: int
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists of one domain and the counters beside them (``struct optee_domain``)."""

    calls: tuple[HeldCall, ...] = ()
    rpcs: tuple[HeldRpc, ...] = ()
    buffers: tuple[HeldBuffer, ...] = ()
    call_count: int = 0
    buffer_count: int = 0
    buffer_pages: int = 0

    def pages(self) -> Iterator[int]:
        """Yield the frame word of each of the guest's pages, as often as it is named."""
        for rpc in self.rpcs:
            yield rpc.page
        for buffer in self.buffers:
            yield from buffer.frames

    def named(self) -> Counter[int]:
        """Count how often each frame is named; one without a number is left out."""
        return Counter(mfn for word in self.pages() if (mfn := mfn_of(word)) is not None)

    def shadows(self) -> Iterator[tuple[str, int]]:
        """Yield what each page of the hypervisor is for, and its frame word; of a page list the first page's."""
        for call in self.calls:
            yield f"shadow of the call at {call.ipa:#x}", call.shadow
        for rpc in self.rpcs:
            yield f"shadow of RPC page {rpc.cookie:#x}", rpc.shadow
        for buffer in self.buffers:
            yield f"page list of buffer {buffer.cookie:#x}", buffer.shadow

    def given(self) -> set[int] | None:
        """The frames that OP-TEE may have: pages of buffers, their page lists, and shadows of messages; ``None`` when
        one is not known."""
        words = [word for buffer in self.buffers for word in buffer.frames]
        words += [word for _, word in self.shadows() if word]
        found = [mfn_of(word) for word in words]
        for buffer in self.buffers:
            first = mfn_of(buffer.shadow)
            found += range(first, first + (1 << min(buffer.order, _MOST_ORDER))) if first is not None else ()
        return None if None in found else {mfn for mfn in found if mfn is not None}

    @property
    def shadow_pages(self) -> int:
        """Pages of the hypervisor that the entries hold."""
        shadows = [call.shadow for call in self.calls] + [rpc.shadow for rpc in self.rpcs]
        pages = [1 for shadow in shadows if shadow] + [1 << buf.order for buf in self.buffers if buf.shadow]
        return sum(pages)

    @property
    def objects(self) -> frozenset[tuple[str, int]]:
        """What the entries are, for telling whether any came or went."""
        calls = {("call", call.address) for call in self.calls}
        return frozenset(calls | {("rpc", r.cookie) for r in self.rpcs} | {("buffer", b.cookie) for b in self.buffers})


@dataclass(frozen=True, slots=True)
class Heap:
    """The hypervisor's memory: free pages, pages and used bytes of the pool that small objects come from, and pages of
    the domain. ``continued``: hypercalls so far that only went on with the end of some domain."""

    free: int
    pool_pages: int
    pool_bytes: int
    domain_pages: int
    continued: int = 0


@dataclass(frozen=True, slots=True)
class Books:
    """What was read at one moment; a part that was not is ``None``.

    ``context``: the domain has a mediator's context; ``lists`` are ``None``, too, when they could not be read to their
    end. ``frames`` are frame words of pages that are in no list: those that the guest's call names, before it; those
    that a list or a call had named, after it. ``hypercalls`` counts those so far that may take memory or references;
    ``busy``: such a one may have been going on on another processor.
    """

    domid: int
    context: bool = True
    lists: Lists | None = None
    frames: tuple[int, ...] = ()
    heap: Heap | None = None
    hypercalls: int = 0
    busy: bool = False


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory of the normal world that OP-TEE has in its list (``struct mobj_reg_shm``): a guest's buffer or, with
    cookie 0, a page that the mediator gave it for a call. ``frames`` are frame numbers."""

    cookie: int
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """OP-TEE's partition of a client, as it was when OP-TEE left it. ``shared`` is ``None`` when its list could not be
    read to its end; ``busy``: another processor may have been in the same partition at that time."""

    client: int
    shared: tuple[SharedMemory, ...] | None
    busy: bool = False

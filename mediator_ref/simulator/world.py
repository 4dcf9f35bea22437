# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine memory of the simulator: frames, who owns them, who holds references, and the guests' view of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mediator_ref.events import PAGE_SIZE, Access, PageKind, PageView

ZERO = bytes(PAGE_SIZE)


class GuestView(Mapping[int, PageView]):
    """A domain's pages at one moment; what is not mapped is seen to be unmapped."""

    def __init__(self, pages: Mapping[int, PageView]) -> None:
        self._pages = dict(pages)

    def __getitem__(self, ipa: int) -> PageView:
        return self._pages.get(ipa, PageView(PageKind.UNMAPPED))

    def __iter__(self) -> Iterator[int]:
        return iter(self._pages)

    def __len__(self) -> int:
        return len(self._pages)


@dataclass
class World:
    """All frames. ``refs`` counts the mediator's references to guest frames; ``violations`` is ground truth."""

    data: dict[int, bytes] = field(default_factory=dict)
    owner: dict[int, int] = field(default_factory=dict)
    heap: set[int] = field(default_factory=set)
    refs: Counter[int] = field(default_factory=Counter)
    p2m: dict[int, dict[int, tuple[int, PageKind]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    next_frame: int = 0x80000
    accesses: list[Access] = field(default_factory=list)

    def frame(self) -> int:
        """A new frame without owner."""
        self.next_frame += 1
        self.data[self.next_frame] = ZERO
        return self.next_frame

    # The hypervisor's heap

    def heap_page(self) -> int:
        """Allocate one page; returns its machine address."""
        mfn = self.frame()
        self.heap.add(mfn)
        return mfn << 12

    def heap_free(self, ma: int) -> None:
        """Give a page back."""
        self.heap.remove(ma >> 12)
        del self.data[ma >> 12]

    def shadow(self) -> dict[int, bytes]:
        """The heap as an observer sees it."""
        return {mfn << 12: self.data[mfn] for mfn in self.heap}

    # Guests

    def map(self, domid: int, ipa: int, data: bytes = ZERO, kind: PageKind = PageKind.RAM_RW) -> int:
        """Give a domain a page; returns its frame."""
        mfn = self.frame()
        self.data[mfn] = data
        self.owner[mfn] = domid
        self.p2m.setdefault(domid, {})[ipa] = (mfn, kind)
        return mfn

    def unmap(self, domid: int, ipa: int) -> int | None:
        """Take a page from a domain; its frame, when it becomes free (no reference holds it)."""
        mfn, _ = self.p2m[domid].pop(ipa)
        if self.refs[mfn]:
            return None
        del self.owner[mfn]
        return mfn

    def protect(self, domid: int, ipa: int, kind: PageKind) -> None:
        """Change a page's type."""
        mfn, _ = self.p2m[domid][ipa]
        self.p2m[domid][ipa] = (mfn, kind)

    def lookup(self, domid: int, ipa: int) -> tuple[int | None, PageKind]:
        """Frame and type behind an IPA."""
        return self.p2m.get(domid, {}).get(ipa & ~(PAGE_SIZE - 1), (None, PageKind.UNMAPPED))

    def read(self, domid: int, ipa: int) -> bytes:
        """A guest reads one of its pages."""
        mfn, _ = self.lookup(domid, ipa)
        return self.data[mfn] if mfn is not None else ZERO

    def write(self, domid: int, ipa: int, data: bytes) -> None:
        """A guest writes one of its pages."""
        mfn, _ = self.lookup(domid, ipa)
        if mfn is not None:
            self.data[mfn] = data

    def view(self, domid: int) -> GuestView:
        """A domain's pages as an observer sees them."""
        return GuestView(
            {ipa: PageView(kind, mfn, self.data.get(mfn)) for ipa, (mfn, kind) in self.p2m.get(domid, {}).items()}
        )

    def touch(self, mfn: int, start: int, end: int, *, store: bool = False) -> None:
        """The mediator loads, or stores, these bytes of a guest's page."""
        if start < end:
            self.accesses.append(Access(mfn * PAGE_SIZE + start, end - start, store))

    def touched(self) -> tuple[Access, ...]:
        """What the mediator loaded and stored since this was asked last."""
        found, self.accesses = tuple(self.accesses), []
        return found

    # OP-TEE

    def secure_read(self, ma: int) -> bytes:
        """OP-TEE reads a page of normal memory."""
        return self.data.get(ma >> 12, ZERO)

    def secure_write(self, ma: int, data: bytes) -> None:
        """OP-TEE writes a page of normal memory."""
        if ma >> 12 in self.data:
            self.data[ma >> 12] = data

    def secure_use(self, domid: int, mfn: int) -> None:
        """OP-TEE works on a guest's page: it has to be that guest's, and pinned."""
        if self.owner.get(mfn) != domid:
            self.violations.append(f"OP-TEE used frame {mfn:#x} for domain {domid}, which does not own it")
        elif not self.refs[mfn]:
            self.violations.append(f"OP-TEE used frame {mfn:#x} of domain {domid}, which is not pinned")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as the observer saw it: the only source of :class:`NotObserved` about guest pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mediator_ref.events import PAGE_SIZE, PageKind, PageView
from mediator_ref.spec.outcome import NotObserved

GuestMemory = Mapping[int, PageView]
"""Guest pages by IPA; a page that was not observed is missing."""

_NOT_RAM = (PageKind.OTHER, PageKind.UNMAPPED)
_READABLE = (PageKind.RAM_RW, PageKind.RAM_RO)


def access_guest_memory_by_ipa(guest: GuestMemory, ipa: int, missing: str, no_content: str) -> bytes | None:
    """Read a page; ``None`` when it is not RAM of the domain (guestcopy.c: access_guest_memory_by_ipa()).

    Raises :class:`NotObserved` with the reason ``missing`` for the page, ``no_content`` for its bytes.
    """
    view = guest.get(ipa)
    if view is None or (view.kind is None and view.data is None):
        raise NotObserved(missing)
    if view.kind in _NOT_RAM:
        return None
    if view.data is None or len(view.data) != PAGE_SIZE:
        raise NotObserved(no_content)
    return view.data


def get_domain_ram_page(guest: GuestMemory, ipa: int, missing: str) -> PageView | None:
    """Return a page that is the domain's own writable RAM, else ``None`` (optee.c: get_domain_ram_page()).

    Raises :class:`NotObserved` when the page's type was not observed.
    """
    view = guest.get(ipa)
    if view is None or view.kind is None:
        raise NotObserved(missing)
    return view if view.kind is PageKind.RAM_RW else None


def page_kind(ipa: int | None, views: Sequence[GuestMemory]) -> PageKind | None:
    """Type of a page, from the first view that shows it."""
    if ipa is not None:
        for guest in views:
            view = guest.get(ipa)
            if view is not None and view.kind is not None:
                return view.kind
    return None


def is_writable(ipa: int | None, views: Sequence[GuestMemory]) -> bool | None:
    """Tell whether get_domain_ram_page() succeeds; ``None`` when not observed."""
    kind = page_kind(ipa, views)
    return None if kind is None else kind is PageKind.RAM_RW


def is_accessible(ipa: int | None, views: Sequence[GuestMemory]) -> bool | None:
    """Tell whether access_guest_memory_by_ipa() succeeds; ``None`` when not observed."""
    kind = page_kind(ipa, views)
    return None if kind is None else kind in _READABLE

# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory parameters (optee.c: allocate_optee_shm_buf() to translate_params())."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mediator_ref import abi
from mediator_ref.domain import Buffer, Domain, ShmAccounting
from mediator_ref.events import PAGE_SIZE
from mediator_ref.limits import Limits
from mediator_ref.rules import RuleId
from mediator_ref.spec.guest_memory import GuestMemory, get_domain_ram_page
from mediator_ref.spec.outcome import NotObserved, Refusal, Translation

_TMEM, _LIST_ENTRIES, _PAGE = abi.TMEM_TYPES, abi.LIST_ENTRIES, ~abi.OFFSET_MASK


@dataclass(frozen=True, slots=True)
class Walk:
    """Result of following a guest's page list: the frames, or why there are none.

    ``bad``: a page is not the domain's writable RAM, after ``len(mfns)`` good ones. ``unknown``: not observed.
    """

    mfns: tuple[int, ...] = ()
    bad: bool = False
    unknown: str = ""


def allocate_optee_shm_buf(held: ShmAccounting, param: abi.Param, pages: int, limits: Limits) -> Refusal | None:
    """optee.c: allocate_optee_shm_buf(): the limits on buffers and pages, and no cookie twice."""
    if len(held.held) >= limits.buffers:
        return Refusal(abi.Tee.OUT_OF_MEMORY, RuleId.MEM_6, f"{len(held.held)} buffers are in use", param)
    if held.pages + pages >= limits.total_pages:
        reason = f"{held.pages} pages are shared, {pages} more asked for"
        return Refusal(abi.Tee.OUT_OF_MEMORY, RuleId.MEM_7, reason, param)
    if param.c in held.held:
        return Refusal(abi.Tee.BAD_PARAMETERS, RuleId.MEM_8, f"cookie {param.c:#x} is in use", param)
    return None


def page_count(size: int, buf_ptr: int) -> int:
    """Pages a buffer of ``size`` bytes at that offset touches. Exact: no wrap-around."""
    return -(-(size + (buf_ptr & abi.OFFSET_MASK)) // PAGE_SIZE)


def walk_list(buf_ptr: int, pages: int, guest: GuestMemory) -> Walk:
    """Follow a page list of ``pages`` entries: 511 addresses a list page, then the address of the next one.

    Frames that were not observed are left to the caller: the other buffers of the message can still be judged.
    """
    mfns: list[int] = []
    list_ipa = buf_ptr & _PAGE
    try:
        while len(mfns) < pages:
            list_page = get_domain_ram_page(guest, list_ipa, "a page of the list was not observed")
            if list_page is None:
                return Walk(tuple(mfns), bad=True)
            if list_page.data is None or len(list_page.data) != PAGE_SIZE:
                raise NotObserved("the content of a page of the list was not observed")
            words = abi.LIST_PAGE.unpack(list_page.data)
            for entry in words[: min(_LIST_ENTRIES, pages - len(mfns))]:
                page = get_domain_ram_page(guest, entry & _PAGE, "a page the list names was not observed")
                if page is None:
                    return Walk(tuple(mfns), bad=True)
                if page.mfn is None:
                    raise NotObserved("a page the list names was not observed")
                mfns.append(page.mfn)
            list_ipa = words[_LIST_ENTRIES] & _PAGE
    except NotObserved as missing:
        return Walk(tuple(mfns), unknown=missing.reason)
    return Walk(tuple(mfns))


def translate_noncontig(param: abi.Param, held: ShmAccounting, guest: GuestMemory, limits: Limits) -> Walk | Refusal:
    """optee.c: translate_noncontig(), for a buffer that is not NULL. Returns the frames to be pinned."""
    pages = page_count(param.b, param.a)
    if pages > limits.buffer_pages or pages == 0:
        return Refusal(abi.Tee.OUT_OF_MEMORY, RuleId.MEM_5, f"a buffer of {pages} pages", param)
    refusal = allocate_optee_shm_buf(held, param, pages, limits)
    if refusal is not None:
        return refusal
    walk = walk_list(param.a, pages, guest)
    if walk.bad:
        return Refusal(abi.Tee.BAD_PARAMETERS, RuleId.MEM_3, "a page is not the domain's writable RAM", param)
    return walk


def translate_params(
    domain: Domain, params: Sequence[abi.Param], guest: GuestMemory, limits: Limits
) -> Translation | None:
    """optee.c: translate_params(). Returns ``None`` for a message without memory parameters.

    Raises :class:`NotObserved` for a refusal that rests on a parameter after one whose frames are not known.
    """
    if not any(param.attr & abi.ATTR_TYPE_MASK in _TMEM for param in params):
        return None
    result = Translation()
    held = domain.accounting()
    unknown = ""
    for index, param in enumerate(params):
        if param.attr & abi.ATTR_TYPE_MASK not in _TMEM:
            continue
        if param.a == 0:
            result.nulls += 1
            continue
        if not param.attr & abi.ATTR_NONCONTIG:
            refusal = Refusal(abi.Tee.BAD_PARAMETERS, RuleId.MEM_4, "a contiguous buffer", param)
            return _refused(result, refusal, unknown)
        walk = translate_noncontig(param, held, guest, limits)
        if isinstance(walk, Refusal):
            return _refused(result, walk, unknown)
        unknown = unknown or walk.unknown
        result.buffers[index] = None if walk.unknown else Buffer(param.c, walk.mfns)
        held.held[param.c] = result.pages[param.c] = page_count(param.b, param.a)
    return result


def _refused(result: Translation, refusal: Refusal, unknown: str) -> Translation:
    if unknown:
        raise NotObserved(unknown)
    result.refusal = refusal
    return result

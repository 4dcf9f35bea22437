"""Memory parameters: walking a guest's page list, deciding on a buffer, and checking what was made of it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.events import PAGE_SIZE, PageKind, PageView
from mediator_ref.limits import Limits
from mediator_ref.state import Buffer, Ledger
from mediator_ref.verdict import Difference


@dataclass(frozen=True, slots=True)
class Walk:
    """Result of following a guest's page list: the frames, or why there are none.

    ``bad``: a page is not the domain's writable RAM, after ``len(mfns)`` good ones. ``unknown``: not observed.
    """

    mfns: tuple[int, ...] = ()
    bad: bool = False
    unknown: str = ""


def page_count(size: int, buf_ptr: int) -> int:
    """Pages a buffer of ``size`` bytes at that offset touches. Exact: no wrap-around."""
    return -(-(size + (buf_ptr & abi.OFFSET_MASK)) // PAGE_SIZE)


def wrapped_page_count(size: int, buf_ptr: int) -> int:
    """The same in 64-bit arithmetic cut to 32 bits, as a mediator with D9 counts."""
    total = (size + (buf_ptr & abi.OFFSET_MASK)) & abi.U64
    return ((total + PAGE_SIZE - 1 & abi.U64) // PAGE_SIZE) & abi.U32


def usable(view: PageView | None) -> bool | None:
    """Whether a page is the domain's own writable RAM; ``None`` when that was not observed."""
    if view is None or view.kind is None:
        return None
    return view.kind is PageKind.RAM_RW


def walk_list(buf_ptr: int, pages: int, mem: Mapping[int, PageView]) -> Walk:
    """Follow a non-contiguous page list of ``pages`` entries: 511 addresses a list page, then the next list page."""
    mfns: list[int] = []
    list_ipa = buf_ptr & ~abi.OFFSET_MASK
    while len(mfns) < pages:
        view = mem.get(list_ipa)
        fit = usable(view)
        if fit is None or view is None:
            return Walk(tuple(mfns), unknown="a page of the list was not observed")
        if not fit:
            return Walk(tuple(mfns), bad=True)
        if view.data is None or len(view.data) != PAGE_SIZE:
            return Walk(tuple(mfns), unknown="the content of a page of the list was not observed")
        words = abi.LIST_PAGE.unpack(view.data)
        for entry in words[: min(abi.LIST_ENTRIES, pages - len(mfns))]:
            ipa = entry & ~abi.OFFSET_MASK
            data = mem.get(ipa)
            fit = usable(data)
            if fit is False:
                return Walk(tuple(mfns), bad=True)
            if fit is None or data is None or data.mfn is None:
                return Walk(tuple(mfns), unknown="a page the list names was not observed")
            mfns.append(data.mfn)
        list_ipa = words[abi.LIST_ENTRIES] & ~abi.OFFSET_MASK
    return Walk(tuple(mfns))


@dataclass(slots=True)
class Translation:
    """What becomes of the buffers of one message.

    ``error``: 0 or the result the guest finds in ``ret``; ``rule``: the rule that says so. ``buffers``: by parameter
    index, ``None`` where the frames are not known. ``unknown``: why no decision is possible.
    """

    error: int = 0
    rule: str = ""
    reason: str = ""
    buffers: dict[int, Buffer | None] = field(default_factory=dict)
    cookies: list[int] = field(default_factory=list)
    nulls: int = 0
    unknown: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    wraps: bool = False

    def refuse(self, error: int, rule: str, reason: str) -> Translation:
        """Note the refusal; what was accepted before is released."""
        self.error, self.rule, self.reason = error, rule, reason
        return self


def translate(
    params: Sequence[abi.Param],
    mem: Mapping[int, PageView],
    held: Ledger,
    limits: Limits,
    *,
    defects: Container[str] = (),
) -> Translation:
    """Decide on the memory parameters of a message, in the order of Xen's ``translate_params``.

    ``held`` is not changed; the result's ``ledger`` is what it becomes. With ``defects`` (ids of
    deviations, of which D3, D5 and D9 matter here) the decision and the ledger are those of a mediator with them.
    """
    result = Translation(ledger=held.copy())
    ledger = result.ledger
    for index, param in enumerate(params):
        if param.type not in abi.TMEM_TYPES:
            continue
        if param.a == 0:
            result.nulls += 1
            continue
        if not param.attr & abi.ATTR_NONCONTIG:
            result.refuse(abi.Tee.BAD_PARAMETERS, "MEM-4", "a contiguous buffer")
            break
        pages = page_count(param.b, param.a)
        if wrapped_page_count(param.b, param.a) != pages:
            result.wraps = True
            if "D9" in defects:
                pages = wrapped_page_count(param.b, param.a)
        if pages > limits.buffer_pages or pages == 0:
            result.refuse(abi.Tee.OUT_OF_MEMORY, "MEM-5", f"a buffer of {pages} pages")
            break
        if len(ledger.held) >= limits.buffers:
            result.refuse(abi.Tee.OUT_OF_MEMORY, "MEM-6", f"{len(ledger.held)} buffers are in use")
            break
        if ledger.pages + pages >= limits.total_pages:
            result.refuse(abi.Tee.OUT_OF_MEMORY, "MEM-7", f"{ledger.pages} pages are shared, {pages} more asked for")
            break
        if param.c in ledger.held:
            result.refuse(abi.Tee.BAD_PARAMETERS, "MEM-8", f"cookie {param.c:#x} is in use")
            break
        walk = walk_list(param.a, pages, mem)
        if walk.bad:
            if "D3" in defects:
                ledger.leaked_pages += pages - len(walk.mfns)
            result.refuse(abi.Tee.BAD_PARAMETERS, "MEM-3", "a page is not the domain's writable RAM")
            break
        if walk.unknown:
            result.unknown = result.unknown or walk.unknown
            result.buffers[index] = None
        else:
            result.buffers[index] = Buffer(param.c, walk.mfns)
        ledger.held[param.c] = pages
        result.cookies.append(param.c)
    if result.error and "D5" not in defects:
        result.ledger = Ledger(dict(held.held), ledger.leaked_pages)
    return result


def check_list(
    where: str, guest_ptr: int, shadow_ptr: int, buffer: Buffer | None, shadow: Mapping[int, bytes]
) -> tuple[list[Difference], list[int], str]:
    """Compare a shadow page list with the frames it has to name.

    Returns the differences, the list pages it stands on (MAs), and why it could not be compared (or nothing).
    """
    differences: list[Difference] = []
    if (shadow_ptr ^ guest_ptr) & abi.OFFSET_MASK:
        differences.append(
            Difference(
                f"{where}.buf_ptr offset",
                f"{guest_ptr & abi.OFFSET_MASK:#x}",
                f"{shadow_ptr & abi.OFFSET_MASK:#x}",
            )
        )
    page = shadow_ptr & ~abi.OFFSET_MASK
    pages: list[int] = []
    if buffer is None:
        return differences, [page], "the guest's page list was not observed"
    done = 0
    while done < len(buffer.mfns):
        data = shadow.get(page)
        pages.append(page)
        if data is None or len(data) != PAGE_SIZE:
            return differences, pages, "a page of the shadow list was not observed"
        count = min(abi.LIST_ENTRIES, len(buffer.mfns) - done)
        due = [mfn << 12 for mfn in buffer.mfns[done : done + count]]
        words = abi.LIST_PAGE.unpack(data)
        if list(words[:count]) != due:
            differences += [
                Difference(f"{where} list entry {done + i}", f"{want:#x}", f"{got:#x}")
                for i, (want, got) in enumerate(zip(due, words[:count], strict=True))
                if want != got
            ][:4]
            return differences, pages, ""
        done += count
        page = words[abi.LIST_ENTRIES] & ~abi.OFFSET_MASK
    return differences, pages, ""

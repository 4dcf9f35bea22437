# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest memory that the mediator has to read and write for a call: which bytes of which pages, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.domain import Domain, StdCall
from mediator_ref.events import PAGE_SIZE, PageKind, PageView
from mediator_ref.spec.outcome import Answer, Complete, Deliver, PageWrite, Restart, Unknown

Span = tuple[int, int]
"""Bytes of a page, from and to before."""

_PAGE = PAGE_SIZE
_ENTRY = 8
_LIST_ENTRIES = _PAGE // _ENTRY - 1
_NEXT: Span = (_LIST_ENTRIES * _ENTRY, _PAGE)
_RESULTS = tuple((abi.ARG_FIELDS[name], abi.ARG_FIELDS[name] + 4) for name in ("session", "ret", "ret_origin"))
_FREE_REQUEST: Span = (0, abi.arg_size(1))
_MOST_LISTED = 1 << 16
_READABLE = (None, PageKind.RAM_RW, PageKind.RAM_RO)


@dataclass(slots=True)
class NamedPage:
    """One guest page that a call names, and what of it may be loaded and stored.

    ``names``: how often the call names it; a page that is two things may be read twice. ``copied``: its message was
    copied before, so that nothing of it may be loaded any more.
    """

    what: str
    loads: list[Span] = field(default_factory=list)
    stores: list[Span] = field(default_factory=list)
    names: int = 1
    copied: bool = False


Named = dict[int, NamedPage]
"""Pages by frame."""


def _add(named: Named, view: PageView | None, page: NamedPage) -> None:
    if view is None or view.mfn is None:
        return
    known = named.get(view.mfn)
    if known is None:
        named[view.mfn] = page
        return
    known.names += 1
    known.loads += page.loads
    known.stores += page.stores
    known.copied &= page.copied


def for_std_call(ipa: int, mem: Mapping[int, PageView]) -> Named | None:
    """CALL_WITH_ARG before OP-TEE: the whole page is copied once, and each page list is walked.

    A call that is refused in its message has its results written back. None when the page was not observed.
    """
    named: Named = {}
    view = mem.get(ipa & ~abi.OFFSET_MASK)
    if view is None or (view.data is None and view.kind in _READABLE):
        return None
    params = _params(view)
    stores = [*_RESULTS, *(span for index, q in enumerate(params) for span in _outputs(index, q))]
    _add(named, view, NamedPage("argument page", [(0, _PAGE)], stores))
    _add_lists(named, params, mem)
    return named


def for_reply(domain: Domain, call: StdCall, cookies: Sequence[int], mem: Mapping[int, PageView]) -> Named | None:
    """CALL_RETURN_FROM_RPC before OP-TEE: after CMD the RPC page's message is copied, and nothing else.

    ``cookies``: those that name the page, OP-TEE's first, then the guest's own. None when the page was not observed.
    The argument page was copied long ago.
    """
    named = _copied_argument(call)
    if call.rpc_op != abi.RpcFunc.CMD:
        return named
    for cookie in dict.fromkeys(cookies):
        rpc = domain.rpcs.get(cookie)
        if rpc is None and cookie != cookies[0]:
            continue  # the guest's own invention
        view = mem.get(rpc.ipa) if rpc is not None else None
        if view is None or (view.data is None and view.kind in _READABLE):
            return None
        params = _params(view)
        header = _header(view)
        size = abi.arg_size(header[7]) if header else _PAGE
        loads = [(0, size if size <= _PAGE else abi.HEADER_SIZE)]
        _add(named, view, NamedPage("RPC page", loads, [_FREE_REQUEST]))
        if call.rpc_cmd == abi.RpcCmd.SHM_ALLOC or (header and header[0] == abi.RpcCmd.SHM_ALLOC):
            _add_lists(named, params[:1], mem)
    return named


def for_answer(
    answer: Answer | None,
    call: StdCall | None,
    returned: tuple[int, ...],
    domain: Domain,
    mems: Sequence[Mapping[int, PageView]],
) -> Named | None:
    """After OP-TEE: results are written into the argument page, a request into the RPC page; nothing is loaded.

    ``mems``: the guest's pages, the latest view first. None when what OP-TEE answered is not known.
    """
    if answer is None or isinstance(answer, Unknown):
        return None
    named = _copied_argument(call) if call is not None else {}
    page = answer.page if isinstance(answer, Complete | Deliver) else None
    if isinstance(page, Unknown):
        return None
    if isinstance(answer, Complete) and isinstance(page, PageWrite):
        spans = [(offset, offset + len(data)) for offset, data in page.patches]
        _add(named, _latest(mems, page.ipa), NamedPage("argument page", [], spans, copied=True))
    elif isinstance(page, PageWrite):
        _add(named, _latest(mems, page.ipa), NamedPage("RPC page", [], [(0, page.size)]))
    elif isinstance(answer, Restart):
        rpc = domain.rpcs.get(abi.pair(returned[1], returned[2]))
        _add(named, _latest(mems, rpc.ipa) if rpc is not None else None, NamedPage("RPC page", [], [(0, _PAGE)]))
    return named


def _latest(mems: Sequence[Mapping[int, PageView]], ipa: int) -> PageView | None:
    return next((view for mem in mems if (view := mem.get(ipa)) is not None), None)


def _copied_argument(call: StdCall) -> Named:
    named: Named = {}
    if call.arg_mfn is not None:
        named[call.arg_mfn] = NamedPage("argument page", copied=True)
    return named


def _header(view: PageView | None) -> tuple[int, ...]:
    return abi.HEADER.unpack_from(view.data) if view is not None and view.data is not None else ()


def _params(view: PageView | None) -> Sequence[abi.Param]:
    return abi.decode_arg(view.data).params if view is not None and view.data is not None else ()


def _outputs(index: int, param: abi.Param) -> Iterator[Span]:
    """Where a parameter's results are written: the size of memory, the three words of a value."""
    words, at = param.type, abi.arg_size(index) + 8
    if words in (abi.Attr.VALUE_OUTPUT, abi.Attr.VALUE_INOUT):
        yield at, at + 24
    elif words in (abi.Attr.TMEM_OUTPUT, abi.Attr.TMEM_INOUT, abi.Attr.RMEM_OUTPUT, abi.Attr.RMEM_INOUT):
        yield at + 8, at + 16


def _add_lists(named: Named, params: Sequence[abi.Param], mem: Mapping[int, PageView]) -> None:
    """Add the pages of every page list, as far as their entries are needed, and the pages that they list."""
    for param in params:
        if param.type not in abi.TMEM_TYPES or not param.attr & abi.ATTR_NONCONTIG or not param.a:
            continue
        pages = -(-(param.b + (param.a & abi.OFFSET_MASK)) // _PAGE)
        ipa = param.a & ~abi.OFFSET_MASK
        for _ in range(_MOST_LISTED // _LIST_ENTRIES):
            view = mem.get(ipa)
            if not pages or view is None:
                break
            here = min(pages, _LIST_ENTRIES)
            pages -= here
            loads = [(0, here * _ENTRY), *([_NEXT] if here == _LIST_ENTRIES else [])]
            _add(named, view, NamedPage("page list", loads))
            if view.data is None:
                break
            for at in range(0, here * _ENTRY, _ENTRY):
                listed = int.from_bytes(view.data[at : at + _ENTRY], "little") & ~abi.OFFSET_MASK
                _name_data(named, mem.get(listed))
            ipa = int.from_bytes(view.data[_NEXT[0] :], "little") & ~abi.OFFSET_MASK


def _name_data(named: Named, view: PageView | None) -> None:
    """A page of a buffer: the mediator has no business in it, unless the call names it otherwise, too."""
    if view is not None and view.mfn is not None and view.mfn not in named:
        named[view.mfn] = NamedPage("page of a buffer")

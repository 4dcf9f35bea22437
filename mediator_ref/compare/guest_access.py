# SPDX-License-Identifier: GPL-2.0-or-later
"""FETCH-1 and FETCH-2: what the mediator read and wrote of a guest's pages, held to what the call needs.

Loads and stores are seen as they happened (the sense ``reads`` of a trace), so a second read needs no second vCPU that
changes the byte in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from mediator_ref import abi
from mediator_ref.compare.checks import patched
from mediator_ref.deviations.d18 import HEADER_AGAIN
from mediator_ref.events import Access, El3Call, GuestReturn
from mediator_ref.knowledge import Pending, Phase
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.guest_access import Named, NamedPage, Span, for_answer, for_reply, for_std_call
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_MOST = 4
_NO_RESULTS = [(abi.ARG_FIELDS[name], bytes(4)) for name in ("session", "ret", "ret_origin")]


def check_accesses(state: State, pending: Pending, event: El3Call | GuestReturn) -> None:
    """Check the stretch that ends with ``event``, before the event changes what is known."""
    function = pending.function
    if function is None or function.handling not in (abi.Handling.STANDARD, abi.Handling.RESUME):
        return
    if event.accesses is None:
        state.reads_missing = True
        return
    if not event.accesses:  # most stretches: nothing to copy
        state.ok(RuleId.FETCH_1)
        state.ok(RuleId.FETCH_2)
        return
    named = _named(pending)
    if named is None:
        if not pending.tainted:
            for rule in (RuleId.FETCH_1, RuleId.FETCH_2):
                state.unchecked(rule, "the pages that the call names were not observed", event)
        return
    again: list[Difference] = []
    outside: list[Difference] = []
    ambiguous = ""
    for access in event.accesses:
        page = named.get(access.ma >> 12)
        span = access.ma & abi.OFFSET_MASK, (access.ma & abi.OFFSET_MASK) + access.length
        if page is not None and page.copied and not access.store:
            again.append(_difference(page, span, "no load: it was copied at CALL_WITH_ARG", access))
            continue
        allowed = () if page is None else page.stores if access.store else page.loads
        if not _within(span, allowed):
            outside.append(_outside(page, span, allowed, access))
        if access.store:
            continue
        twice = _overlap(pending, access.ma >> 12, span)
        if twice is not None and page is not None and page.names > 1:
            ambiguous = "the guest names one page as two things"
        elif twice is not None:
            again.append(_twice(page, twice, access))
    written = pending.phase is Phase.HYPERVISOR and _guest_wrote(pending, event) if outside else False
    _judge(state, pending, event, again, outside, ambiguous, written=written)


def _named(pending: Pending) -> Named | None:
    """The pages that the call names; None when it is not known enough."""
    assert pending.function is not None
    if pending.tainted:
        return None
    if pending.phase is Phase.ANSWER:
        fresh = pending.base if pending.base is not pending.event.mem else {}
        return for_answer(pending.answer, pending.call, pending.returned, pending.domain, (fresh, pending.event.mem))
    mem = pending.event.mem
    if pending.function.handling is abi.Handling.STANDARD:
        return for_std_call(pending.arg_ipa, mem)
    call = pending.domain.calls.get(pending.thread)
    if call is None or call.tainted:
        return None
    return for_reply(pending.domain, call, (abi.pair(*call.rpc_params), pending.arg_ipa), mem)


def _guest_wrote(pending: Pending, event: El3Call | GuestReturn) -> bool:
    """Whether the guest may have written its message while the mediator read it, so that other bytes were needed."""
    domain, call = pending.domain, pending.domain.calls.get(pending.thread)
    pages = [pending.arg_ipa]
    if pending.function is not None and pending.function.handling is abi.Handling.RESUME:
        cookies = (*((abi.pair(*call.rpc_params),) if call is not None else ()), pending.arg_ipa)
        pages = [domain.rpcs[cookie].ipa for cookie in dict.fromkeys(cookies) if cookie in domain.rpcs]
    for ipa in pages:
        before, now = pending.event.mem.get(ipa), event.mem.get(ipa)
        if before is None or now is None or before.data is None or now.data is None:
            return True
        if patched(before.data, _NO_RESULTS) != patched(now.data, _NO_RESULTS):
            return True
    return False


def _within(span: Span, allowed: Sequence[Span]) -> bool:
    """Whether each byte of ``span`` lies in one of ``allowed``."""
    start, end = span
    for first, last in sorted(allowed):
        if first <= start < last:
            start = last
    return start >= end


def _overlap(pending: Pending, frame: int, span: Span) -> Span | None:
    """Note a load; return the bytes that the call has loaded before."""
    loaded = pending.loaded.setdefault(frame, [])
    found = next(((max(a, span[0]), min(b, span[1])) for a, b in loaded if a < span[1] and span[0] < b), None)
    loaded.append(span)
    return found


def _place(page: NamedPage | None, span: Span, access: Access) -> str:
    return f"{page.what if page else f'frame {access.ma >> 12:#x}'} [{span[0]:#x}:{span[1]:#x}]"


def _difference(page: NamedPage | None, span: Span, expected: str, access: Access) -> Difference:
    observed = f"{access.length} bytes {'stored' if access.store else 'loaded'} by the code at {access.pc:#x}"
    return Difference(_place(page, span, access), expected, observed)


def _outside(page: NamedPage | None, span: Span, allowed: Sequence[Span], access: Access) -> Difference:
    spans = ", ".join(f"[{a:#x}:{b:#x}]" for a, b in sorted(allowed))
    what = "store" if access.store else "load"
    return _difference(page, span, f"{what}s of {spans} only" if spans else f"no {what}", access)


def _twice(page: NamedPage | None, span: Span, access: Access) -> Difference:
    found = _difference(page, span, "one load in a call", access)
    if page is not None and page.what == "RPC page" and span[1] <= abi.HEADER_SIZE:
        return Difference(HEADER_AGAIN, found.expected, found.observed)
    return found


def _judge(
    state: State,
    pending: Pending,
    event: El3Call | GuestReturn,
    again: Sequence[Difference],
    outside: Sequence[Difference],
    ambiguous: str,
    *,
    written: bool,
) -> None:
    if again:
        state.fail(RuleId.FETCH_1, event, "guest memory is read a second time", *again[:_MOST], pending=pending)
    elif ambiguous:
        state.unchecked(RuleId.FETCH_1, ambiguous, event)
    else:
        state.ok(RuleId.FETCH_1)
        if pending.loaded and pending.phase is Phase.HYPERVISOR and isinstance(event, El3Call):
            call = pending.domain.calls.get(pending.thread)
            if pending.function is not None and pending.function.handling is abi.Handling.RESUME and call is not None:
                state.deviation_not_seen(DeviationId.D18)
    if outside and written:
        state.unchecked(RuleId.FETCH_2, "the guest wrote its page while the mediator read it", event)
    elif outside:
        state.fail(RuleId.FETCH_2, event, "guest memory that the call does not name", *outside[:_MOST], pending=pending)
    else:
        state.ok(RuleId.FETCH_2)

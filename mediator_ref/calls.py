"""Standard calls: what a mediator decides about CALL_WITH_ARG, and how one ends (Xen ``handle_std_call``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import starmap

from mediator_ref import abi
from mediator_ref.check import (
    check_client_id,
    check_el3_regs,
    check_guest_page,
    check_guest_regs,
    page_differences,
    patched,
)
from mediator_ref.events import PAGE_SIZE, El3Call, GuestReturn, PageKind
from mediator_ref.ledger import attributed, blamed, commit, commit_refused
from mediator_ref.memory import Translation, check_list, translate
from mediator_ref.state import Buffer, Call, Pending, State, uncertain
from mediator_ref.verdict import Difference

_NUM_PARAMS = abi.ARG_FIELDS["num_params"]

STATEFUL = frozenset({"STD-1", "MEM-6", "MEM-7", "MEM-8"})
"""Rules whose outcome depends on what else the domain is doing."""


@dataclass(slots=True)
class Decision:
    """What has to become of a CALL_WITH_ARG.

    ``x0`` is ``None`` for a call that goes to OP-TEE; ``ret`` is what the guest finds in its message, ``None`` when the
    page stays as it is. ``defect``: the x0 and the deviation of a mediator with known defects, where it differs.
    """

    x0: int | None = None
    ret: int | None = None
    rule: str = ""
    reason: str = ""
    unknown: str = ""
    page: bytes | None = None
    kind: PageKind | None = None
    params: list[abi.Param] = field(default_factory=list)
    translation: Translation | None = None
    defect: tuple[int, str] | None = None


def params_of(page: bytes) -> list[abi.Param]:
    """The parameters of a message that fits its page."""
    count = min(abi.U32_AT.unpack_from(page, _NUM_PARAMS)[0], abi.MAX_NUM_PARAMS)
    return list(starmap(abi.Param, abi.PARAM.iter_unpack(page[abi.HEADER_SIZE : abi.arg_size(count)])))


def decide(state: State, p: Pending) -> Decision:
    """Check order and errors of ``handle_std_call``, as they should be."""
    domain, event = p.domain, p.event
    d = Decision()
    in_use = len(domain.calls) + len(domain.running)
    if state.threads is not None:
        if in_use >= state.threads:
            return Decision(abi.SmcReturn.ETHREAD_LIMIT, rule="STD-1", reason=f"{in_use} calls are running")
        if in_use + domain.lost_calls >= state.threads:
            d.defect = (abi.SmcReturn.ETHREAD_LIMIT, "D4")
    ipa = abi.pair(event.regs[1], event.regs[2])
    if ipa & abi.OFFSET_MASK:
        return Decision(
            abi.SmcReturn.EBADADDR,
            defect=d.defect,
            rule="STD-2",
            reason=f"{ipa:#x} is not the start of a page",
        )
    view = event.mem.get(ipa)
    if view is None or (view.kind is None and view.data is None):
        d.unknown = "the argument page was not observed"
        return d
    if view.kind in (PageKind.OTHER, PageKind.UNMAPPED):
        return Decision(
            abi.SmcReturn.EBADADDR, defect=d.defect, rule="STD-2", reason=f"{ipa:#x} is not RAM of the domain"
        )
    d.page, d.kind = view.data, view.kind
    if d.page is None or len(d.page) != PAGE_SIZE:
        d.unknown = "the content of the argument page was not observed"
        return d
    header = abi.HEADER.unpack_from(d.page)
    cmd, num_params = header[0], header[7]
    if num_params > abi.MAX_NUM_PARAMS:
        d.x0, d.ret, d.rule, d.reason = 0, abi.Tee.BAD_PARAMETERS, "STD-3", f"{num_params} parameters"
        return d
    if cmd not in abi.MEDIATED_CMDS:
        d.x0, d.rule, d.reason = abi.SmcReturn.EBADCMD, "STD-4", f"command {cmd}"
        return d
    if not num_params:
        return d
    d.params = params_of(d.page)
    if any(param.attr & abi.ATTR_TYPE_MASK in abi.TMEM_TYPES for param in d.params):
        d.translation = t = translate(d.params, event.mem, domain.ledger(), state.limits)
        if t.error and not t.unknown:
            d.x0, d.ret, d.rule, d.reason = 0, t.error, t.rule, t.reason
        elif t.error:
            d.unknown = t.unknown
    return d


def with_defects(state: State, p: Pending, d: Decision) -> Translation | None:
    """The same decision by a mediator with the listed defects, where it can differ."""
    if d.translation is None:
        return None
    if p.domain.known is None and not d.translation.wraps and not d.translation.error:
        return None
    held = p.domain.known if p.domain.known is not None else p.domain.ledger()
    return translate(d.params, p.event.mem, held, state.limits, defects=state.deviations)


def forwarded(state: State, p: Pending, event: El3Call) -> None:
    """CALL_WITH_ARG reached EL3."""
    domain = p.domain
    d = decide(state, p)
    known = with_defects(state, p, d)
    check_client_id(state, p, event)
    ma = abi.pair(event.regs[1], event.regs[2])
    if check_el3_regs(
        state, p, event, "STD-5", (abi.CALL_WITH_ARG, ma >> 32, ma & abi.U32, abi.SHM_CACHED, 0, 0, 0)
    ) and (ma & abi.OFFSET_MASK or not ma):
        state.fail(
            "STD-5",
            event,
            "the shadow argument is not a page",
            Difference("x1:x2", "the address of a page", f"{ma:#x}"),
            cause=p.event,
        )
    call = Call(p.event.seq, abi.pair(p.event.regs[1], p.event.regs[2]), ma)
    p.call = domain.running[p.event.vcpu] = call
    call.shadow = event.shadow.get(ma)
    call.cmd = abi.U32_AT.unpack_from(d.page)[0] if d.page is not None else None
    if d.unknown:
        state.unchecked("STD-6", d.unknown, event)
        domain.partial = domain.partial or d.unknown
        return
    if d.x0 is not None:
        _should_not(state, p, d, known, event)
        own_page(state, p, event, ma)
        commit(p, d.translation, known)
        return
    own_page(state, p, event, ma)
    _shadow_argument(state, p, d, event, call)
    if d.translation is not None and d.translation.cookies:
        state.ok("MEM-1")
    if known is not None and known.error:
        for deviation in blamed(domain, known):
            state.absent(deviation)
    commit(p, d.translation, known)


def _should_not(state: State, p: Pending, d: Decision, known: Translation | None, event: El3Call) -> None:
    """A call reached OP-TEE that should have been refused."""
    why = uncertain(p) if d.rule in STATEFUL else ""
    if why:
        state.unchecked(d.rule, why, event)
        return
    deviation = None
    if known is not None and not known.error:
        deviation = attributed(p.domain, d.translation, known)[1]
    state.fail(d.rule, event, f"{d.reason}, and the call reached OP-TEE", deviation=deviation, cause=p.event)


def own_page(state: State, p: Pending, event: El3Call, *pages: int) -> None:
    """STD-7: pages handed to OP-TEE as the hypervisor's own are that."""
    frames = {view.mfn for view in p.event.mem.values()}
    for page in pages:
        owner = state.shadow_pages.get(page)
        state.shadow_pages[page] = p.event.domid
        if page >> 12 in frames:
            problem = "a guest's page where a shadow page should be"
        elif owner is None or p.domain.partial or state.mid_stream:
            state.ok("STD-7")
            continue
        elif owner != p.event.domid and not any(key[0] == owner for key in state.pending):
            # what a dying domain held is freed before OP-TEE is told, and may be used again at once
            state.unchecked("STD-7", "the domain the page belonged to may be dying", event)
            continue
        else:
            problem = "the shadow page of another live call"
        state.fail(
            "STD-7",
            event,
            problem,
            Difference("page", "a page of the hypervisor, used by nothing else", f"{page:#x}"),
            cause=p.event,
        )


def _shadow_argument(state: State, p: Pending, d: Decision, event: El3Call, call: Call) -> None:
    """STD-6, MEM-2 and MEM-9: the copy OP-TEE gets."""
    shadow, page = call.shadow, d.page
    assert page is not None
    buffers: dict[int, Buffer | None] = d.translation.buffers if d.translation is not None else {}
    if shadow is None:
        state.unchecked("STD-6", "the shadow argument was not observed", event)
        if buffers:
            state.unchecked("MEM-2", "the shadow argument was not observed", event)
        return
    if not buffers and shadow == page:
        state.ok("STD-6")
        if d.translation is not None and d.translation.nulls:
            state.ok("MEM-9")
        return
    size = abi.arg_size(len(d.params))
    at = {index: abi.arg_size(index) + 8 for index in buffers}
    due = patched(page, [(offset, shadow[offset : offset + 8]) for offset in at.values()])
    if shadow[:size] == due[:size]:
        state.ok("STD-6")
        if d.translation is not None and d.translation.nulls:
            state.ok("MEM-9")
    else:
        _shadow_differs(state, p, d, event, due[:size], shadow[:size])
    for index, buffer in buffers.items():
        pointer = int.from_bytes(shadow[at[index] : at[index] + 8], "little")
        check_translated(state, p, event, f"params[{index}]", d.params[index].a, pointer, buffer, call.list_pages)


def _shadow_differs(state: State, p: Pending, d: Decision, event: El3Call, due: bytes, seen: bytes) -> None:
    now = event.mem.get(abi.pair(p.event.regs[1], p.event.regs[2]))
    if now is not None and now.data is not None and now.data != d.page:
        state.unchecked("STD-6", "the guest wrote its page while the mediator copied it", event)
        return
    found = page_differences(due, seen)
    nulls = {abi.arg_size(i) + 8 for i, q in enumerate(d.params) if q.type in abi.TMEM_TYPES and not q.a}
    rule = "MEM-9" if found and all(offset in nulls for offset, _ in found) else "STD-6"
    state.fail(rule, event, "the shadow argument", *(diff for _, diff in found), cause=p.event)


def check_translated(
    state: State,
    p: Pending,
    event: El3Call,
    where: str,
    guest: int,
    pointer: int,
    buffer: Buffer | None,
    list_pages: list[int],
) -> None:
    """MEM-2 and STD-7 on one translated buffer; its list pages are noted in ``list_pages``."""
    differences, pages, why = check_list(where, guest, pointer, buffer, event.shadow)
    if differences:
        state.fail("MEM-2", event, "the shadow page list", *differences, cause=p.event)
    elif why:
        state.unchecked("MEM-2", why, event)
    else:
        state.ok("MEM-2")
    list_pages += pages
    own_page(state, p, event, *pages)


def refused(state: State, p: Pending, event: GuestReturn) -> None:
    """CALL_WITH_ARG was answered without EL3."""
    d = decide(state, p)
    if d.unknown:
        state.unchecked("STD-2", d.unknown, event)
        p.domain.partial = p.domain.partial or d.unknown
        return
    known = with_defects(state, p, d)
    if d.x0 is None or (d.defect is not None and event.regs[0] == d.defect[0]):
        _should_have(state, p, d, known, event)
        return
    ipa = abi.pair(p.event.regs[1], p.event.regs[2])
    stateful = uncertain(p) if d.rule in STATEFUL else ""
    if stateful and event.regs[0] != d.x0:
        state.unchecked(d.rule, stateful, event)
        return
    if d.ret is None:
        check_guest_regs(state, p, event, d.rule, {0: d.x0})
        if d.rule == "STD-4":
            check_guest_page(state, p, event, "STD-4", ipa, [], abi.arg_size(len(params_of(d.page or bytes(4096)))))
        return
    _refused_in_message(state, p, d, known, event, ipa, stateful)


def _refused_in_message(
    state: State,
    p: Pending,
    d: Decision,
    known: Translation | None,
    event: GuestReturn,
    ipa: int,
    stateful: str,
) -> None:
    """The refusal stands in the message: x0 is OK, ``ret`` says why."""
    if d.kind is PageKind.RAM_RO:
        if known is not None and known.error:
            commit_refused(p, known)
        check_guest_regs(
            state,
            p,
            event,
            "STD-10",
            {0: abi.SmcReturn.EBADADDR},
            deviation="D7" if event.regs[0] == 0 else "D8" if d.rule == "STD-3" else None,
        )
        return
    silent = event.regs[0] == p.event.regs[0]
    check_guest_regs(state, p, event, d.rule, {0: 0}, deviation="D8" if d.rule == "STD-3" and silent else None)
    if d.rule == "STD-3" and not silent:
        state.absent("D8")
    seen = _result(event, ipa)
    if seen is not None and seen != d.ret:
        if stateful:
            state.unchecked(d.rule, stateful, event)
            return
        if known is not None and known.error == seen:
            rule, deviation = attributed(p.domain, d.translation, known)
            state.fail(
                rule,
                event,
                f"refused: {known.reason}",
                Difference("ret", f"{d.ret:#x}", f"{seen:#x}"),
                deviation=deviation,
                cause=p.event,
            )
            commit_refused(p, known)
            return
    if known is not None and not known.error:
        state.absent("D9" if d.rule == "MEM-5" else next(iter(blamed(p.domain, d.translation)), ""))
        p.domain.known = None
    elif known is not None:
        commit_refused(p, known)
    offsets = abi.ARG_FIELDS
    size = abi.HEADER_SIZE if d.rule == "STD-3" else abi.arg_size(len(d.params))
    check_guest_page(
        state,
        p,
        event,
        d.rule,
        ipa,
        [
            (offsets["ret"], int(d.ret or 0).to_bytes(4, "little")),
            (offsets["ret_origin"], abi.ORIGIN_COMMS.to_bytes(4, "little")),
        ],
        size,
    )


def _result(event: GuestReturn, ipa: int) -> int | None:
    view = event.mem.get(ipa)
    if view is None or view.data is None:
        return None
    return int(abi.U32_AT.unpack_from(view.data, abi.ARG_FIELDS["ret"])[0])


def _should_have(state: State, p: Pending, d: Decision, known: Translation | None, event: GuestReturn) -> None:
    """A call was refused that should have reached OP-TEE."""
    x0 = event.regs[0] & abi.U32 if p.event.aarch32 else event.regs[0]
    deviation = None
    reason = "refused without a reason"
    if x0 == abi.SmcReturn.ENOMEM:
        state.unchecked("STD-5", "the mediator had no memory", event)
        return
    if x0 == abi.SmcReturn.OK:
        result = _result(event, abi.pair(p.event.regs[1], p.event.regs[2]))
        rule = "MEM-1" if d.translation is not None else "STD-5"
        if result is not None:
            reason = f"refused with ret = {result:#x}"
        if known is not None and known.error and result in (None, known.error):
            rule, deviation = attributed(p.domain, d.translation, known)
            reason = f"refused: {known.reason}, for a mediator with known defects"
            commit_refused(p, known)
    else:
        rule = {1: "STD-1", 4: "STD-2", 5: "STD-4"}.get(x0, "STD-5")
        reason = f"refused with x0 = {x0:#x}"
        if d.defect is not None and d.defect[0] == x0:
            deviation = d.defect[1]
    why = uncertain(p)
    if x0 == abi.SmcReturn.ETHREAD_LIMIT and state.threads is None:
        why = why or "how many threads OP-TEE has was never seen"
    if why and deviation is None and x0 in (abi.SmcReturn.OK, abi.SmcReturn.ETHREAD_LIMIT):
        state.unchecked(rule, why, event)
        return
    state.fail(rule, event, reason, Difference("x0", "a call at EL3", f"{x0:#x}"), deviation=deviation, cause=p.event)

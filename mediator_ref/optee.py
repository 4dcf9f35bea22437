"""OP-TEE returned from a standard call: it ended, or it is suspended for an RPC (Xen ``do_call_with_arg``)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.calls import params_of
from mediator_ref.check import check_guest_page, check_guest_regs
from mediator_ref.events import El3Return, GuestReturn, PageKind
from mediator_ref.ledger import release, released_by_defects
from mediator_ref.state import Answer, Call, Pending, ShmRpc, State
from mediator_ref.verdict import Difference

_CMD, _FREE = int(abi.RpcFunc.CMD), int(abi.RpcFunc.FREE)
_RET, _ORIGIN, _SESSION = (abi.ARG_FIELDS[name] for name in ("ret", "ret_origin", "session"))


def returned(state: State, p: Pending, event: El3Return) -> None:
    """Decide what has to follow, and let go of what the call held."""
    call = p.call
    if call is None:
        p.answer = Answer("unknown", why_unknown=p.tainted or "the call was not seen to begin")
        return
    if call.rpc_list_pages:
        _fade(state, p, *call.rpc_list_pages)  # OP-TEE has read them by now
        call.rpc_list_pages.clear()
    if call.tainted and event.regs[0] & abi.U32 == abi.U32:
        call.lost, call.thread = True, event.regs[3] & abi.U32
        p.answer = Answer("unknown", why_unknown=call.tainted)
    elif abi.is_rpc(event.regs[0]):
        _suspended(state, p, event, call)
    else:
        _done(state, p, event, call)


def _kind_of(p: Pending, event: El3Return | GuestReturn, ipa: int) -> PageKind | None:
    """The type of a guest page, from the latest event that shows it."""
    for mem in (event.mem, p.base, p.event.mem):
        view = mem.get(ipa)
        if view is not None and view.kind is not None:
            return view.kind
    return None


# The end of a call


def _done(state: State, p: Pending, event: El3Return, call: Call) -> None:
    domain = p.domain
    domain.running.pop(p.event.vcpu, None)
    x0 = event.regs[0]
    after = event.shadow.get(call.ma) if call.ma is not None else None
    p.answer = answer = Answer("done", "STD-8", {0: x0}, call.arg_ipa)
    kind = _kind_of(p, event, call.arg_ipa) if call.arg_ipa is not None else None
    answer.writable = None if kind is None else kind is PageKind.RAM_RW
    if call.ma is not None:
        _fade(state, p, call.ma, *call.list_pages)
    if call.tainted:
        answer.kind, answer.why_unknown = "unknown", call.tainted
    if after is None:
        answer.why_unknown = answer.why_unknown or "the shadow argument was not observed when OP-TEE returned"
        if call.cookies or call.cmd in (None, abi.MsgCmd.REGISTER_SHM, abi.MsgCmd.UNREGISTER_SHM):
            domain.partial = domain.partial or answer.why_unknown
        for cookie in call.cookies:
            domain.buffers.pop(cookie, None)
        return
    params = params_of(after)
    answer.patches = _results(after, params)
    answer.size = abi.arg_size(len(params))
    ret = abi.U32_AT.unpack_from(after, _RET)[0]
    done = released_by_defects(after, params)
    if not done and not call.cookies:
        return
    success = x0 == abi.SmcReturn.OK and ret == abi.Tee.SUCCESS
    due = set(call.cookies)
    if call.cmd == abi.MsgCmd.REGISTER_SHM and success:
        due = set()
    elif call.cmd == abi.MsgCmd.UNREGISTER_SHM and success:
        due.add(params[0].c if params else 0)
    memory = call.cmd in (abi.MsgCmd.REGISTER_SHM, abi.MsgCmd.UNREGISTER_SHM)
    refused_by_x0 = memory and x0 != abi.SmcReturn.OK and ret == abi.Tee.SUCCESS
    deviation = "D12" if refused_by_x0 else "D2"
    release(domain, due, done if deviation in state.deviations else set(due), deviation)


def _results(after: bytes, params: list[abi.Param]) -> list[tuple[int, bytes]]:
    """What is written back of a shadow argument: ret, ret_origin, session, and by type the outputs."""
    patches = [(at, after[at : at + 4]) for at in (_RET, _ORIGIN, _SESSION)]
    for index, param in enumerate(params):
        kind = param.attr & abi.ATTR_TYPE_MASK
        at = abi.arg_size(index)
        if kind in abi.MEMREF_OUT_TYPES:
            patches.append((at + 16, after[at + 16 : at + 24]))
        elif kind in abi.VALUE_OUT_TYPES:
            patches.append((at + 8, after[at + 8 : at + 32]))
    return patches


def _fade(state: State, p: Pending, *pages: int) -> None:
    p.fading = p.fading.union(pages)
    state.drop_shadow(*pages)


# RPC


def _suspended(state: State, p: Pending, event: El3Return, call: Call) -> None:
    x0, x1, x2, x3 = event.regs[:4]
    call.thread = x3 & abi.U32
    call.rpc_op = x0 & 0xFFFF
    call.rpc_args = (x1, x2)
    call.rpc_cmd = None
    p.answer = answer = Answer("rpc", "RPC-1", {0: x0, 1: x1, 2: x2, 3: x3})
    if call.tainted:
        answer.kind, answer.why_unknown = "unknown", call.tainted
    if call.rpc_op == _CMD:
        _request(state, p, event, call, answer)
    elif call.rpc_op == _FREE:
        _page_freed(state, p, abi.pair(x1, x2), call)


def _page_freed(state: State, p: Pending, cookie: int, call: Call) -> None:
    """OP-TEE asks to free an RPC page. One it was never given is not the page of that cookie another call uses."""
    if call.turned_down == cookie:
        call.turned_down = None
        if cookie in p.domain.rpcs:
            p.domain.lost_rpcs.add(cookie)
        return
    rpc = p.domain.rpcs.pop(cookie, None)
    p.domain.lost_rpcs.discard(cookie)
    if rpc is not None:
        p.domain.returned_cookies.add(cookie)
        state.drop_shadow(rpc.ma)


def _request(state: State, p: Pending, event: El3Return, call: Call, answer: Answer) -> None:
    """OP-TEE asks the guest for something: the request stands in the shadow of the RPC page."""
    rpc = p.domain.rpcs.get(abi.pair(event.regs[1], event.regs[2]))
    if rpc is None:
        if p.domain.partial:
            answer.why_unknown = p.domain.partial
        elif answer.kind != "unknown":
            answer.kind = "restart"
        return
    kind = _kind_of(p, event, rpc.ipa)
    answer.ipa = rpc.ipa
    answer.writable = None if kind is None else kind in (PageKind.RAM_RW, PageKind.RAM_RO)
    if answer.writable is False and answer.kind != "unknown":
        answer.kind = "restart"
    rpc.shadow = event.shadow.get(rpc.ma) if rpc.ma is not None else None
    if rpc.shadow is None and rpc.cookie in p.domain.lost_rpcs:
        answer.why_unknown = "the RPC page was turned down for another call"
        return
    if rpc.shadow is None:
        answer.why_unknown = answer.why_unknown or "the RPC shadow was not observed when OP-TEE returned"
        p.domain.partial = p.domain.partial or answer.why_unknown
        return
    params = params_of(rpc.shadow)
    answer.size = abi.arg_size(len(params))
    answer.patches = [(0, rpc.shadow[: answer.size])]
    call.rpc_cmd = abi.U32_AT.unpack_from(rpc.shadow)[0]
    if call.rpc_cmd == abi.RpcCmd.SHM_ALLOC and params:
        call.rpc_type = params[0].a & abi.U32
    elif call.rpc_cmd == abi.RpcCmd.SHM_FREE and params:
        cookie = params[0].b
        buffer = p.domain.buffers.get(cookie)
        due = {cookie} if buffer is not None and buffer.rpc else set()
        release(p.domain, due, {cookie} if "D14" in state.deviations else set(due), "D14")
    _no_host_address(state, p, event, rpc, params)


def _no_host_address(state: State, p: Pending, event: El3Return, rpc: ShmRpc, params: list[abi.Param]) -> None:
    """ISO-1 on a request: it is passed on as it is, so it must not name a page of the hypervisor."""
    for index, q in enumerate(params):
        if q.attr & abi.ATTR_TYPE_MASK in abi.TMEM_TYPES and q.a & ~abi.OFFSET_MASK in state.shadow_pages:
            state.fail(
                "ISO-1",
                event,
                f"a request names a page of the hypervisor (RPC cookie {rpc.cookie:#x})",
                Difference(f"params[{index}].buf_ptr", "no host address", f"{q.a:#x}"),
                cause=p.event,
            )


# The guest continues


def answered(state: State, p: Pending, event: GuestReturn) -> None:
    """The guest got its answer to a call that was in OP-TEE."""
    answer, call = p.answer, p.call
    if call is not None and p.ret_regs and (abi.is_rpc(p.ret_regs[0]) or call.lost):
        p.domain.running.pop(p.event.vcpu, None)
        if call.thread is not None:
            p.domain.calls[call.thread] = call
    if answer is None or answer.kind == "unknown":
        state.unchecked(
            "STD-8" if answer is None else answer.rule or "STD-8",
            answer.why_unknown if answer is not None else "OP-TEE's answer was not observed",
            event,
        )
    elif answer.kind == "fast":
        check_guest_regs(state, p, event, answer.rule, answer.written)
    elif answer.kind == "done":
        _check_done(state, p, event, answer)
    elif answer.kind == "restart":
        state.fail("RPC-11", event, "the guest was given a request it cannot read", cause=p.event)
    else:
        check_guest_regs(state, p, event, "RPC-1", answer.written)
        _page_kept(state, p)
        if call is not None and call.rpc_op == _CMD:
            _check_page(state, p, event, answer, "RPC-3")


def _page_kept(state: State, p: Pending) -> None:
    """RPC-13: a request arrives on a page whose cookie another call was turned down with."""
    if not p.domain.lost_rpcs:
        return
    cookie = abi.pair(p.ret_regs[1], p.ret_regs[2])
    if p.call is not None and p.call.rpc_op == _CMD and cookie in p.domain.lost_rpcs:
        p.domain.lost_rpcs.discard(cookie)
        state.ok("RPC-13")
        state.absent("D13")


def _check_done(state: State, p: Pending, event: GuestReturn, answer: Answer) -> None:
    view = event.mem.get(answer.ipa) if answer.ipa is not None else None
    if answer.writable is None and view is not None and view.kind is not None:
        answer.writable = view.kind is PageKind.RAM_RW
    if p.undelivered:  # x1..x3 are not used when a call ends; they may be left from the request nobody got
        answer.written |= {i: event.regs[i] for i in (1, 2, 3) if event.regs[i] == p.undelivered[i]}
    if answer.writable is False:
        given, due = answer.written[0], abi.SmcReturn.EBADADDR
        overwritten = "D7" if event.regs[0] == given != due else None
        if (
            check_guest_regs(state, p, event, "STD-10", {**answer.written, 0: due}, deviation=overwritten)
            and given != due
        ):
            state.absent("D7")
        return
    check_guest_regs(state, p, event, "STD-8", answer.written)
    _check_page(state, p, event, answer, "STD-9")


def _check_page(state: State, p: Pending, event: GuestReturn, answer: Answer, rule: str) -> None:
    if answer.patches is None or answer.ipa is None:
        state.unchecked(rule, answer.why_unknown or "what OP-TEE left was not observed", event)
        return
    check_guest_page(state, p, event, rule, answer.ipa, answer.patches, answer.size)

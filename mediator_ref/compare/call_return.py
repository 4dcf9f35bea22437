# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE returned from a standard call, and the guest's answer (copy_std_request_back, handle_rpc_return,
do_call_with_arg)."""

from __future__ import annotations

from collections.abc import Sequence

from mediator_ref import abi
from mediator_ref.compare.checks import check_guest_page, check_guest_regs, check_other_regs, register_differences
from mediator_ref.compare.message import check_references, check_results
from mediator_ref.defect_model import release_in_defect_model, too_early_release
from mediator_ref.domain import ShmRpc, StdCall
from mediator_ref.events import El3Return, GuestReturn
from mediator_ref.knowledge import Pending, lose_history, release
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.call_return import (
    RPC_SHADOW_NOT_OBSERVED,
    copy_std_request_back_x0,
    do_call_with_arg,
    free_optee_shm_buf,
    free_shm_buffers,
    free_shm_rpc,
)
from mediator_ref.spec.guest_memory import is_writable
from mediator_ref.spec.outcome import Complete, Deliver, FastReturn, Foreign, Restart, Unknown
from mediator_ref.spec.std_call import params_of
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_CMD, _FREE = int(abi.RpcFunc.CMD), int(abi.RpcFunc.FREE)
_RET = abi.ARG_FIELDS["ret"]


def do_call_with_arg_returned(state: State, pending: Pending, event: El3Return) -> None:
    """Note what has to follow OP-TEE's answer, and let go of what the call held."""
    call = pending.call
    if call is None:
        pending.answer = Unknown(pending.tainted or "the call was not seen to begin")
        return
    if call.rpc_list_pages:
        _free_shadow(state, pending, *call.rpc_list_pages)  # OP-TEE has read them by now
        call.rpc_list_pages.clear()
    guest = (event.mem, pending.event.mem)
    answer = do_call_with_arg(pending.domain, call, event.regs, event.shadow, guest, state.limits)
    pending.answer = answer
    if isinstance(answer, Foreign):
        call.lost = pending.suspended = True
        call.thread = event.regs[3] & abi.U32
        if not call.tainted:  # whether the call has ended is not known
            call.tainted = "an answer of EL3 was none of OP-TEE's"
            lose_history(pending.domain, call.tainted)
        return
    check_references(state, pending, call, event)
    if isinstance(answer, Complete):
        _completed(state, pending, event, call, answer)
    else:
        _suspended(state, pending, event, call, answer)
    if call.tainted:
        pending.answer = _tainted(call, answer)


def _tainted(call: StdCall, answer: Complete | Deliver | Restart) -> Unknown:
    """The answer to a call that is not checked any more; an RPC page that is not known is the nearer reason."""
    if isinstance(answer, Complete):
        return Unknown(call.tainted, RuleId.STD_8)
    page = answer.page if isinstance(answer, Deliver) else None
    nearer = isinstance(page, Unknown) and page.reason != RPC_SHADOW_NOT_OBSERVED
    return Unknown(page.reason if isinstance(page, Unknown) and nearer else call.tainted, RuleId.RPC_1)


def _free_shadow(state: State, pending: Pending, *pages: int) -> None:
    pending.recently_freed = pending.recently_freed.union(pages)
    state.drop_shadow(*pages)


def _completed(state: State, pending: Pending, event: El3Return, call: StdCall, answer: Complete) -> None:
    """The call ended: its pages and buffers are released."""
    domain = pending.domain
    domain.running.pop(pending.event.vcpu, None)
    if call.ma is not None:
        _free_shadow(state, pending, call.ma, *call.list_pages)
    if isinstance(answer.page, Unknown):
        if call.cookies or call.cmd in (None, abi.MsgCmd.REGISTER_SHM, abi.MsgCmd.UNREGISTER_SHM):
            lose_history(domain, call.tainted or answer.page.reason)
        for cookie in call.cookies:
            domain.buffers.pop(cookie, None)
        return
    assert call.ma is not None
    after = event.shadow[call.ma]
    check_results(state, pending, event, call, after)
    with_defects = release_in_defect_model(after, answer.params)
    if not with_defects and not call.cookies:
        return
    ret = abi.U32_AT.unpack_from(after, _RET)[0]
    correct = free_shm_buffers(call, answer.x0, ret, answer.params)
    deviation = too_early_release(call, answer.x0, ret)
    release(domain, correct, with_defects if deviation in state.deviations else set(correct), deviation)
    domain.ended_cookies.update(cookie for cookie in call.cookies if cookie not in domain.buffers)


# RPC


def _suspended(state: State, pending: Pending, event: El3Return, call: StdCall, answer: Deliver | Restart) -> None:
    """The call is suspended for an RPC."""
    pending.suspended = True
    x0, x1, x2, x3 = event.regs[:4]
    call.thread = x3 & abi.U32
    call.rpc_op = x0 & 0xFFFF
    call.rpc_params = (x1, x2)
    call.rpc_cmd = None
    if call.rpc_op == _CMD:
        _requested(state, pending, event, call, answer)
    elif call.rpc_op == _FREE:
        _page_freed(state, pending, call, abi.pair(x1, x2))


def _page_freed(state: State, pending: Pending, call: StdCall, cookie: int) -> None:
    """OP-TEE asks to free an RPC page."""
    domain = pending.domain
    rpc = free_shm_rpc(domain, call, cookie)
    if call.rejected == cookie:
        call.rejected = None
        if cookie in domain.rpcs:
            domain.defects.released_rpcs.add(cookie)
        return
    domain.defects.released_rpcs.discard(cookie)
    if rpc is not None:
        del domain.rpcs[cookie]
        domain.returned_cookies.add(cookie)
        state.drop_shadow(rpc.ma)


def _requested(state: State, pending: Pending, event: El3Return, call: StdCall, answer: Deliver | Restart) -> None:
    """OP-TEE asks the guest for something: the request stands in the shadow of the RPC page."""
    domain = pending.domain
    rpc = domain.rpcs.get(abi.pair(event.regs[1], event.regs[2]))
    if rpc is None:
        return
    rpc.shadow = event.shadow.get(rpc.ma) if rpc.ma is not None else None
    if rpc.shadow is None:
        if rpc.cookie not in domain.defects.released_rpcs:
            lose_history(domain, call.tainted or RPC_SHADOW_NOT_OBSERVED)
        elif isinstance(answer, Deliver):
            answer.page = Unknown("the RPC page was turned down for another call")
        return
    params = answer.params if isinstance(answer, Deliver) else params_of(rpc.shadow)
    call.rpc_cmd = abi.U32_AT.unpack_from(rpc.shadow)[0]
    if call.rpc_cmd == abi.RpcCmd.SHM_ALLOC and params:
        call.rpc_buffer_type = params[0].a & abi.U32
    elif call.rpc_cmd == abi.RpcCmd.SHM_FREE and params:
        correct = free_optee_shm_buf(domain, params[0].b)
        with_defects = {params[0].b} if DeviationId.D14 in state.deviations else set(correct)
        release(domain, correct, with_defects, DeviationId.D14)
    _no_host_address(state, pending, event, rpc, params)


def _no_host_address(
    state: State, pending: Pending, event: El3Return, rpc: ShmRpc, params: Sequence[abi.Param]
) -> None:
    """ISO-1 on a request: it is passed on as it is, so it must not name a page of the hypervisor."""
    for index, q in enumerate(params):
        if q.attr & abi.ATTR_TYPE_MASK in abi.TMEM_TYPES and q.a & ~abi.OFFSET_MASK in state.shadow_pages:
            state.fail(
                RuleId.ISO_1,
                event,
                f"a request names a page of the hypervisor (RPC cookie {rpc.cookie:#x})",
                Difference(f"params[{index}].buf_ptr", "no host address", f"{q.a:#x}"),
                pending=pending,
            )


# The guest continues


def guest_answered(state: State, pending: Pending, event: GuestReturn) -> None:
    """The guest got its answer to a call that was in OP-TEE."""
    answer, call = pending.answer, pending.call
    if call is not None and pending.suspended and not pending.taken_over:
        pending.domain.running.pop(pending.event.vcpu, None)
        call.told = event.seq
        if call.thread is not None:
            pending.domain.calls[call.thread] = call
    if isinstance(answer, Deliver):
        check_guest_regs(state, pending, event, RuleId.RPC_1, answer.regs)
        _page_kept(state, pending)
        if answer.page is not None:
            check_guest_page(state, pending, event, RuleId.RPC_3, answer.page)
    elif isinstance(answer, Complete):
        _check_results(state, pending, event, answer)
    elif isinstance(answer, Foreign):
        _check_foreign(state, pending, event, answer)
    elif isinstance(answer, FastReturn):
        check_guest_regs(state, pending, event, answer.rule, answer.regs)
    elif isinstance(answer, Restart):
        state.fail(RuleId.RPC_11, event, "the guest was given a request it cannot read", pending=pending)
    else:
        # What the answer has to be is not known; what no answer may do still is. Hidden: a wrong x0..x3, wrong results.
        why = answer or Unknown("OP-TEE's answer was not observed")
        state.unchecked(why.rule, why.reason, event)
        check_other_regs(state, pending, event, 4)


def _check_foreign(state: State, pending: Pending, event: GuestReturn, answer: Foreign) -> None:
    """REGS-2: what EL3 left in other registers than x0 is none of the guest's business."""
    count = min(len(event.regs), len(pending.event.regs))
    due = (answer.x0, *pending.event.regs[1:count])
    wrong = register_differences(range(count), due, event.regs)
    if wrong:
        state.fail(RuleId.REGS_2, event, "an answer of EL3 that is none of OP-TEE's", *wrong, pending=pending)
    elif pending.returned[1:4] != pending.event.regs[1:4]:  # else it would not show
        state.ok(RuleId.REGS_2)
        state.deviation_not_seen(DeviationId.D17)


def _page_kept(state: State, pending: Pending) -> None:
    """RPC-13: a request arrives on a page whose cookie another call was rejected with."""
    released = pending.domain.defects.released_rpcs
    if not released:
        return
    cookie = abi.pair(pending.returned[1], pending.returned[2])
    if pending.call is not None and pending.call.rpc_op == _CMD and cookie in released:
        released.discard(cookie)
        state.ok(RuleId.RPC_13)
        state.deviation_not_seen(DeviationId.D13)


def _check_results(state: State, pending: Pending, event: GuestReturn, answer: Complete) -> None:
    """STD-8 to STD-10: the guest's registers and message after the end of a call."""
    writable = answer.writable
    if writable is None and pending.call is not None:
        writable = is_writable(pending.call.arg_ipa, (event.mem,))
    x0 = copy_std_request_back_x0(answer.x0, writable=writable is not False)
    rule = RuleId.STD_8 if writable is not False else RuleId.STD_10
    if check_guest_regs(state, pending, event, rule, (x0,), answer) and answer.x0 != x0:
        state.deviation_not_seen(DeviationId.D7)
    if writable is False:
        return
    check_guest_page(state, pending, event, RuleId.STD_9, answer.page)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest returns from an RPC (handle_rpc_func_alloc, handle_rpc, issue_rpc_cmd_free)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.compare.checks import (
    check_client_id,
    check_el3_regs,
    check_guest_page,
    check_guest_regs,
    check_other_regs,
    own_pages,
    page_differences,
)
from mediator_ref.compare.rpc_reply import check_reply
from mediator_ref.compare.translation import disputed, translation_with_defects
from mediator_ref.defect_model import DefectTranslation, rpc_page_released
from mediator_ref.domain import ShmRpc, StdCall
from mediator_ref.events import El3Call, GuestReturn
from mediator_ref.knowledge import FOLLOWS, Pending, lose_history, refuse, uncertain
from mediator_ref.rules import RuleId
from mediator_ref.spec.outcome import Expected, Forward, Offer, Reply, ReplyKind, Unknown
from mediator_ref.spec.rpc import issue_rpc_cmd_free, resume_regs
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_CMD, _ALLOC = int(abi.RpcFunc.CMD), int(abi.RpcFunc.ALLOC)


def take_over(state: State, pending: Pending) -> None:
    """Take note of a call that reached EL3 and that OP-TEE has suspended, though the vCPU it came from is not back in
    its guest yet: from ``put_std_call`` on any other may resume it, with a thread that it can guess."""
    domain = pending.domain
    if pending.thread in domain.calls:
        return
    for other in state.pending.values():
        call = other.call
        mine = other.domain is domain and other.suspended and not other.taken_over
        if mine and call is not None and call.thread == pending.thread:
            other.taken_over = True
            domain.running.pop(other.event.vcpu, None)
            domain.calls[pending.thread] = call
            return


def handle_rpc_forwarded(state: State, pending: Pending, event: El3Call, expected: Expected) -> None:
    """RETURN_FROM_RPC reached EL3."""
    domain, thread = pending.domain, pending.thread
    check_client_id(state, pending, event)
    call = domain.calls.pop(thread, None)
    if call is None:
        why = _may_be_suspended(state, pending)
        if why:
            # The call began before the trace did; from OP-TEE's next answer on it is known. Hidden is a mediator that
            # resumes what is not suspended, until the trace has seen each thread once.
            state.unchecked(RuleId.RPC_5, why, event)
            pending.call = domain.running[pending.event.vcpu] = StdCall(pending.event.seq, None, None)
            return
        reason = f"thread {thread} is not suspended, and the call reached OP-TEE"
        state.fail(RuleId.RPC_5, event, reason, pending=pending)
        pending.tainted = FOLLOWS
        return
    pending.call = domain.running[pending.event.vcpu] = call
    call.lost = False
    call.resumed = event.seq
    _check_others(state, pending, event, call)
    if call.tainted:
        state.unchecked(RuleId.RPC_6, call.tainted, event)
    elif call.rpc_op == _CMD:
        regs = expected.regs if isinstance(expected, Reply) else resume_regs(pending.event.regs)
        _check_resume_regs(state, pending, event, regs)
        _replied(state, pending, event, call, expected)
    elif call.rpc_op == _ALLOC:
        _offered(state, pending, event, call, expected)
    else:
        assert isinstance(expected, Forward)
        _check_resume_regs(state, pending, event, expected.regs)


def _others_resume(state: State, pending: Pending) -> list[Pending]:
    """Guest calls of other vCPUs that resume the same thread at the moment."""
    return [
        other
        for other in state.pending.values()
        if other.domain is pending.domain
        and other is not pending
        and other.event.regs[0] & abi.U32 == abi.RETURN_FROM_RPC
        and other.thread == pending.thread
    ]


def _may_be_suspended(state: State, pending: Pending) -> str:
    """Reason why a thread may be suspended although none of the domain's calls is known to be, or "".

    Another vCPU may hold the call, on its way to the guest: then it is this thread's, or was resumed by it. A thread
    that no call was seen with is no guess of the guest's that may come true.
    """
    domain = pending.domain
    if domain.history_unknown:
        return domain.history_unknown
    running = any(call.thread == pending.thread for call in domain.running.values())
    if running or _others_resume(state, pending):
        return "another vCPU of the domain was in the mediator at the same time"
    return ""


def _check_resume_regs(state: State, pending: Pending, event: El3Call, regs: tuple[int | None, ...]) -> bool:
    """RPC-6: the registers of a resumed call. Of x3, the thread, 32 bits count."""
    if event.regs[3] != regs[3] and event.regs[3] & abi.U32 == pending.thread:
        regs = (*regs[:3], event.regs[3], *regs[4:])
    return check_el3_regs(state, pending, event, RuleId.RPC_6, regs)


def _replied(state: State, pending: Pending, event: El3Call, call: StdCall, expected: Expected) -> None:
    """The guest answered a request; OP-TEE finds the answer in the shadow."""
    if isinstance(expected, Reply):
        check_reply(state, pending, event, call, expected)
        return
    assert isinstance(expected, Unknown)
    state.unchecked(RuleId.RPC_4, expected.reason, event)
    if abi.pair(*call.rpc_params) in pending.domain.rpcs:
        lose_history(pending.domain, expected.reason)


def _check_others(state: State, pending: Pending, event: El3Call, call: StdCall) -> None:
    """RPC-14: requests that other calls of the domain wait at are as OP-TEE left them.

    A call that another vCPU resumes at the moment waits no longer: its own reply may be there already.
    """
    own = abi.pair(*call.rpc_params)
    resumed = {
        one.thread
        for one in state.pending.values()
        if one.domain is pending.domain and one.event.regs[0] & abi.U32 == abi.RETURN_FROM_RPC
    }
    for thread, other in pending.domain.calls.items():
        if thread in resumed:
            continue
        cookie = abi.pair(*other.rpc_params)
        rpc = pending.domain.rpcs.get(cookie) if other.rpc_op == _CMD and cookie != own else None
        now = event.shadow.get(rpc.ma) if rpc is not None and rpc.ma is not None else None
        if rpc is None or rpc.shadow is None or now is None or other.xen_rpc:
            continue
        if now == rpc.shadow:
            state.ok(RuleId.RPC_14)
            continue
        found = [difference for _, difference in page_differences(rpc.shadow, now)]
        reason = f"the shadow of a request of another call (RPC cookie {cookie:#x})"
        state.fail(RuleId.RPC_14, event, reason, *found, pending=pending, shadow=now)
        rpc.shadow = now


# The guest offers an RPC page


def _offered(state: State, pending: Pending, event: El3Call, call: StdCall, expected: Expected) -> None:
    """RPC-2: the guest offers a page for requests, OP-TEE gets a shadow of it or nothing."""
    x = pending.event.regs
    ma, cookie = abi.pair(event.regs[1], event.regs[2]), abi.pair(x[4], x[5])
    call.rejected = None if ma else cookie
    if not _check_resume_regs(state, pending, event, resume_regs(x, *abi.split(ma), x[4], x[5])):
        call.tainted = FOLLOWS
    if isinstance(expected, Unknown):
        state.unchecked(RuleId.RPC_2, expected.reason, event)
    else:
        assert isinstance(expected, Offer)
        _check_offer(state, pending, event, expected, ma)
    if ma:
        _hold_rpc_page(state, pending, event, cookie, ma)


def _check_offer(state: State, pending: Pending, event: El3Call, offer: Offer, ma: int) -> None:
    """Compare the address OP-TEE gets for an offered page."""
    rule, why = offer.rule, uncertain(pending)
    if offer.reason and not ma:
        state.ok(rule)
    elif offer.reason:
        if offer.cookie_in_use and why:  # hidden: a cookie accepted twice, while another vCPU may give it back
            state.unchecked(rule, why, event)
            return
        difference = Difference("x1:x2", "0", f"{ma:#x}")
        reason = f"a shadow page although {offer.reason}"
        state.fail(rule, event, reason, difference, pending=pending, expected=offer)
    elif not ma and why:  # hidden: a good page turned down, where its cookie may be in use
        state.unchecked(rule, why, event)
    elif not ma:
        difference = Difference("x1:x2", "a shadow page", "0")
        state.fail(rule, event, "a good page was turned down", difference, pending=pending)
    elif ma & abi.OFFSET_MASK:
        difference = Difference("x1:x2", "a page", f"{ma:#x}")
        state.fail(rule, event, "not a shadow page", difference, pending=pending)
    elif ma >> 12 in {view.mfn for view in pending.event.mem.values()} or ma == offer.ipa:
        difference = Difference("x1:x2", "a page of the hypervisor", f"{ma:#x}")
        state.fail(rule, event, "the guest's own page instead of a shadow", difference, pending=pending)
    else:
        state.ok(rule)
        own_pages(state, pending, event, ma)


def _hold_rpc_page(state: State, pending: Pending, event: El3Call, cookie: int, ma: int) -> None:
    """OP-TEE has a shadow page for requests now."""
    domain, defects = pending.domain, pending.domain.defects
    domain.returned_cookies.discard(cookie)
    if cookie in defects.released_rpcs:
        defects.released_rpcs.discard(cookie)
        defects.duplicate_cookies.add(cookie)
    replaced = domain.rpcs.get(cookie)
    if replaced is not None:
        state.drop_shadow(replaced.ma)
    ipa = pending.arg_ipa
    view = pending.event.mem.get(ipa & ~abi.OFFSET_MASK)
    mfn = view.mfn if view is not None else None
    domain.rpcs[cookie] = ShmRpc(cookie, ipa, mfn, ma, event.shadow.get(ma))


# Answered without EL3


def handle_rpc_refused(state: State, pending: Pending, event: GuestReturn, expected: Expected) -> None:
    """RETURN_FROM_RPC was answered without EL3: there is nothing to resume, or the mediator asks to free a buffer."""
    domain, thread = pending.domain, pending.thread
    pending.call = call = domain.calls.get(thread)
    if call is None:
        why = _may_be_suspended(state, pending)
        if event.regs[0] != abi.SmcReturn.ERESUME and why:
            state.unchecked(RuleId.RPC_5, why, event)
            check_other_regs(state, pending, event, 4)
        else:
            check_guest_regs(state, pending, event, RuleId.RPC_5, (abi.SmcReturn.ERESUME,))
    elif call.tainted:
        state.unchecked(RuleId.RPC_6, call.tainted, event)
        check_other_regs(state, pending, event, 4)
    elif event.regs[0] & abi.U32 == abi.RPC_CMD_RETURN and call.rpc_op == _CMD:
        call.xen_rpc = True
        if isinstance(expected, Reply):
            _asked_to_free(state, pending, event, call, expected)
        else:
            assert isinstance(expected, Unknown)
            state.unchecked(RuleId.RPC_9, expected.reason, event)
    elif event.regs[:4] == pending.event.regs[:4] and call.rpc_op == _CMD:
        released = rpc_page_released(domain.defects, pending.arg_ipa)
        rule = RuleId.RPC_13 if released else RuleId.RPC_7
        difference = Difference("x0", "a call at EL3", f"{event.regs[0]:#x}")
        state.fail(rule, event, "the call was neither resumed nor refused", difference, pending=pending)
        check_other_regs(state, pending, event, 0)
        del domain.calls[thread]
        domain.defects.lost_calls += 1
        domain.defects.lost_with_their_page += released
    elif event.regs[0] == abi.SmcReturn.ERESUME and (
        max(call.resumed, call.told) > pending.event.seq or _others_resume(state, pending)
    ):
        # Right if the other was first, whether or not it is back by now, or if the call was not suspended yet; hidden
        # is a mediator that refuses both.
        state.unchecked(RuleId.RPC_6, "another vCPU resumed the call, or brought it back, at the same time", event)
        check_other_regs(state, pending, event, 1)
    else:
        difference = Difference("x0", "a call at EL3", f"{event.regs[0]:#x}")
        state.fail(RuleId.RPC_6, event, "a suspended call was not resumed", difference, pending=pending)


def _asked_to_free(state: State, pending: Pending, event: GuestReturn, call: StdCall, reply: Reply) -> None:
    """RPC-9: the mediator's own request, and that there is a reason for it."""
    with_defects = translation_with_defects(state, pending, reply)
    if reply.kind not in (ReplyKind.ASK_TO_FREE, ReplyKind.HIDE_ADDRESS):
        _asked_without_reason(state, pending, event, reply, with_defects)
    if reply.params:
        request = issue_rpc_cmd_free(call, reply.rpc, reply.params[0].c)
        check_guest_regs(state, pending, event, RuleId.RPC_9, request.regs)
        assert request.page is not None
        check_guest_page(state, pending, event, RuleId.RPC_9, request.page)
    if with_defects is not None and with_defects.refusal is not None:
        refuse(pending.domain, with_defects)


def _asked_without_reason(
    state: State, pending: Pending, event: GuestReturn, reply: Reply, with_defects: DefectTranslation | None
) -> None:
    """A correct mediator would have resumed OP-TEE."""
    if with_defects is not None and with_defects.refusal is not None:
        rule, refusal = disputed(pending, reply.translation, with_defects)
        reason = f"turned down: {with_defects.refusal.reason}, for a mediator that leaks"
        state.fail(rule, event, reason, pending=pending, expected=reply, refusal=refusal)
    elif uncertain(pending):
        state.unchecked(RuleId.MEM_1, uncertain(pending), event)
    elif reply.renamed:
        reason = "a reply to another request was taken for one to SHM_ALLOC"
        state.fail(RuleId.RPC_4, event, reason, pending=pending, expected=reply)
    else:
        state.fail(RuleId.MEM_1, event, "a buffer was turned down without a reason", pending=pending)

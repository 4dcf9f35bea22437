# SPDX-License-Identifier: GPL-2.0-or-later
"""The four events of a call: trap, EL3, OP-TEE's answer, the guest's answer (vsmc.c, tee.c, optee_handle_call)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.compare import books, call_return, fast_call, lifecycle, partition, rpc, std_call
from mediator_ref.compare.checks import check_client_id, check_guest_regs, register_differences
from mediator_ref.compare.effort import check_instructions
from mediator_ref.compare.guest_access import check_accesses
from mediator_ref.compare.outcomes import outcome_of_answer, outcome_of_call
from mediator_ref.events import El3Call, El3Return, GuestCall, GuestReturn
from mediator_ref.knowledge import FOLLOWS, Pending, Phase, lose_history
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.call_return import is_too_long
from mediator_ref.spec.dispatch import vsmccc_handle_call
from mediator_ref.spec.outcome import Deliver, Expected, FastReturn, NotObserved, PageWrite, Refuse, Restart, Unknown
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_RESUME, _STANDARD, _LOCAL = abi.Handling.RESUME, abi.Handling.STANDARD, abi.Handling.LOCAL
_HYPERVISOR, _OPTEE, _ANSWER = Phase.HYPERVISOR, Phase.OPTEE, Phase.ANSWER
_NOT_OFFERED = frozenset({RuleId.DISP_1, RuleId.DISP_2, RuleId.DISP_3, RuleId.DISP_4})
_DISP_5 = RuleId.DISP_5
_FUNCTIONS, _U32 = abi.FUNCTIONS, abi.U32


def guest_call(state: State, event: GuestCall) -> None:
    """A guest traps."""
    domain = state.domain(event.domid)
    key = (event.domid, event.vcpu)
    unanswered = state.pending.pop(key, None)
    if unanswered is not None:
        _unanswered(state, unanswered, event)
    fid = event.regs[0] & _U32
    pending = Pending(event, domain, _FUNCTIONS.get(fid), event.mem)
    if pending.function is None:
        pending.ignored = not (abi.owner_of(fid) in abi.TRUSTED_OWNERS or abi.is_ffa(fid) or event.imm)
    if domain.tee is None and not domain.history_unknown:
        domain.tee = False  # seen from its beginning, and OP-TEE was never told of it
    _enter(pending)
    books.called(state, pending, event)
    state.pending[key] = pending


def _unanswered(state: State, pending: Pending, event: GuestCall) -> None:
    """The vCPU calls again before its last call was answered: the answer was not observed."""
    if pending.phase is not _OPTEE:
        pending.domain.in_hypervisor -= 1
    if pending.ignored:
        return
    reason = "a call's answer was not observed"
    state.unchecked(_DISP_5, reason, event, unearned=True)
    pending.domain.running.pop(event.vcpu, None)
    lose_history(pending.domain, reason)


def _enter(pending: Pending) -> None:
    """The vCPU enters the mediator."""
    domain = pending.domain
    domain.activity += 1
    pending.activity = domain.activity
    pending.overlapped = domain.in_hypervisor > 0
    domain.in_hypervisor += 1


def _leave(pending: Pending) -> None:
    """The vCPU leaves the mediator: decisions since it entered may have raced with other vCPUs."""
    domain = pending.domain
    if domain.activity != pending.activity:
        pending.overlapped = True
    domain.activity += 1
    domain.in_hypervisor -= 1


def _expected(state: State, pending: Pending) -> Expected:
    """Ask the specification what has to follow the guest's call."""
    try:
        expected = vsmccc_handle_call(pending.domain, pending.event, state.limits, state.threads)
    except NotObserved as missing:
        return Unknown(missing.reason)
    state.tally.saw(outcome_of_call(expected))
    return expected


# The mediator enters EL3


def el3_call(state: State, event: El3Call) -> None:
    """The hypervisor calls OP-TEE."""
    fid = event.regs[0] & _U32
    ffa = abi.is_ffa(fid)
    if fid not in _FUNCTIONS and abi.owner_of(fid) not in abi.TRUSTED_OWNERS and fid >> 16 != 0xFFFF and not ffa:
        return
    pending = state.pending.get((event.domid, event.vcpu))
    if pending is None and ffa:
        return  # the hypervisor may look for another kind of TEE
    if pending is None:
        lifecycle.hypervisor_call(state, event)
        return
    phase = pending.phase
    if phase is _OPTEE:
        state.unchecked(_DISP_5, "OP-TEE's answer to the call before was not observed", event, unearned=True)
        pending.tainted = pending.tainted or "OP-TEE's answer was not observed"
        return
    if phase is _HYPERVISOR and pending.function is not None and pending.function.handling is _RESUME:
        rpc.take_over(state, pending)
    check_accesses(state, pending, event)
    check_instructions(state, pending, event)
    _leave(pending)
    books.handed_over(state, pending, event)
    pending.phase = _OPTEE
    if pending.ignored:
        state.fail(_DISP_5, event, "a call of another owner reached the trusted OS", pending=pending)
        return
    if phase is _ANSWER:
        _restarted(state, pending, event)
        return
    expected = _expected(state, pending)
    if isinstance(expected, Refuse) and expected.rule in _NOT_OFFERED:
        at_el3 = Difference("EL3", "no call", f"{event.regs[0]:#x}")
        state.fail(expected.rule, event, "the call reached EL3", at_el3, pending=pending)
        pending.tainted = FOLLOWS
        return
    state.ok(_DISP_5)
    if pending.domain.tee is None:
        pending.domain.tee = True
    assert pending.function is not None
    handling = pending.function.handling
    if handling is _RESUME:
        rpc.handle_rpc_forwarded(state, pending, event, expected)
    elif handling is _STANDARD:
        std_call.handle_std_call_forwarded(state, pending, event, expected)
    elif handling is _LOCAL:
        state.fail(RuleId.FAST_3, event, "the call reached EL3", pending=pending)
        pending.tainted = FOLLOWS
    else:
        fast_call.fast_call_forwarded(state, pending, event, expected)


def _restarted(state: State, pending: Pending, event: El3Call) -> None:
    """A second call to EL3 for one guest call: only when OP-TEE's request could not be handed to the guest."""
    answer, call = pending.answer, pending.call
    if isinstance(answer, FastReturn):
        state.fail(_DISP_5, event, "a second call to EL3 for one fast call", pending=pending)
        return
    if pending.tainted or answer is None or call is None or isinstance(answer, Unknown):
        # Hides a second call to EL3 in a call that has failed before, or whose beginning was not seen.
        state.unchecked(RuleId.RPC_11, pending.tainted or "what OP-TEE asked for is not known", event)
        return
    defects = pending.domain.defects
    cookie = abi.pair(pending.returned[1], pending.returned[2])
    gone = cookie in defects.duplicate_cookies or (isinstance(answer, Deliver) and cookie in defects.released_rpcs)
    if gone and call.rpc_op == abi.RpcFunc.CMD:
        state.fail(RuleId.RPC_13, event, f"the RPC page of cookie {cookie:#x} is gone", pending=pending)
        call.tainted = FOLLOWS
        return
    if not isinstance(answer, Restart) and not _may_be_undeliverable(answer):
        state.fail(_DISP_5, event, "a second call to EL3 for one guest call", pending=pending)
        call.tainted = FOLLOWS
        return
    check_client_id(state, pending, event)
    pending.undelivered = pending.returned
    _, x1, x2, x3 = pending.returned[:4]
    if event.regs[1:3] == (0, 0):  # not used when returning from a command: what OP-TEE gave, or nothing
        x1 = x2 = 0
    expected = (abi.RETURN_FROM_RPC, x1, x2, x3, 0, 0, 0)
    differences = register_differences(range(7), expected, event.regs)
    if not differences:
        state.ok(RuleId.RPC_11)
        state.deviation_not_seen(DeviationId.D6)
        rpc = pending.domain.rpcs.get(cookie)
        if rpc is not None and rpc.shadow is not None and is_too_long(rpc.shadow):
            state.deviation_not_seen(DeviationId.D20)
        return
    state.fail(RuleId.RPC_11, event, "OP-TEE was resumed wrongly", *differences, pending=pending)
    call.tainted = FOLLOWS


def _may_be_undeliverable(answer: object) -> bool:
    """Tell whether it was not observed if the page of a request can be written; only a command has one."""
    return isinstance(answer, Deliver) and answer.writable is None and isinstance(answer.page, PageWrite)


# OP-TEE answers


def el3_return(state: State, event: El3Return) -> None:
    """OP-TEE answers the hypervisor."""
    pending = state.pending.get((event.domid, event.vcpu))
    if pending is None:
        lifecycle.hypervisor_return(state, event)
        return
    if pending.phase is not _OPTEE:
        return
    pending.phase = _ANSWER
    pending.steps += 1
    _enter(pending)
    pending.base = event.mem
    pending.returned = event.regs
    pending.answer = None
    pending.suspended = pending.taken_over = False
    if pending.ignored:
        return
    if not (pending.tainted and pending.call is None):
        assert pending.function is not None
        if pending.function.handling is _RESUME or pending.function.handling is _STANDARD:
            call_return.do_call_with_arg_returned(state, pending, event)
        else:
            fast_call.fast_call_returned(state, pending, event)
        state.tally.saw(outcome_of_answer(pending.answer))
    partition.returned(state, pending, event)


# The guest continues


def guest_return(state: State, event: GuestReturn) -> None:
    """The guest has its answer."""
    pending = state.pending.pop((event.domid, event.vcpu), None)
    if pending is None:
        state.unchecked(_DISP_5, state.mid_stream or "an answer without a call", event)
        return
    if pending.phase is _OPTEE:
        reason = "OP-TEE's answer was not observed"
        state.unchecked(_DISP_5, reason, event, unearned=True)
        lose_history(pending.domain, reason)
        pending.domain.running.pop(event.vcpu, None)
        return
    check_accesses(state, pending, event)
    check_instructions(state, pending, event)
    _leave(pending)
    if pending.ignored:
        return
    if pending.phase is _HYPERVISOR:
        _not_forwarded(state, pending, event)
    elif pending.tainted and pending.call is None:
        state.unchecked(_DISP_5, pending.tainted, event)
    else:
        call_return.guest_answered(state, pending, event)
    books.answered(state, pending, event)
    partition.answered(state, pending, event)


def _not_forwarded(state: State, pending: Pending, event: GuestReturn) -> None:
    """The mediator answered without EL3."""
    expected = _expected(state, pending)
    if isinstance(expected, Refuse) and expected.rule is RuleId.DISP_1:
        if event.undef:
            state.ok(RuleId.DISP_1)
        else:
            exception = Difference("exception", "undefined", "none")
            state.fail(RuleId.DISP_1, event, expected.reason, exception, pending=pending)
    elif isinstance(expected, Refuse) and expected.rule in _NOT_OFFERED:
        check_guest_regs(state, pending, event, expected.rule, (expected.x0,))
    elif pending.domain.tee is None and event.regs[0] == abi.SMCCC_UNKNOWN_FUNCTION:
        # Hidden: a known function that is refused to a domain older than the trace, at its first call.
        state.unchecked(RuleId.DISP_4, "whether the domain has a mediator is not known", event)
    else:
        assert pending.function is not None
        handling = pending.function.handling
        if handling is _STANDARD:
            std_call.handle_std_call_refused(state, pending, event, expected)
        elif handling is _RESUME:
            rpc.handle_rpc_refused(state, pending, event, expected)
        elif isinstance(expected, Refuse):
            check_guest_regs(state, pending, event, expected.rule, (expected.x0,))
        else:
            state.fail(RuleId.FAST_2, event, "answered without asking OP-TEE", pending=pending)

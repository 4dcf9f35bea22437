"""The reference, one event at a time. Reads in the order of Xen's dispatch: vsmc.c, tee.c, ``optee_handle_call``."""

from __future__ import annotations

from collections.abc import Sequence

from mediator_ref import abi, calls, fast, lifecycle, optee, rpc
from mediator_ref.check import check_client_id
from mediator_ref.events import (
    DomainCreated,
    DomainDestroyed,
    El3Call,
    El3Return,
    End,
    Event,
    FrameReleased,
    Gap,
    GuestCall,
    GuestReturn,
    Start,
)
from mediator_ref.state import FOLLOWS, Domain, Pending, State
from mediator_ref.verdict import Difference, Verdict

_H = abi.Handling
_RESUME, _STANDARD, _NOT_OFFERED = _H.RESUME, _H.STANDARD, (_H.UNKNOWN, _H.HYPERVISOR)


def step(state: State, event: Event) -> tuple[State, Sequence[Verdict]]:
    """Take one event. Returns the state (the same object, changed) and every verdict that is not a pass.

    Passes are counted in ``state.tally``; checks that could not be made are handed out once per rule and reason and
    counted. Never raises on what a guest or OP-TEE put into registers and pages.
    """
    state.tally.events += 1
    kind = type(event)
    if kind is GuestCall:
        _guest_call(state, event)  # type: ignore[arg-type]
    elif kind is El3Call:
        _el3_call(state, event)  # type: ignore[arg-type]
    elif kind is El3Return:
        _el3_return(state, event)  # type: ignore[arg-type]
    elif kind is GuestReturn:
        _guest_return(state, event)  # type: ignore[arg-type]
    else:
        _other(state, event)
    if not state.out:
        return state, ()
    verdicts, state.out = state.out, []
    return state, verdicts


def _other(state: State, event: Event) -> None:
    if isinstance(event, DomainCreated):
        lifecycle.domain_created(state, event)
    elif isinstance(event, DomainDestroyed):
        lifecycle.domain_destroyed(state, event)
    elif isinstance(event, FrameReleased):
        lifecycle.frame_released(state, event)
    elif isinstance(event, Gap):
        lifecycle.gap(state)
    elif isinstance(event, End):
        lifecycle.end(state, event)
    elif isinstance(event, Start) and event.mid_stream:
        state.mid_stream = "started in the middle"


# The guest traps


def _guest_call(state: State, event: GuestCall) -> None:
    domain = state.domain(event.domid)
    key = (event.domid, event.vcpu)
    lost = state.pending.pop(key, None)
    if lost is not None:
        _lost(state, lost, event)
    fid = abi.fid_of(event.regs[0])
    p = Pending(event, domain, abi.FUNCTIONS.get(fid), event.mem)
    if p.function is None:
        p.ignored = abi.owner_of(fid) not in abi.TRUSTED_OWNERS and not event.imm
    if domain.tee is None and not domain.partial:
        domain.tee = False  # seen from its beginning, and OP-TEE was never told of it
    domain.activity += 1
    p.activity = domain.activity
    p.overlapped = domain.in_hypervisor > 0
    domain.in_hypervisor += 1
    state.pending[key] = p


def _lost(state: State, p: Pending, event: GuestCall) -> None:
    """The vCPU calls again before its last call was answered: the answer was not observed."""
    if p.phase != "optee":
        p.domain.in_hypervisor -= 1
    if p.ignored:
        return
    reason = "a call's answer was not observed"
    state.unchecked("DISP-5", reason, event)
    p.domain.running.pop(event.vcpu, None)
    p.domain.partial = p.domain.partial or reason


def _offered(domain: Domain, p: Pending) -> str:
    """The rule that keeps a call from reaching the mediator's functions, or nothing (vsmc.c, then tee.c)."""
    event = p.event
    if event.imm:
        return "DISP-1"
    if event.aarch32 and abi.is_smc64(abi.fid_of(event.regs[0])):
        return "DISP-3"
    if domain.tee is False:
        return "DISP-4"
    if p.function is None or p.function.handling in _NOT_OFFERED:
        return "DISP-2"
    return ""


# The mediator enters EL3


def _el3_call(state: State, event: El3Call) -> None:
    fid = event.regs[0] & abi.U32
    if fid not in abi.FUNCTIONS and abi.owner_of(fid) not in abi.TRUSTED_OWNERS and fid >> 16 != 0xFFFF:
        return
    p = state.pending.get((event.domid, event.vcpu))
    if p is None:
        lifecycle.hypervisor_call(state, event)
        return
    if p.phase == "optee":
        state.unchecked("DISP-5", "OP-TEE's answer to the call before was not observed", event)
        p.tainted = p.tainted or "OP-TEE's answer was not observed"
        return
    _leave(p)
    again = p.phase == "answer"
    p.phase = "optee"
    if p.ignored:
        state.fail("DISP-5", event, "a call of another owner reached the trusted OS", cause=p.event)
        return
    if again:
        _again(state, p, event)
        return
    rule = _offered(p.domain, p)
    if rule:
        state.fail(
            rule,
            event,
            "the call reached EL3",
            Difference("EL3", "no call", f"{event.regs[0]:#x}"),
            cause=p.event,
        )
        p.tainted = FOLLOWS
        return
    state.ok("DISP-5")
    if p.domain.tee is None:
        p.domain.tee = True
    assert p.function is not None
    handling = p.function.handling
    if handling is _RESUME:
        rpc.resumed(state, p, event)
    elif handling is _STANDARD:
        calls.forwarded(state, p, event)
    elif handling is _H.LOCAL:
        state.fail("FAST-3", event, "the call reached EL3", cause=p.event)
        p.tainted = FOLLOWS
    else:
        fast.forwarded(state, p, event)


def _again(state: State, p: Pending, event: El3Call) -> None:
    """A second call to EL3 for one guest call: only when OP-TEE's request could not be handed to the guest."""
    answer, call = p.answer, p.call
    if p.tainted or answer is None or call is None or answer.kind == "unknown":
        state.unchecked("RPC-11", p.tainted or "what OP-TEE asked for is not known", event)
        return
    cookie = abi.pair(p.ret_regs[1], p.ret_regs[2])
    gone = cookie in p.domain.doubled_rpcs or (answer.kind == "rpc" and cookie in p.domain.lost_rpcs)
    if gone and call.rpc_op == abi.RpcFunc.CMD:
        state.fail("RPC-13", event, f"the RPC page of cookie {cookie:#x} is gone", deviation="D13", cause=p.event)
        call.tainted = FOLLOWS
        return
    if answer.kind != "restart" and (answer.kind != "rpc" or answer.writable is not None or answer.why_unknown):
        state.fail("DISP-5", event, "a second call to EL3 for one guest call", cause=p.event)
        call.tainted = FOLLOWS
        return
    check_client_id(state, p, event)
    p.undelivered = p.ret_regs
    due = (abi.RETURN_FROM_RPC, p.ret_regs[3])
    if (event.regs[0], event.regs[3]) == due:
        state.ok("RPC-11")
        state.absent("D6")
        return
    state.fail(
        "RPC-11",
        event,
        "OP-TEE was resumed wrongly",
        Difference("x0", f"{due[0]:#x}", f"{event.regs[0]:#x}"),
        Difference("x3", f"{due[1]:#x}", f"{event.regs[3]:#x}"),
        deviation="D6" if event.regs[0] == p.ret_regs[0] else None,
        cause=p.event,
    )
    call.tainted = FOLLOWS


def _leave(p: Pending) -> None:
    """The vCPU leaves the mediator: decisions since it entered may have raced with other vCPUs."""
    domain = p.domain
    if domain.activity != p.activity:
        p.overlapped = True
    domain.activity += 1
    domain.in_hypervisor -= 1


# OP-TEE answers


def _el3_return(state: State, event: El3Return) -> None:
    p = state.pending.get((event.domid, event.vcpu))
    if p is None:
        lifecycle.hypervisor_return(state, event)
        return
    if p.phase != "optee":
        return
    p.phase = "answer"
    p.domain.activity += 1
    p.activity = p.domain.activity
    p.overlapped = p.domain.in_hypervisor > 0
    p.domain.in_hypervisor += 1
    p.base = event.mem
    p.ret_regs = event.regs
    p.answer = None
    if p.ignored or (p.tainted and p.call is None):
        return
    assert p.function is not None
    if p.function.handling is _RESUME or p.function.handling is _STANDARD:
        optee.returned(state, p, event)
    else:
        fast.returned(state, p, event)


# The guest continues


def _guest_return(state: State, event: GuestReturn) -> None:
    p = state.pending.pop((event.domid, event.vcpu), None)
    if p is None:
        state.unchecked("DISP-5", state.mid_stream or "an answer without a call", event)
        return
    if p.phase == "optee":
        state.unchecked("DISP-5", "OP-TEE's answer was not observed", event)
        p.domain.partial = p.domain.partial or "OP-TEE's answer was not observed"
        p.domain.running.pop(event.vcpu, None)
        return
    _leave(p)
    if p.ignored:
        return
    if p.phase == "answer":
        if p.tainted and p.call is None:
            state.unchecked("DISP-5", p.tainted, event)
        else:
            optee.answered(state, p, event)
        return
    _local(state, p, event)


def _local(state: State, p: Pending, event: GuestReturn) -> None:
    """The mediator answered without EL3."""
    rule = _offered(p.domain, p)
    if rule == "DISP-1":
        if event.undef:
            state.ok("DISP-1")
        else:
            state.fail(
                "DISP-1",
                event,
                f"immediate {p.event.imm:#x}",
                Difference("exception", "undefined", "none"),
                cause=p.event,
            )
    elif rule:
        fast.refused(state, p, event, rule)
    elif p.domain.tee is None and event.regs[0] == abi.SMCCC_UNKNOWN_FUNCTION:
        state.unchecked("DISP-4", "whether the domain has a mediator is not known", event)
    else:
        assert p.function is not None
        handling = p.function.handling
        if handling is _H.STANDARD:
            calls.refused(state, p, event)
        elif handling is _H.RESUME:
            rpc.refused(state, p, event)
        else:
            fast.local(state, p, event)

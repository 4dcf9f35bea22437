"""Fast calls: answered by the mediator, forwarded, or with filtered capabilities (Xen ``optee_handle_call``)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.check import check_client_id, check_el3_regs, check_guest_regs
from mediator_ref.events import El3Call, El3Return, GuestReturn
from mediator_ref.state import Answer, Pending, State
from mediator_ref.verdict import Difference


def forwarded(state: State, p: Pending, event: El3Call) -> None:
    """A forwarded or filtered call reaches EL3."""
    row = p.function
    assert row is not None
    check_client_id(state, p, event)
    if row.handling is abi.Handling.FILTER:
        due = p.event.regs[1] & abi.NSEC_CAPS_FORWARDED
        if event.regs[1] == due:
            state.ok("CAPS-1")
        else:
            state.fail(
                "CAPS-1",
                event,
                "capabilities of the guest at EL3",
                Difference("x1", f"{due:#x}", f"{event.regs[1]:#x}"),
                cause=p.event,
            )
        check_el3_regs(state, p, event, "FAST-1", (row.fid, event.regs[1], 0, 0, 0, 0, 0))
    else:
        check_el3_regs(state, p, event, "FAST-1", (row.fid, 0, 0, 0, 0, 0, 0))


def returned(state: State, p: Pending, event: El3Return) -> None:
    """OP-TEE answered a fast call: what the guest has to find follows from it."""
    row = p.function
    assert row is not None
    x0 = event.regs[0]
    if row.handling is abi.Handling.FILTER:
        p.answer = Answer("fast", "CAPS-2", offered_capabilities(event.regs))
        return
    registers = row.writes if x0 == abi.SmcReturn.OK else row.always
    p.answer = Answer("fast", "FAST-2", {i: event.regs[i] for i in registers})
    if row.fid == abi.DISABLE_SHM_CACHE and x0 == abi.SmcReturn.OK:
        cookie = abi.pair(event.regs[1], event.regs[2])
        rpc = p.domain.rpcs.pop(cookie, None)
        if rpc is not None:
            p.domain.returned_cookies.add(cookie)
            state.drop_shadow(rpc.ma)


def offered_capabilities(regs: tuple[int, ...]) -> dict[int, int]:
    """Registers a guest finds after EXCHANGE_CAPABILITIES, from what OP-TEE answered."""
    if regs[0] != abi.SmcReturn.OK:
        return {0: regs[0]}
    caps = regs[1] & abi.SEC_CAPS_OFFERED
    if not caps & abi.SEC_CAP_DYNAMIC_SHM:
        return {0: abi.SmcReturn.ENOTAVAIL}
    return {0: abi.SmcReturn.OK, 1: caps}


def local(state: State, p: Pending, event: GuestReturn) -> None:
    """The mediator answered without EL3."""
    row = p.function
    assert row is not None
    if row.local_x0 is not None:
        check_guest_regs(state, p, event, "FAST-3", {0: row.local_x0})
    else:
        state.fail("FAST-2", event, "answered without asking OP-TEE", cause=p.event)


def refused(state: State, p: Pending, event: GuestReturn, rule: str) -> None:
    """A function nobody offers."""
    check_guest_regs(state, p, event, rule, {0: abi.SMCCC_UNKNOWN_FUNCTION})

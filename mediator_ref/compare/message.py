# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters of a message, from hand-over to OP-TEE's answer: attributes, references, and what OP-TEE may change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mediator_ref import abi
from mediator_ref.compare.checks import page_differences, patched
from mediator_ref.domain import Domain, StdCall
from mediator_ref.events import El3Call, El3Return
from mediator_ref.knowledge import Pending, uncertain
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.call_return import results
from mediator_ref.spec.outcome import Request
from mediator_ref.spec.std_call import params_of
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_REFERRING = frozenset({int(abi.MsgCmd.OPEN_SESSION), int(abi.MsgCmd.INVOKE_COMMAND), int(abi.MsgCmd.UNREGISTER_SHM)})
_FOREIGN_INTR = abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR
_MESSAGES = 0
"""Cookie under which OP-TEE has the pages of messages (``std_smc_entry`` in core/arch/arm/kernel/thread_optee_smc.c):
those that the mediator made."""


def _attr(page: bytes, index: int) -> int:
    """Attributes of a parameter."""
    at = abi.arg_size(index)
    return int.from_bytes(page[at : at + 8], "little")


def has_undefined_bits(params: Sequence[abi.Param]) -> bool:
    """Tell whether a parameter has attribute bits that the ABI does not define."""
    return any(param.attr & abi.ATTR_UNDEFINED for param in params)


def without_undefined_bits(due: bytes, shadow: bytes) -> bytes:
    """``due`` with undefined attribute bits cleared where the shadow has them cleared; STD-12 says whether it must."""
    for index, param in enumerate(params_of(due)):
        if param.attr & abi.ATTR_UNDEFINED and not _attr(shadow, index) & abi.ATTR_UNDEFINED:
            cleared = (param.attr & ~abi.ATTR_UNDEFINED).to_bytes(8, "little")
            due = patched(due, [(abi.arg_size(index), cleared)])
    return due


def check_attributes(state: State, pending: Pending, event: El3Call, request: Request, shadow: bytes) -> None:
    """STD-12: attribute bits of a message that reached OP-TEE."""
    if not has_undefined_bits(request.params):
        return
    found = [(param.attr, _attr(shadow, index)) for index, param in enumerate(request.params)]
    differences = [
        Difference(f"params[{index}].attr", f"{given & ~abi.ATTR_UNDEFINED:#x}", f"{actual:#x}")
        for index, (given, actual) in enumerate(found)
        if actual & abi.ATTR_UNDEFINED
    ]
    if differences:
        reason = "undefined attribute bits reached OP-TEE"
        state.fail(RuleId.STD_12, event, reason, *differences[:4], pending=pending)
    else:
        state.ok(RuleId.STD_12)
        state.deviation_not_seen(DeviationId.D16)


def references(request: Request) -> tuple[int, ...]:
    """Cookies that a message names by reference, for the commands that read them."""
    if request.cmd not in _REFERRING:
        return ()
    return tuple(param.c for param in request.params if param.type in abi.RMEM_TYPES)


def not_to_be_named(domain: Domain, call: StdCall | None, cookies: Iterable[int]) -> set[int]:
    """Those of ``cookies`` that ``call`` must not name: memory that is not shared, or that another call brought."""
    others = [other for other in (*domain.calls.values(), *domain.running.values()) if other is not call]
    temporary = {cookie for other in others for cookie in other.cookies}
    return {cookie for cookie in cookies if cookie not in domain.buffers or cookie in temporary}


def check_references(state: State, pending: Pending, call: StdCall, event: El3Return) -> None:
    """MEM-11: OP-TEE's answer shows whether it accepted the memory that a message names by reference.

    It did when the call goes on with a request, or succeeded. An interrupt may come before it has read its arguments;
    UNREGISTER_SHM has done nothing before it ends.
    """
    x0 = event.regs[0]
    suspended = abi.is_rpc(x0)
    if not call.references or x0 == _FOREIGN_INTR or (suspended and call.cmd == abi.MsgCmd.UNREGISTER_SHM):
        return
    cookies, call.references = call.references, ()
    if not suspended:
        after = event.shadow.get(call.ma) if call.ma is not None else None
        if x0 != abi.SmcReturn.OK or after is None or abi.U32_AT.unpack_from(after, abi.ARG_FIELDS["ret"])[0]:
            return
    domain = pending.domain
    wrong = not_to_be_named(domain, call, cookies)
    for cookie in cookies:
        if cookie not in wrong:
            state.ok(RuleId.MEM_11)
        elif cookie not in domain.buffers and uncertain(pending):
            state.unchecked(RuleId.MEM_11, uncertain(pending), event)
        else:
            if cookie in domain.buffers:
                what = "buffer of another call"
            elif cookie == _MESSAGES:
                what, call.named_messages = "messages", True
            else:
                what = "buffer of an ended call" if cookie in domain.ended_cookies else "shm_ref"
            difference = Difference(what, "memory that the guest registered or gave for a request", f"{cookie:#x}")
            state.fail(RuleId.MEM_11, event, "OP-TEE accepted a reference", difference, pending=pending)


def check_results(state: State, pending: Pending, event: El3Return, call: StdCall, after: bytes) -> None:
    """STD-11: nothing but results changed between hand-over and completion, by OP-TEE or by the mediator."""
    before = call.xen_arg
    if before is None:
        state.unchecked(RuleId.STD_11, "the shadow argument was not observed when it was handed over", event)
        return
    if before == after:
        state.ok(RuleId.STD_11)
        return
    due = patched(before, [(at, after[at : at + size]) for at, size in results(before)])
    if due == after:
        state.ok(RuleId.STD_11)
        return
    found = [difference for _, difference in page_differences(due, after)]
    state.fail(RuleId.STD_11, event, "the shadow argument when OP-TEE was done with it", *found, pending=pending)

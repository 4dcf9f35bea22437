# SPDX-License-Identifier: GPL-2.0-or-later
"""The shadow of a guest's reply that OP-TEE is resumed with (handle_xen_rpc_return, handle_rpc_cmd_alloc,
handle_rpc_cmd)."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.compare.checks import page_differences, patched
from mediator_ref.compare.std_call import STATEFUL
from mediator_ref.compare.translation import check_translated, translation_with_defects
from mediator_ref.deviations.d11 import misleads
from mediator_ref.deviations.deviation import replies_from_another_page
from mediator_ref.domain import Buffer, StdCall
from mediator_ref.events import PAGE_SIZE, El3Call
from mediator_ref.knowledge import Pending, accept, uncertain
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.outcome import Reply, ReplyKind
from mediator_ref.spec.rpc import handle_rpc_cmd_error, handle_xen_rpc_return
from mediator_ref.spec.translate import page_count, walk_list
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_RET, _NUM_PARAMS = abi.ARG_FIELDS["ret"], abi.ARG_FIELDS["num_params"]
_POINTER = abi.HEADER_SIZE + 8


def check_reply(state: State, pending: Pending, event: El3Call, call: StdCall, reply: Reply) -> None:
    """Compare the RPC shadow OP-TEE is resumed with."""
    rpc, kind = reply.rpc, reply.kind
    shadow = event.shadow.get(rpc.ma) if rpc.ma is not None else None
    if shadow is None:
        state.unchecked(RuleId.RPC_4, "the RPC shadow was not observed", event)
        return
    if kind is ReplyKind.COPY:
        _copied(state, pending, event, call, reply, shadow)
    elif kind is ReplyKind.XEN_RPC_DONE:
        _fields(state, pending, event, RuleId.RPC_10, reply, shadow, handle_xen_rpc_return())
    elif kind is ReplyKind.GENERIC_ERROR:
        _fields(state, pending, event, RuleId.RPC_12, reply, shadow, handle_rpc_cmd_error())
    elif kind is ReplyKind.HIDE_ADDRESS:
        _address_hidden(state, pending, event, reply, shadow)
    else:
        _should_have_asked(state, pending, event, reply, shadow)
    unreadable = kind is ReplyKind.GENERIC_ERROR
    call.stale_xen_rpc = unreadable and (call.xen_rpc or call.stale_xen_rpc)
    call.xen_rpc = False
    rpc.shadow = shadow


def _pointer(shadow: bytes) -> int:
    """Address in the first parameter."""
    return int.from_bytes(shadow[_POINTER : _POINTER + 8], "little")


def _u32(page: bytes, offset: int = 0) -> int:
    return int(abi.U32_AT.unpack_from(page, offset)[0])


def _fields(
    state: State,
    pending: Pending,
    event: El3Call,
    rule: RuleId,
    reply: Reply,
    shadow: bytes,
    fields: list[tuple[str, int, int]],
) -> None:
    """Compare some fields of the shadow (name, offset, value), and that nothing behind the message was written."""
    wrong = [
        Difference(name, f"{expected:#x}", f"{actual:#x}")
        for name, at, expected in fields
        if (actual := _u32(shadow, at)) != expected
    ]
    before, end = reply.rpc.shadow, max(reply.size, abi.arg_size(1))
    if not wrong and before is not None and shadow[end:] != before[end:]:
        due = shadow[:end] + before[end:]
        wrong = [difference for _, difference in page_differences(due, shadow)]
    if wrong:
        state.fail(rule, event, "the RPC shadow", *wrong, pending=pending, expected=reply, shadow=shadow)
    else:
        state.ok(rule)


def _address_reached_optee(
    state: State, pending: Pending, event: El3Call, reply: Reply, shadow: bytes, expected: str
) -> None:
    """RPC-8: OP-TEE was given an address that is no page list of the mediator's."""
    difference = Difference("params[0].buf_ptr", expected, f"{_pointer(shadow):#x}")
    reason = "an address of the guest's choice reached OP-TEE"
    deviation = state.fail(RuleId.RPC_8, event, reason, difference, pending=pending, expected=reply, shadow=shadow)
    if deviation is not None:
        pending.domain.defects.passed_on[reply.params[0].c, _pointer(shadow) // PAGE_SIZE] = deviation


def _address_hidden(state: State, pending: Pending, event: El3Call, reply: Reply, shadow: bytes) -> None:
    """RPC-8: OP-TEE must not be given an address the guest chose, nor one made of it."""
    if _u32(shadow, _RET) or _u32(shadow, _NUM_PARAMS) != 1 or not _pointer(shadow):
        state.ok(RuleId.RPC_8)
        state.deviation_not_seen(DeviationId.D1)
        return
    _address_reached_optee(state, pending, event, reply, shadow, "nothing usable")


def _should_have_asked(state: State, pending: Pending, event: El3Call, reply: Reply, shadow: bytes) -> None:
    """RPC-9: the buffer cannot be shared, and OP-TEE was resumed nevertheless."""
    translation = reply.translation
    assert translation is not None
    assert translation.refusal is not None
    if _u32(shadow, _RET):
        reason = "OP-TEE was told, and the guest was not asked to free its buffer"
        state.fail(RuleId.RPC_9, event, reason, pending=pending, expected=reply, shadow=shadow)
        return
    if reply.renamed and _pointer(shadow) == reply.params[0].a:
        _address_reached_optee(state, pending, event, reply, shadow, "a shadow page list")
        return
    rule, with_defects = translation.refusal.rule, translation_with_defects(state, pending, reply)
    why = uncertain(pending) if rule in STATEFUL else ""
    if why:
        state.unchecked(rule, why, event)
        return
    accepted_by_defects = with_defects is not None and with_defects.refusal is None
    refusal = translation.refusal if accepted_by_defects else None
    reason = f"{translation.refusal.reason}, and the buffer reached OP-TEE"
    state.fail(rule, event, reason, pending=pending, expected=reply, refusal=refusal, shadow=shadow)
    accept(pending, translation, with_defects, temporary=False)


def _copied(state: State, pending: Pending, event: El3Call, call: StdCall, reply: Reply, shadow: bytes) -> None:
    """RPC-4: the reply as the guest gave it, with only a buffer's address replaced (RPC-8)."""
    before = reply.rpc.shadow if reply.rpc.shadow is not None else shadow
    due = reply.page[: reply.size] + before[reply.size :]
    translated = reply.translation is not None and bool(reply.translation.buffers)
    if translated:
        due = patched(due, [(_POINTER, shadow[_POINTER : _POINTER + 8])])
    if reply.renamed and shadow[:4] != due[:4] and _u32(shadow) == call.rpc_cmd:
        due = patched(due, [(0, shadow[:4])])  # a mediator may put the request's own command back
    if due != shadow:
        _copied_wrongly(state, pending, event, call, reply, due, shadow)
        return
    state.ok(RuleId.RPC_4)
    if call.stale_xen_rpc:
        state.deviation_not_seen(DeviationId.D15)
    if replies_from_another_page(pending):
        state.ok(RuleId.RPC_7)
        state.deviation_not_seen(DeviationId.D4)
    if translated and _pointer(shadow) == reply.params[0].a:
        _address_reached_optee(state, pending, event, reply, shadow, "a shadow page list")
        return
    if translated:
        state.ok(RuleId.RPC_8)
    if reply.renamed and misleads(reply, call.rpc_cmd):
        state.deviation_not_seen(DeviationId.D11)
    if translated and reply.translation is not None:
        guest_pointer, buffer = reply.params[0].a, reply.translation.buffers[0]
        list_pages = call.rpc_list_pages
        with_defects = translation_with_defects(state, pending, reply)
        check_translated(state, pending, event, "params[0]", guest_pointer, _pointer(shadow), buffer, list_pages)
        accept(pending, reply.translation, with_defects, temporary=False)


def _copied_wrongly(
    state: State, pending: Pending, event: El3Call, call: StdCall, reply: Reply, expected: bytes, actual: bytes
) -> None:
    found = [difference for _, difference in page_differences(expected, actual)]
    reason = "the RPC shadow"
    deviation = state.fail(RuleId.RPC_4, event, reason, *found, pending=pending, expected=reply, shadow=actual)
    if deviation is DeviationId.D11:  # such a mediator now holds a buffer that was not shared, and names its frames
        param, domain = reply.params[0], pending.domain
        walk = walk_list(param.a, page_count(param.b, param.a), pending.event.mem)
        buffer = None if walk.unknown else Buffer(param.c, walk.mfns)
        list_pages = call.rpc_list_pages
        check_translated(state, pending, event, "params[0]", param.a, _pointer(actual), buffer, list_pages)
        domain.defects.accounting_for(domain).held[param.c] = page_count(param.b, param.a)
        domain.defects.deviation_by_cookie[param.c] = DeviationId.D11

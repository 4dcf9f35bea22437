# SPDX-License-Identifier: GPL-2.0-or-later
"""CALL_WITH_ARG up to OP-TEE (copy_std_request, translate_params, handle_std_call)."""

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
    patched,
)
from mediator_ref.compare.message import (
    check_attributes,
    has_undefined_bits,
    not_to_be_named,
    references,
    without_undefined_bits,
)
from mediator_ref.compare.translation import (
    check_translated,
    disputed,
    explanations,
    translation_with_defects,
)
from mediator_ref.defect_model import DefectTranslation, no_thread_left
from mediator_ref.domain import StdCall
from mediator_ref.events import El3Call, GuestReturn, PageKind
from mediator_ref.knowledge import Pending, Phase, accept, lose_history, refuse, uncertain
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.outcome import Expected, Forward, PageWrite, Refuse, Request, Translation, Unknown
from mediator_ref.spec.std_call import CALL_WITH_ARG_REGS, params_of
from mediator_ref.state import State
from mediator_ref.verdict import Difference

_RET, _ORIGIN = abi.ARG_FIELDS["ret"], abi.ARG_FIELDS["ret_origin"]
_OK, _ETHREAD_LIMIT = int(abi.SmcReturn.OK), int(abi.SmcReturn.ETHREAD_LIMIT)

STATEFUL = frozenset({RuleId.STD_1, RuleId.MEM_6, RuleId.MEM_7, RuleId.MEM_8})
"""Rules whose outcome depends on what else the domain is doing."""


def _refused(translation: Translation | None) -> bool:
    return translation is not None and translation.refusal is not None


# The call reached OP-TEE


def handle_std_call_forwarded(state: State, pending: Pending, event: El3Call, expected: Expected) -> None:
    """CALL_WITH_ARG reached EL3."""
    domain = pending.domain
    with_defects = translation_with_defects(state, pending, expected)
    check_client_id(state, pending, event)
    ma = abi.pair(event.regs[1], event.regs[2])
    regs = (CALL_WITH_ARG_REGS[0], *abi.split(ma), *CALL_WITH_ARG_REGS[3:])
    if check_el3_regs(state, pending, event, RuleId.STD_5, regs) and (ma & abi.OFFSET_MASK or not ma):
        address = Difference("x1:x2", "the address of a page", f"{ma:#x}")
        state.fail(RuleId.STD_5, event, "the shadow argument is not a page", address, pending=pending)
    call = StdCall(pending.event.seq, pending.arg_ipa, ma, xen_arg=event.shadow.get(ma))
    argument = pending.event.mem.get(pending.arg_ipa)
    call.arg_mfn = argument.mfn if argument is not None else None
    pending.call = domain.running[pending.event.vcpu] = call
    if isinstance(expected, Unknown):
        view = pending.event.mem.get(pending.arg_ipa)
        call.cmd = abi.U32_AT.unpack_from(view.data)[0] if view is not None and view.data is not None else None
        state.unchecked(RuleId.STD_6, expected.reason, event)
        lose_history(domain, expected.reason)
        return
    assert isinstance(expected, Forward | Refuse)
    if expected.request is not None:
        call.cmd, call.references = expected.request.cmd, references(expected.request)
    own_pages(state, pending, event, ma)
    if isinstance(expected, Refuse):
        _forwarded_but_should_have_been_refused(state, pending, event, expected, with_defects)
        accepted = with_defects if with_defects is not None and with_defects.refusal is None else None
        if accepted is not None and expected.request is not None:  # a deviation makes the rest no less right
            _shadow_argument(state, pending, event, expected.request, accepted, event.shadow.get(ma))
    else:
        assert expected.request is not None
        _shadow_argument(state, pending, event, expected.request, expected.translation, event.shadow.get(ma))
        if expected.translation is not None and expected.translation.pages:
            state.ok(RuleId.MEM_1)
        if with_defects is not None and with_defects.refusal is not None:
            for deviation in explanations(pending, with_defects.refusal):
                state.deviation_not_seen(deviation)
    accept(pending, expected.translation, with_defects)


def _forwarded_but_should_have_been_refused(
    state: State, pending: Pending, event: El3Call, expected: Refuse, with_defects: DefectTranslation | None
) -> None:
    """A call reached OP-TEE that should have been refused."""
    why = uncertain(pending) if expected.rule in STATEFUL else ""
    if expected.rule is RuleId.STD_1 and state.threads is not None and _certain_calls(state, pending) >= state.threads:
        why = ""
    if why:  # hidden: a limit that is passed by as much as the domain's other vCPUs, or its past, may have changed
        state.unchecked(expected.rule, why, event)
        return
    refusal = None
    if with_defects is not None and with_defects.refusal is None and expected.translation is not None:
        refusal = expected.translation.refusal
    reason = f"{expected.reason}, and the call reached OP-TEE"
    state.fail(expected.rule, event, reason, pending=pending, expected=expected, refusal=refusal)


def _certain_calls(state: State, pending: Pending) -> int:
    """Count the domain's other calls that have not ended, whatever its other vCPUs do: those that wait, that are in
    OP-TEE, and that it has suspended."""
    others = [other for other in state.pending.values() if other.domain is pending.domain and other is not pending]
    inside = [
        other
        for other in others
        if other.call is not None and (other.phase is Phase.OPTEE or (other.suspended and not other.taken_over))
    ]
    return len(pending.domain.calls) + len(inside)


def _shadow_argument(
    state: State,
    pending: Pending,
    event: El3Call,
    request: Request,
    translation: Translation | None,
    shadow: bytes | None,
) -> None:
    """STD-6, MEM-2 and MEM-9: the copy OP-TEE gets."""
    buffers = translation.buffers if translation is not None else {}
    if shadow is None:
        state.unchecked(RuleId.STD_6, "the shadow argument was not observed", event)
        if buffers:
            state.unchecked(RuleId.MEM_2, "the shadow argument was not observed", event)
        return
    if buffers or shadow != request.page:
        size = abi.arg_size(len(request.params))
        at = [abi.arg_size(index) + 8 for index in buffers]
        due = patched(request.page, [(offset, shadow[offset : offset + 8]) for offset in at])[:size]
        due = without_undefined_bits(due, shadow)
        same = shadow[:size] == due
    else:
        same, due = True, shadow
    check_attributes(state, pending, event, request, shadow)
    if not same:
        _shadow_argument_differs(state, pending, event, request, due, shadow[: len(due)])
    else:
        state.ok(RuleId.STD_6)
        if translation is not None and translation.nulls:
            state.ok(RuleId.MEM_9)
    assert pending.call is not None
    for index, buffer in buffers.items():
        where = abi.arg_size(index) + 8
        pointer = int.from_bytes(shadow[where : where + 8], "little")
        guest_pointer = request.params[index].a
        list_pages = pending.call.list_pages
        check_translated(state, pending, event, f"params[{index}]", guest_pointer, pointer, buffer, list_pages)


def _shadow_argument_differs(
    state: State, pending: Pending, event: El3Call, request: Request, expected: bytes, actual: bytes
) -> None:
    now = event.mem.get(pending.arg_ipa)
    later = now.data if now is not None and now.data is not None else expected
    if later != request.page and all(a in (e, n) for a, e, n in zip(actual, expected, later, strict=False)):
        # Each byte is of before or of after. Hidden is a mediator that reads twice what the guest changes in between.
        state.unchecked(RuleId.STD_6, "the guest wrote its page while the mediator copied it", event)
        return
    found = page_differences(expected, actual)
    nulls = {abi.arg_size(i) + 8 for i, q in enumerate(request.params) if q.type in abi.TMEM_TYPES and not q.a}
    rule = RuleId.MEM_9 if found and all(offset in nulls for offset, _ in found) else RuleId.STD_6
    state.fail(rule, event, "the shadow argument", *(difference for _, difference in found), pending=pending)


# The call was answered without EL3


def handle_std_call_refused(state: State, pending: Pending, event: GuestReturn, expected: Expected) -> None:
    """CALL_WITH_ARG was answered without EL3."""
    if isinstance(expected, Unknown):
        state.unchecked(RuleId.STD_2, expected.reason, event)
        lose_history(pending.domain, expected.reason)
        return
    assert isinstance(expected, Forward | Refuse)
    with_defects = translation_with_defects(state, pending, expected)
    by_defects = _refused(with_defects)  # what a failed call left behind makes the refusal that call's, and leaves more
    if (
        not by_defects
        and isinstance(expected, Forward)
        and _refused_for_its_parameters(state, pending, event, expected)
    ):
        return
    no_thread = no_thread_left(pending.domain, pending.domain.defects, state.threads)
    if isinstance(expected, Forward) or (no_thread and event.regs[0] == _ETHREAD_LIMIT):
        _refused_but_should_have_been_forwarded(state, pending, event, expected, with_defects)
        return
    why = uncertain(pending) if expected.rule in STATEFUL else ""
    if why and event.regs[0] != expected.x0:
        state.unchecked(expected.rule, why, event)
    elif expected.ret is not None:
        _refused_in_message(state, pending, event, expected, with_defects, why)
    else:
        check_guest_regs(state, pending, event, expected.rule, (expected.x0,), expected)
        _check_untouched(state, pending, event, expected.rule)


def _refused_for_its_parameters(state: State, pending: Pending, event: GuestReturn, expected: Forward) -> bool:
    """STD-12, MEM-11: a message may be refused for undefined attribute bits, or for memory it must not name."""
    request = expected.request
    if request is None or event.regs[0] != _OK or _result(event, pending.arg_ipa) != abi.Tee.BAD_PARAMETERS:
        return False
    if has_undefined_bits(request.params):
        rule, deviation = RuleId.STD_12, DeviationId.D16
    elif not_to_be_named(pending.domain, None, references(request)):
        rule, deviation = RuleId.MEM_11, DeviationId.D19 if any(references(request)) else DeviationId.D21
    else:
        return False
    check_guest_regs(state, pending, event, rule, (_OK,))
    _check_refusal(state, pending, event, rule, abi.Tee.BAD_PARAMETERS, abi.arg_size(len(request.params)))
    state.deviation_not_seen(deviation)
    return True


def _check_untouched(state: State, pending: Pending, event: GuestReturn, rule: RuleId) -> None:
    """A message that is refused by x0 alone stays as it is."""
    view, now = pending.event.mem.get(pending.arg_ipa), event.mem.get(pending.arg_ipa)
    if view is not None and view.data is not None and now is not None and now.data is not None:
        size = abi.arg_size(len(params_of(view.data)))
        check_guest_page(state, pending, event, rule, PageWrite(pending.arg_ipa, [], size))


def _check_refusal(state: State, pending: Pending, event: GuestReturn, rule: RuleId, ret: int, size: int) -> None:
    """Nothing but ``ret`` and its origin, the mediator, is written into a message that is refused."""
    patches = [(_RET, ret.to_bytes(4, "little")), (_ORIGIN, abi.ORIGIN_COMMS.to_bytes(4, "little"))]
    check_guest_page(state, pending, event, rule, PageWrite(pending.arg_ipa, patches, size))


def _refused_in_message(
    state: State,
    pending: Pending,
    event: GuestReturn,
    expected: Refuse,
    with_defects: DefectTranslation | None,
    why: str,
) -> None:
    """The refusal stands in the message: x0 is OK, ``ret`` says why. ``why``: other refusals may be right, too."""
    assert expected.request is not None
    assert expected.ret is not None
    rule = expected.rule
    if expected.request.kind is PageKind.RAM_RO:
        if with_defects is not None and _refused(with_defects):
            refuse(pending.domain, with_defects)
        check_guest_regs(state, pending, event, RuleId.STD_10, (abi.SmcReturn.EBADADDR,), expected)
        return
    check_guest_regs(state, pending, event, rule, (expected.x0,), expected)
    if rule is RuleId.STD_3 and event.regs[0] != pending.event.regs[0]:
        state.deviation_not_seen(DeviationId.D8)
    result = _result(event, pending.arg_ipa)
    if result is not None and result != expected.ret:
        if why:
            state.unchecked(rule, why, event)
            return
        if with_defects is not None and with_defects.refusal is not None and with_defects.refusal.ret == result:
            wrong_rule, refusal = disputed(pending, expected.translation, with_defects)
            difference = Difference("ret", f"{expected.ret:#x}", f"{result:#x}")
            reason = f"refused: {with_defects.refusal.reason}"
            state.fail(wrong_rule, event, reason, difference, pending=pending, expected=expected, refusal=refusal)
            refuse(pending.domain, with_defects)
            size = abi.arg_size(len(expected.request.params))
            _check_refusal(state, pending, event, wrong_rule, result, size)
            return
    if with_defects is not None and with_defects.refusal is None:
        assert expected.translation is not None
        assert expected.translation.refusal is not None
        state.deviation_not_seen(next(iter(explanations(pending, expected.translation.refusal)), None))
        pending.domain.defects.accounting = None
    elif with_defects is not None:
        refuse(pending.domain, with_defects)
    size = abi.HEADER_SIZE if rule is RuleId.STD_3 else abi.arg_size(len(expected.request.params))
    _check_refusal(state, pending, event, rule, expected.ret, size)


def _result(event: GuestReturn, ipa: int) -> int | None:
    """``ret`` as the guest finds it."""
    view = event.mem.get(ipa)
    if view is None or view.data is None:
        return None
    return int(abi.U32_AT.unpack_from(view.data, _RET)[0])


def _refused_but_should_have_been_forwarded(
    state: State,
    pending: Pending,
    event: GuestReturn,
    expected: Forward | Refuse,
    with_defects: DefectTranslation | None,
) -> None:
    """A call was refused that should have reached OP-TEE, or for a lack of threads (D4) that there should not be."""
    x0 = event.regs[0] & abi.U32 if pending.event.aarch32 else event.regs[0]
    refusal = kept = None
    if x0 == abi.SmcReturn.ENOMEM and not state.memory_free:
        # Hides every fault that ends in ENOMEM, for as long as the hypervisor's memory is not measured.
        state.unchecked(
            RuleId.STD_5,
            "the mediator had no memory, and whether the hypervisor had was not seen",
            event,
            unearned=True,
        )
        check_other_regs(state, pending, event, 1)
        _check_untouched(state, pending, event, RuleId.STD_5)
        return
    if x0 == _OK:
        rule = RuleId.MEM_1 if expected.translation is not None else RuleId.STD_5
        result = _result(event, pending.arg_ipa)
        reason = "refused without a reason" if result is None else f"refused with ret = {result:#x}"
        by_defects = with_defects.refusal if with_defects is not None else None
        if with_defects is not None and by_defects is not None and result in (None, by_defects.ret):
            rule, refusal = disputed(pending, expected.translation, with_defects)
            reason = f"refused: {by_defects.reason}, for a mediator with known defects"
            kept = with_defects
    else:
        rule = {1: RuleId.STD_1, 4: RuleId.STD_2, 5: RuleId.STD_4}.get(x0, RuleId.STD_5)
        reason = f"refused with x0 = {x0:#x}"
    why = uncertain(pending)
    # One thread there is in any case. Otherwise every call may be refused so, for as long as the number is not known.
    held = pending.domain.call_count + pending.domain.defects.lost_calls
    unknown = x0 == _ETHREAD_LIMIT and state.threads is None and held > 0
    if unknown:
        why = why or "how many threads OP-TEE has was never seen"
    check_other_regs(state, pending, event, 1)
    no_thread = no_thread_left(pending.domain, pending.domain.defects, state.threads)
    explained = refusal is not None or (x0 == _ETHREAD_LIMIT and no_thread)
    if why and not explained and x0 in (_OK, _ETHREAD_LIMIT):
        state.unchecked(rule, why, event, unearned=unknown)
    else:
        difference = Difference("x0", "a call at EL3", f"{x0:#x}")
        state.fail(rule, event, reason, difference, pending=pending, expected=expected, refusal=refusal)
    if kept is not None:
        refuse(pending.domain, kept)
        if kept.refusal is not None and expected.request is not None:
            size = abi.arg_size(len(expected.request.params))
            _check_refusal(state, pending, event, rule, kept.refusal.ret, size)
    elif x0 != _OK:
        _check_untouched(state, pending, event, rule)

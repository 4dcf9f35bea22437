# SPDX-License-Identifier: GPL-2.0-or-later
"""Buffers of a message: the shadow page lists, and refusals that only a mediator with known defects makes."""

from __future__ import annotations

from collections.abc import Mapping

from mediator_ref import abi
from mediator_ref.compare.checks import own_pages
from mediator_ref.defect_model import DefectTranslation, translate_with_defects, wraps
from mediator_ref.deviations import Mismatch, explain
from mediator_ref.domain import Buffer
from mediator_ref.events import PAGE_SIZE, El3Call
from mediator_ref.knowledge import Pending
from mediator_ref.rules import DeviationId, RuleId
from mediator_ref.spec.outcome import Expected, Forward, Refusal, Refuse, Reply, Translation
from mediator_ref.state import State
from mediator_ref.verdict import Difference


def translation_with_defects(state: State, pending: Pending, expected: Expected) -> DefectTranslation | None:
    """Translate a message's buffers as a mediator with the listed defects does; ``None`` where it cannot differ."""
    if isinstance(expected, Reply):
        params, translation = expected.params, expected.translation
    elif isinstance(expected, Forward | Refuse) and expected.request is not None:
        params, translation = expected.request.params, expected.translation
    else:
        return None
    accounting = pending.domain.defects.accounting
    if translation is None or (accounting is None and translation.refusal is None):
        return None
    held = accounting if accounting is not None else pending.domain.accounting()
    return translate_with_defects(held, params, pending.event.mem, state.limits, state.deviations)


def explanations(pending: Pending, refusal: Refusal) -> list[DeviationId]:
    """Name the deviations that explain a refusal, or its absence."""
    return explain(Mismatch(refusal.rule, pending.event, pending.domain, pending, refusal=refusal))


def disputed(
    pending: Pending, expected: Translation | None, with_defects: Translation
) -> tuple[RuleId, Refusal | None]:
    """Rule of a message that was decided as a mediator with known defects does, and not as is expected.

    With it comes the refusal that a deviation explains: one of the mediator with defects, or one of the correct one.
    """
    refusals = [t.refusal for t in (with_defects, expected) if t is not None and t.refusal is not None]
    if expected is not None and expected.refusal is not None and expected.refusal.rule is RuleId.MEM_5:
        refusals.sort(key=lambda refusal: refusal is not expected.refusal or not wraps(refusal.param))
    for refusal in refusals:
        if explanations(pending, refusal):
            return refusal.rule, refusal
    if expected is not None and expected.refusal is not None:
        return expected.refusal.rule, None
    return (with_defects.refusal.rule, None) if with_defects.refusal is not None else (RuleId.MEM_1, None)


def check_translated(
    state: State,
    pending: Pending,
    event: El3Call,
    where: str,
    guest_pointer: int,
    shadow_pointer: int,
    buffer: Buffer | None,
    list_pages: list[int],
) -> None:
    """MEM-2 and STD-7 on one translated buffer; the pages of its shadow list are noted in ``list_pages``."""
    differences, pages, why = check_list(where, guest_pointer, shadow_pointer, buffer, event.shadow)
    if not differences and why and shadow_pointer == guest_pointer and not set(pages) & event.shadow.keys():
        differences = [Difference(f"{where}.buf_ptr", "a shadow page list", f"{shadow_pointer:#x}, the guest's own")]
    if differences:
        state.fail(RuleId.MEM_2, event, "the shadow page list", *differences, pending=pending)
    elif why:
        state.unchecked(RuleId.MEM_2, why, event)
    else:
        state.ok(RuleId.MEM_2)
    list_pages += pages
    own_pages(state, pending, event, *pages)


def check_list(
    where: str, guest_pointer: int, shadow_pointer: int, buffer: Buffer | None, shadow: Mapping[int, bytes]
) -> tuple[list[Difference], list[int], str]:
    """Compare a shadow page list with the frames it has to name.

    Returns the differences, the list pages it stands on (MAs), and why it could not be compared (or nothing).
    """
    differences: list[Difference] = []
    if (shadow_pointer ^ guest_pointer) & abi.OFFSET_MASK:
        offsets = (f"{pointer & abi.OFFSET_MASK:#x}" for pointer in (guest_pointer, shadow_pointer))
        differences.append(Difference(f"{where}.buf_ptr offset", *offsets))
    page = shadow_pointer & ~abi.OFFSET_MASK
    pages: list[int] = []
    if buffer is None:
        return differences, [page], "the guest's page list was not observed"
    done = 0
    while done < len(buffer.mfns):
        data = shadow.get(page)
        pages.append(page)
        if data is None or len(data) != PAGE_SIZE:
            return differences, pages, "a page of the shadow list was not observed"
        count = min(abi.LIST_ENTRIES, len(buffer.mfns) - done)
        expected = [mfn << 12 for mfn in buffer.mfns[done : done + count]]
        words = abi.LIST_PAGE.unpack(data)
        if list(words[:count]) != expected:
            differences += [
                Difference(f"{where} list entry {done + i}", f"{want:#x}", f"{got:#x}")
                for i, (want, got) in enumerate(zip(expected, words[:count], strict=True))
                if want != got
            ][:4]
            return differences, pages, ""
        done += count
        page = words[abi.LIST_ENTRIES] & ~abi.OFFSET_MASK
    return differences, pages, ""

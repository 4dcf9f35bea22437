# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparisons shared by all kinds of calls: registers at EL3, registers and pages as the guest finds them."""

from __future__ import annotations

from collections.abc import Sequence

from mediator_ref import abi
from mediator_ref.describe import field_at
from mediator_ref.events import El3Call, GuestReturn, Registers
from mediator_ref.fast import guest_registers_as_expected
from mediator_ref.knowledge import Pending
from mediator_ref.rules import RuleId
from mediator_ref.spec.lifecycle import optee_client_id
from mediator_ref.spec.outcome import Answer, Expected, PageWrite, Patch, Unknown
from mediator_ref.state import State
from mediator_ref.verdict import Difference


def check_client_id(state: State, pending: Pending, event: El3Call) -> None:
    """CID-1 on a call made for a guest, LIFE-3 on its domain being alive."""
    expected = optee_client_id(pending.event.domid)
    if event.regs[7] == expected:
        state.ok(RuleId.CID_1)
    else:
        state.fail(
            RuleId.CID_1,
            event,
            "a call for one domain with another client id",
            Difference("x7", f"{expected:#x}", f"{event.regs[7]:#x}"),
            pending=pending,
        )
    if pending.domain.destroyed:
        pending.domain.called_after_death = True
        state.fail(RuleId.LIFE_3, event, "a call for a domain OP-TEE was told is gone", pending=pending)


def register_differences(names: Sequence[int], expected: Sequence[int], actual: Sequence[int]) -> list[Difference]:
    """Differences of the registers in ``names``."""
    return [Difference(f"x{i}", f"{expected[i]:#x}", f"{actual[i]:#x}") for i in names if expected[i] != actual[i]]


def check_el3_regs(
    state: State, pending: Pending, event: El3Call, rule: RuleId, expected: tuple[int | None, ...]
) -> bool:
    """Compare x0..x6 at EL3 with ``expected``; any value will do for a register that is ``None`` there."""
    actual = event.regs[:7]
    if actual == expected:
        state.ok(rule)
        return True
    filled = tuple([a if e is None else e for e, a in zip(expected, actual, strict=True)])
    if actual == filled:
        state.ok(rule)
        return True
    state.fail(rule, event, "registers at EL3", *register_differences(range(7), filled, actual), pending=pending)
    return False


def is_host_address(state: State, pending: Pending, value: int) -> bool:
    """Tell whether a value points into a shadow page in use or to a frame of the domain's that OP-TEE has."""
    page = value & ~abi.OFFSET_MASK
    return page != 0 and (
        page in state.shadow_pages or page in pending.recently_freed or page >> 12 in pending.domain.pinned()
    )


def check_guest_regs(
    state: State,
    pending: Pending,
    event: GuestReturn,
    rule: RuleId,
    written: Registers,
    expected: Expected | Answer | None = None,
) -> bool:
    """Compare the registers the guest finds: ``written`` from x0 on, everything else as at its call.

    ``expected`` is what the registers follow from. Returns whether ``rule`` holds.
    """
    before = pending.event.regs
    if guest_registers_as_expected(state.tally, rule, before, written, event.regs):
        return True
    due = [*written, *before[len(written) :]]
    if pending.undelivered:  # x1..x3 are not used when a call ends; they may be left from the undelivered request
        left = [i for i in range(len(written), 4) if event.regs[i] == pending.undelivered[i]]
        due = [event.regs[i] if i in left else value for i, value in enumerate(due)]
    count = min(len(due), len(event.regs))
    actual = event.regs[:count]
    if pending.event.aarch32:
        due = [value & abi.U32 for value in due]
        actual = tuple(value & abi.U32 for value in actual)
    return _compare_regs(state, pending, event, rule, due[:count], actual, len(written), expected)


def check_other_regs(state: State, pending: Pending, event: GuestReturn, written: int) -> None:
    """REGS-1 and ISO-1 for an answer that is not known, or already judged: registers from ``written`` on are kept.

    Those before it hold what the guest or OP-TEE put there, or nothing that is the host's.
    """
    before, actual = pending.event.regs, event.regs
    count = min(len(before), len(actual))
    if pending.event.aarch32:
        before, actual = (tuple(value & abi.U32 for value in regs) for regs in (before, actual))
    given = [pending.returned[i : i + 1] for i in range(written)]
    due = [before[i] if actual[i : i + 1] != given[i] else actual[i] for i in range(written)]
    foreign = [i for i in range(written) if is_host_address(state, pending, actual[i])]
    if due[1:3] != list(actual[1:3]) and is_host_address(state, pending, abi.pair(actual[1], actual[2])):
        foreign += [1, 2]
    due = [due[i] if i in foreign else actual[i] for i in range(written)]
    _compare_regs(state, pending, event, None, [*due, *before[written:count]], actual[:count], written, None)


def _compare_regs(
    state: State,
    pending: Pending,
    event: GuestReturn,
    rule: RuleId | None,
    due: Sequence[int],
    actual: Sequence[int],
    written: int,
    expected: Expected | Answer | None,
) -> bool:
    """Compare registers of the guest, of which the first ``written`` are the answer that ``rule`` is about."""
    wrong = [i for i in range(len(due)) if due[i] != actual[i]]
    leaks = [i for i in wrong if is_host_address(state, pending, actual[i])]
    if {1, 2} & set(wrong) and is_host_address(state, pending, abi.pair(actual[1], actual[2])):
        leaks = [1, 2]
    wrong = [i for i in wrong if i not in leaks]
    for what, numbers, reason in (
        (RuleId.ISO_1, leaks, "a host address in the guest's registers"),
        (RuleId.REGS_1, [i for i in wrong if i >= written], "a register that should be preserved"),
        (rule, [i for i in wrong if i < written], "the answer to the guest"),
    ):
        if what is None:
            continue
        if numbers:
            found = register_differences(numbers, due, actual)
            state.fail(what, event, reason, *found, pending=pending, expected=expected)
        else:
            state.ok(what)
    return not any(i < written for i in wrong)


def page_differences(expected: bytes, actual: bytes) -> list[tuple[int, Difference]]:
    """Differing fields of two messages with their offsets, at most eight."""
    found: list[tuple[int, Difference]] = []
    offset = 0
    size = min(len(expected), len(actual))
    while offset < size and len(found) < 8:
        step = 4 if offset < abi.HEADER_SIZE else 8
        want, got = expected[offset : offset + step], actual[offset : offset + step]
        if want != got:
            values = (f"{int.from_bytes(word, 'little'):#x}" for word in (want, got))
            found.append((offset, Difference(field_at(offset, expected), *values)))
        offset += step
    return found


def patched(base: bytes, patches: Sequence[Patch]) -> bytes:
    """Replace bytes of a page."""
    page = bytearray(base)
    for offset, data in patches:
        page[offset : offset + len(data)] = data
    return bytes(page)


def check_guest_page(
    state: State, pending: Pending, event: GuestReturn, rule: RuleId, expected: PageWrite | Unknown
) -> None:
    """Compare a guest page after the answer: what it was, with the expected patches.

    Bytes beyond the message are held to the page as it was when OP-TEE returned; the page as it was at the trap may be
    too old for them, since another message of the guest may share the page.
    """
    if isinstance(expected, Unknown):
        state.unchecked(rule, expected.reason, event)
        return
    view = event.mem.get(expected.ipa)
    if view is None or view.data is None:
        state.unchecked(rule, "the page was not observed when the guest continued", event)
        return
    fresh = pending.base.get(expected.ipa)
    stale = pending.event.mem.get(expected.ipa)
    if fresh is not None and fresh.data is not None:
        due, actual = patched(fresh.data, expected.patches), view.data
    elif stale is not None and stale.data is not None:
        due, actual = patched(stale.data, expected.patches)[: expected.size], view.data[: expected.size]
    else:
        wrong = [(o, d) for o, d in expected.patches if view.data[o : o + len(d)] != d]
        if not wrong:
            state.unchecked(rule, "the page before was not observed, so what else was written is not known", event)
            return
        due, actual = patched(view.data, wrong), view.data
    if due == actual:
        state.ok(rule)
        return
    found = page_differences(due, actual)
    leaks = [
        difference
        for offset, difference in found
        if is_host_address(state, pending, int.from_bytes(actual[offset & ~7 : (offset & ~7) + 8], "little"))
    ]
    if leaks:
        state.fail(RuleId.ISO_1, event, "a host address in a page of the guest's", *leaks, pending=pending)
    else:
        state.fail(rule, event, "the page the guest finds", *(d for _, d in found), pending=pending)


def own_pages(state: State, pending: Pending, event: El3Call, *pages: int) -> None:
    """STD-7: pages handed to OP-TEE as the hypervisor's own are that."""
    frames = {view.mfn for view in pending.event.mem.values()}
    for page in pages:
        owner = state.shadow_pages.get(page)
        state.shadow_pages[page] = pending.event.domid
        if page >> 12 in frames:
            problem = "a guest's page where a shadow page should be"
        elif owner is None or state.domain(owner).history_unknown:
            state.ok(RuleId.STD_7)
            continue
        elif state.domain(owner).dying:
            # What a dying domain held is freed before OP-TEE is told, and may be used again at once. It hides a page
            # of a dying domain that is handed out while it is still in use: OP-TEE does not run for that domain.
            state.unchecked(RuleId.STD_7, "the domain the page belonged to is dying", event)
            continue
        else:
            problem = "the shadow page of another live call"
        state.fail(
            RuleId.STD_7,
            event,
            problem,
            Difference("page", "a page of the hypervisor, used by nothing else", f"{page:#x}"),
            pending=pending,
        )

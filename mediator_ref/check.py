"""Comparisons shared by all kinds of calls: registers at EL3, registers and pages as the guest finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mediator_ref import abi
from mediator_ref.describe import field_at
from mediator_ref.events import El3Call, GuestReturn
from mediator_ref.state import Pending, State
from mediator_ref.verdict import Difference

Patch = tuple[int, bytes]
"""Bytes at an offset of a page."""


def client_id(domid: int) -> int:
    """x7 of a domain at EL3."""
    return domid + 1


def check_client_id(state: State, p: Pending, event: El3Call) -> None:
    """CID-1 on a call made for a guest, LIFE-3 on its domain being alive."""
    due = client_id(p.event.domid)
    if event.regs[7] == due:
        state.ok("CID-1")
    else:
        state.fail(
            "CID-1",
            event,
            "a call for one domain with another client id",
            Difference("x7", f"{due:#x}", f"{event.regs[7]:#x}"),
            cause=p.event,
        )
    if p.domain.destroyed:
        p.domain.called_after_death = True
        state.fail("LIFE-3", event, "a call for a domain OP-TEE was told is gone", cause=p.event)


def register_differences(names: Sequence[int], due: Sequence[int], seen: Sequence[int]) -> list[Difference]:
    """Differences of the registers in ``names``."""
    return [Difference(f"x{i}", f"{due[i]:#x}", f"{seen[i]:#x}") for i in names if due[i] != seen[i]]


def check_el3_regs(state: State, p: Pending, event: El3Call, rule: str, due: Sequence[int]) -> bool:
    """x0..x6 at EL3 against ``due`` (seven values)."""
    if event.regs[:7] == tuple(due):
        state.ok(rule)
        return True
    state.fail(rule, event, "registers at EL3", *register_differences(range(7), due, event.regs), cause=p.event)
    return False


def is_host_address(state: State, p: Pending, value: int) -> bool:
    """Whether a value points into a shadow page in use or to a frame of the domain's that OP-TEE has."""
    page = value & ~abi.OFFSET_MASK
    return page != 0 and (page in state.shadow_pages or page in p.fading or page >> 12 in p.domain.pinned())


def check_guest_regs(
    state: State,
    p: Pending,
    event: GuestReturn,
    rule: str,
    written: Mapping[int, int],
    *,
    deviation: str | None = None,
) -> bool:
    """Registers the guest finds: ``written`` as given, everything else as at its call. True when ``rule`` holds."""
    before = p.event.regs
    due = list(before)
    for register, value in written.items():
        due[register] = value
    count = min(len(due), len(event.regs))
    seen = event.regs[:count]
    if seen == tuple(due[:count]):
        passes = state.tally.passes
        passes[rule] += 1
        passes["REGS-1"] += 1
        passes["ISO-1"] += 1
        return True
    if p.event.aarch32:
        due = [value & abi.U32 for value in due]
        seen = tuple(value & abi.U32 for value in seen)
    wrong = [i for i in range(count) if due[i] != seen[i]]
    leaks = [i for i in wrong if is_host_address(state, p, seen[i])]
    if {1, 2} & set(wrong) and is_host_address(state, p, abi.pair(seen[1], seen[2])):
        leaks = [1, 2]
    wrong = [i for i in wrong if i not in leaks]
    if leaks:
        state.fail(
            "ISO-1",
            event,
            "a host address in the guest's registers",
            *register_differences(leaks, due, seen),
            cause=p.event,
        )
    else:
        state.ok("ISO-1")
    kept = [i for i in wrong if i not in written]
    defined = [i for i in wrong if i in written]
    if kept:
        state.fail(
            "REGS-1",
            event,
            "a register that should be preserved",
            *register_differences(kept, due, seen),
            cause=p.event,
        )
    else:
        state.ok("REGS-1")
    if defined:
        state.fail(
            rule,
            event,
            "the answer to the guest",
            *register_differences(defined, due, seen),
            deviation=deviation,
            cause=p.event,
        )
        return False
    state.ok(rule)
    return True


def page_differences(due: bytes, seen: bytes) -> list[tuple[int, Difference]]:
    """Differing fields of two messages with their offsets, at most eight."""
    found: list[tuple[int, Difference]] = []
    offset = 0
    size = min(len(due), len(seen))
    while offset < size and len(found) < 8:
        step = 4 if offset < abi.HEADER_SIZE else 8
        want, got = due[offset : offset + step], seen[offset : offset + step]
        if want != got:
            found.append(
                (
                    offset,
                    Difference(
                        field_at(offset, due),
                        f"{int.from_bytes(want, 'little'):#x}",
                        f"{int.from_bytes(got, 'little'):#x}",
                    ),
                )
            )
        offset += step
    return found


def patched(base: bytes, patches: Sequence[Patch]) -> bytes:
    """A page with bytes replaced."""
    page = bytearray(base)
    for offset, data in patches:
        page[offset : offset + len(data)] = data
    return bytes(page)


def check_guest_page(
    state: State, p: Pending, event: GuestReturn, rule: str, ipa: int, patches: Sequence[Patch], size: int
) -> None:
    """A guest page after the answer: what it was, with ``patches``.

    Bytes from ``size`` on are held to the page as it was when OP-TEE returned; the page as it was at the trap may be
    too old for them, since another message of the guest may share the page.
    """
    view = event.mem.get(ipa)
    if view is None or view.data is None:
        state.unchecked(rule, "the page was not observed when the guest continued", event)
        return
    fresh = p.base.get(ipa)
    stale = p.event.mem.get(ipa)
    if fresh is not None and fresh.data is not None:
        due, seen = patched(fresh.data, patches), view.data
    elif stale is not None and stale.data is not None:
        due, seen = patched(stale.data, patches)[:size], view.data[:size]
    else:
        wrong = [(o, d) for o, d in patches if view.data[o : o + len(d)] != d]
        if not wrong:
            state.unchecked(rule, "the page before was not observed, so what else was written is not known", event)
            return
        due, seen = patched(view.data, wrong), view.data
    if due == seen:
        state.ok(rule)
        return
    found = page_differences(due, seen)
    leaks = [d for o, d in found if is_host_address(state, p, int.from_bytes(seen[o & ~7 : (o & ~7) + 8], "little"))]
    if leaks:
        state.fail("ISO-1", event, "a host address in a page of the guest's", *leaks, cause=p.event)
    else:
        state.fail(rule, event, "the page the guest finds", *(d for _, d in found), cause=p.event)

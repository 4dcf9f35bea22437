# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for memory parameters."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.events import El3Call, FrameReleased, GuestReturn
from mediator_ref.examples.calls import shadow_of
from mediator_ref.examples.mutate import (
    Example,
    board,
    example,
    index_of,
    until,
    with_guest_bytes,
    with_shadow_bytes,
    without_books,
)
from mediator_ref.limits import Limits
from mediator_ref.simulator.board import ARG, DATA, Board
from mediator_ref.simulator.optee import INTR

REGISTER = abi.MsgCmd.REGISTER_SHM
INVOKE = abi.MsgCmd.INVOKE_COMMAND


def register(made: Board, pages: int = 1, cookie: int = 0xB0, bad: int | None = None) -> None:
    """Register a buffer."""
    made.message(1, abi.message(REGISTER, made.buffer(1, pages, cookie=cookie, bad=bad)))


def _other_result(rule: str, made: Board, result: int = abi.Tee.GENERIC) -> Example:
    """Bad: the refusal carries another result."""
    at = abi.ARG_FIELDS["ret"]
    return example(rule, made, with_guest_bytes(made.events, GuestReturn, ARG, at, int(result).to_bytes(4, "little")))


def mem_1() -> Example:
    """A buffer of three pages, refused by a mediator that allows none. (Good: it is registered.)"""
    good, bad = board(), board(Limits(buffers=0))
    for made in (good, bad):
        register(made, 3)
    return example("MEM-1", good, bad)


def mem_2() -> Example:
    """The shadow list names another frame than the guest's second page."""
    made = board()
    made.message(1, abi.message(INVOKE, made.buffer(1, 3, offset=0x123)))
    event = made.events[index_of(made.events, El3Call)]
    assert isinstance(event, El3Call)
    page = event.shadow[shadow_of(made.events)]
    pointer = abi.decode_arg(page).params[0].a & ~abi.OFFSET_MASK
    events = with_shadow_bytes(made.events, El3Call, pointer, 8, (0xBAD000).to_bytes(8, "little"))
    return example("MEM-2", made, events)


def mem_3() -> Example:
    """The second page of a buffer does not exist."""
    made = board()
    register(made, 3, bad=1)
    return _other_result("MEM-3", made)


def mem_4() -> Example:
    """A buffer given by address."""
    made = board()
    made.message(1, abi.message(INVOKE, abi.Param(abi.Attr.TMEM_INPUT, DATA, 64, 1)))
    return _other_result("MEM-4", made)


def mem_5() -> Example:
    """130 pages; the bad mediator allows 200."""
    good, bad = board(), board(Limits(buffer_pages=200))
    for made in (good, bad):
        register(made, 130)
    return example("MEM-5", good, bad)


def mem_6() -> Example:
    """17 buffers; the bad mediator allows 20."""
    good, bad = board(), board(Limits(buffers=20))
    for made in (good, bad):
        for cookie in range(17):
            register(made, cookie=0x100 + cookie)
    return example("MEM-6", good, bad)


def mem_7() -> Example:
    """Eight pages where the total has to stay below eight; the bad mediator does not count."""
    limits = Limits(total_pages=8)
    good, bad = board(limits), board()
    for made in (good, bad):
        register(made, 7, cookie=1)
        register(made, 1, cookie=2)
    return example("MEM-7", good, bad, limits)


def mem_8() -> Example:
    """One cookie twice; the bad mediator has forgotten the first."""
    good, bad = board(), board()
    for made in (good, bad):
        register(made)
        if made is bad:
            made.mediator.domains[1].bufs.clear()
        register(made)
    return example("MEM-8", good, without_books(bad.events))


def mem_9() -> Example:
    """A NULL buffer gets an address on its way."""
    made = board()
    made.message(1, abi.message(INVOKE, abi.Param(abi.Attr.TMEM_INPUT | abi.ATTR_NONCONTIG, 0, 0, 0)))
    events = with_shadow_bytes(made.events, El3Call, shadow_of(made.events), abi.HEADER_SIZE + 9, b"\x10")
    return example("MEM-9", made, until(events, El3Call))


def mem_10() -> Example:
    """A page leaves the domain: one that is not in use, or one that is registered."""
    made = board()
    register(made)
    used, _ = made.world.lookup(1, DATA)
    assert used is not None
    bad = [*made.events, FrameReleased(99, 1, used)]
    made.balloon(1, DATA + 2 * 4096)
    return example("MEM-10", made, bad)


def mem_11() -> Example:
    """A reference to registered memory, or to memory that another call brought."""
    good, bad = board(), board(defects=frozenset({"D19"}))
    for made in (good, bad):
        if made is good:
            register(made, cookie=0xC0)
        else:
            made.message(1, abi.message(INVOKE, made.buffer(1, cookie=0xC0)), plan=[INTR])
        named = abi.Param(abi.Attr.RMEM_INPUT, 0, 64, 0xC0)
        made.message(1, abi.message(INVOKE, named), ipa=ARG + 4096, vcpu=1)
    return example("MEM-11", good, bad)


EXAMPLES = (mem_1, mem_2, mem_3, mem_4, mem_5, mem_6, mem_7, mem_8, mem_9, mem_10, mem_11)

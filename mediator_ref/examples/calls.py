# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for standard calls."""

from __future__ import annotations

from dataclasses import replace

from mediator_ref import abi
from mediator_ref.events import El3Call, El3Return, Event, GuestReturn, PageKind
from mediator_ref.examples.mutate import (
    Example,
    board,
    example,
    index_of,
    until,
    with_guest_bytes,
    with_register,
    with_shadow_bytes,
)
from mediator_ref.simulator.board import ARG, Board
from mediator_ref.simulator.optee import INTR

VALUE = abi.Param(abi.Attr.VALUE_INOUT, 1, 2, 3)
INVOKE = abi.message(abi.MsgCmd.INVOKE_COMMAND, VALUE, func=7, session=0x51, cancel_id=9)


def invoked() -> Board:
    """A guest invoked a command with one value."""
    made = board()
    made.message(1, INVOKE)
    return made


def shadow_of(events: list[Event], nth: int = -1) -> int:
    """Address of the shadow argument of a call at EL3."""
    event = events[index_of(events, El3Call, nth)]
    assert isinstance(event, El3Call)
    return abi.pair(event.regs[1], event.regs[2])


def std_11() -> Example:
    """The function that the shadow argument names is another one when OP-TEE is done with it."""
    made = invoked()
    at = abi.ARG_FIELDS["func"]
    return example("STD-11", made, with_shadow_bytes(made.events, El3Return, shadow_of(made.events), at, b"\x77"))


def std_12() -> Example:
    """An attribute with bit 63 set, which is cleared or passed on."""
    good, bad = board(), board(defects=frozenset({"D16"}))
    for made in (good, bad):
        param = abi.Param(abi.Attr.VALUE_INOUT | 1 << 63, 1, 2, 3)
        made.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, param))
    return example("STD-12", good, bad)


def regs_2() -> Example:
    """EL3 does not know the function: the guest gets -1, or also what else EL3 had in its registers."""
    made = board()
    made.optee.foreign = abi.U64
    made.message(1, INVOKE)
    return example("REGS-2", made, with_register(made.events, GuestReturn, 1, 0x111))


def _refused(rule: str, page: bytes, x0: int, ipa: int = ARG) -> Example:
    """Bad: the guest is refused for another reason."""
    made = board()
    made.world.write(1, ARG, page)
    made.call(1, 0, (abi.CALL_WITH_ARG, *abi.split(ipa)))
    return example(rule, made, with_register(made.events, GuestReturn, 0, x0))


def std_1() -> Example:
    """A third call while two are suspended: refused, or passed on by a mediator that allows three."""
    good, bad = board(), board()
    bad.mediator.threads = 3
    for made in (good, bad):
        for vcpu in range(3):
            made.message(1, INVOKE, ipa=ARG + vcpu * 4096, vcpu=vcpu, plan=[INTR])
    return example("STD-1", good, bad)


def std_2() -> Example:
    """The argument is not at the start of a page."""
    return _refused("STD-2", INVOKE, abi.SmcReturn.EBADCMD, ARG + 8)


def std_3() -> Example:
    """128 parameters."""
    page = abi.encode_arg(abi.Arg(cmd=1, num_params=128))
    return _refused("STD-3", page, abi.SmcReturn.EBADCMD)


def std_4() -> Example:
    """DO_BOTTOM_HALF is not for guests of a mediator."""
    return _refused("STD-4", abi.message(abi.MsgCmd.DO_BOTTOM_HALF), abi.SmcReturn.OK)


def std_5() -> Example:
    """The cache attribute is the guest's instead of SHM_CACHED."""
    made = invoked()
    return example("STD-5", made, with_register(made.events, El3Call, 3, 0))


def std_6() -> Example:
    """The shadow argument has another cancel_id."""
    made = invoked()
    events = with_shadow_bytes(made.events, El3Call, shadow_of(made.events), abi.ARG_FIELDS["cancel_id"], b"\1")
    return example("STD-6", made, until(events, El3Call))


def std_7() -> Example:
    """The second of two calls gets the shadow page of the first."""
    made = board()
    for vcpu in range(2):
        made.message(1, INVOKE, ipa=ARG + vcpu * 4096, vcpu=vcpu, plan=[INTR])
    first = shadow_of(made.events, -2)
    events = until(made.events, El3Call)
    last = events[-1]
    assert isinstance(last, El3Call)
    regs = (last.regs[0], *abi.split(first), *last.regs[3:])
    events[-1] = replace(last, regs=regs, shadow={first: last.shadow[shadow_of(events)]})
    return example("STD-7", made, events)


def std_8() -> Example:
    """OP-TEE said OK, the guest hears EBUSY."""
    made = invoked()
    return example("STD-8", made, with_register(made.events, GuestReturn, 0, abi.SmcReturn.EBUSY))


def std_9() -> Example:
    """The write-back touches func."""
    made = invoked()
    events = with_guest_bytes(made.events, GuestReturn, ARG, abi.ARG_FIELDS["func"], b"\xff")
    return example("STD-9", made, events)


def std_10() -> Example:
    """The argument page turns read-only during the call."""
    made = board()
    regs = made.message(1, INVOKE, plan=[INTR])
    made.world.protect(1, ARG, PageKind.RAM_RO)
    made.resume(1, regs)
    return example("STD-10", made, with_register(made.events, GuestReturn, 0, abi.SmcReturn.OK))


EXAMPLES = (regs_2, std_1, std_2, std_3, std_4, std_5, std_6, std_7, std_8, std_9, std_10, std_11, std_12)

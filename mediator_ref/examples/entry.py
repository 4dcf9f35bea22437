# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for dispatch, registers and fast calls."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.events import DomainCreated, El3Call, Event, GuestCall, GuestReturn
from mediator_ref.examples.mutate import Example, board, example, with_register
from mediator_ref.simulator.board import Board

GARBAGE = (0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77)


def called(name: str) -> Board:
    """A board whose guest made one fast call with garbage in its registers."""
    made = board()
    made.call(1, 0, (abi.FID[name], *GARBAGE))
    return made


def _answered(rule: str, name: str, register: int, value: int) -> Example:
    """Bad: the guest finds ``value`` in a register."""
    made = called(name)
    return example(rule, made, with_register(made.events, GuestReturn, register, value))


def _entered(rule: str, name: str, register: int, value: int) -> Example:
    """Bad: EL3 finds ``value`` in a register."""
    made = called(name)
    return example(rule, made, with_register(made.events, El3Call, register, value))


def disp_1() -> Example:
    """HVC with an immediate: the guest gets an exception, or nothing."""
    good = board()
    regs = (abi.FID["CALLS_COUNT"], *GARBAGE)
    bad: list[Event] = []
    for trace, undef in ((good.events, True), (bad, False)):
        trace += [] if undef else good.events[:-2]
        trace += [GuestCall(90, 0, 1, regs, imm=7), GuestReturn(91, 0, 1, regs, undef=undef)]
    return example("DISP-1", good, bad)


def disp_2() -> Example:
    """L2CC_MUTEX is refused, or answered OK."""
    return _answered("DISP-2", "L2CC_MUTEX", 0, 0)


def disp_3() -> Example:
    """A 32-bit domain calls an SMC64 function."""
    good = board()
    regs = (abi.EXCHANGE_CAPABILITIES | 1 << 30, *GARBAGE)
    call = GuestCall(90, 0, 1, regs, aarch32=True)
    bad = [*good.events, call, GuestReturn(91, 0, 1, (0, *GARBAGE))]
    good.events += [call, GuestReturn(91, 0, 1, (abi.SMCCC_UNKNOWN_FUNCTION, *GARBAGE))]
    return example("DISP-3", good, bad)


def disp_4() -> Example:
    """A domain created without a mediator asks for the number of functions."""
    good = board()
    regs = (abi.FID["CALLS_COUNT"], *GARBAGE)
    born: list[Event] = [DomainCreated(90, 5, tee=False), GuestCall(91, 0, 5, regs)]
    bad = [*good.events, *born, GuestReturn(92, 0, 5, (11, *GARBAGE))]
    good.events += [*born, GuestReturn(92, 0, 5, (abi.SMCCC_UNKNOWN_FUNCTION, *GARBAGE))]
    return example("DISP-4", good, bad)


def disp_5() -> Example:
    """A call reaches OP-TEE that no guest made."""
    good = called("CALLS_UID")
    return example("DISP-5", good, [*good.events, El3Call(99, 0, 1, (abi.CALLS_UID + 2, 0, 0, 0, 0, 0, 0, 2))])


def regs_1() -> Example:
    """GET_OS_REVISION hands the build id in x2 through."""
    return _answered("REGS-1", "GET_OS_REVISION", 2, 0x1234)


def cid_1() -> Example:
    """A call for domain 1 carries the client id of domain 0."""
    return _entered("CID-1", "GET_OS_UUID", 7, 1)


def fast_1() -> Example:
    """The guest's x3 is passed on."""
    return _entered("FAST-1", "ENABLE_SHM_CACHE", 3, GARBAGE[2])


def fast_2() -> Example:
    """A word of the UID is not OP-TEE's."""
    return _answered("FAST-2", "CALLS_UID", 3, 0)


def fast_3() -> Example:
    """The mediator offers more functions than it has."""
    return _answered("FAST-3", "CALLS_COUNT", 0, 14)


def caps_1() -> Example:
    """An unknown capability of the guest is passed on."""
    return _entered("CAPS-1", "EXCHANGE_CAPABILITIES", 1, GARBAGE[0])


def caps_2() -> Example:
    """The guest sees that OP-TEE runs virtualized."""
    return _answered("CAPS-2", "EXCHANGE_CAPABILITIES", 1, 0x1E)


EXAMPLES = (disp_1, disp_2, disp_3, disp_4, disp_5, regs_1, cid_1, fast_1, fast_2, fast_3, caps_1, caps_2)

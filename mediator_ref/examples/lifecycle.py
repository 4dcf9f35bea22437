# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for the life of a domain."""

from __future__ import annotations

from dataclasses import replace

from mediator_ref import abi
from mediator_ref.events import DomainCreated, DomainDestroyed, El3Call, El3Return, End, Event, GuestCall
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import Example, board, example, index_of, with_register, without_books
from mediator_ref.simulator.board import Board


def lived() -> Board:
    """Domain 1 made a call and was destroyed."""
    made = board()
    made.message(1, INVOKE)
    made.destroy(1)
    return made


def life_1() -> Example:
    """VM_CREATED with something in x2."""
    made = board()
    return example("LIFE-1", made, with_register(made.events, El3Call, 2, 1))


def life_2() -> Example:
    """OP-TEE is never told that the domain is gone."""
    made = lived()
    at = index_of(made.events, El3Call)
    return example("LIFE-2", made, [*made.events[:at], *made.events[at + 2 :]])


def life_3() -> Example:
    """A call for the domain after its VM_DESTROYED."""
    made = lived()
    regs = (abi.CALLS_UID, 0, 0, 0, 0, 0, 0, 0)
    late: list[Event] = [GuestCall(90, 0, 1, regs), El3Call(91, 0, 1, (*regs[:7], 2))]
    return example("LIFE-3", made, [*made.events[:-1], *late])


def life_4() -> Example:
    """A page of the hypervisor is still allocated for the domain."""
    made = lived()
    last = made.events[-1]
    assert isinstance(last, DomainDestroyed)
    return example("LIFE-4", made, [*made.events[:-1], replace(last, leaked_pages=1)])


def life_5() -> Example:
    """OP-TEE has no room for the domain, and it is created nevertheless."""
    made = board()
    smc = El3Call(90, 0, 0, (abi.VM_CREATED, 4, 0, 0, 0, 0, 0, 0))
    no = El3Return(91, 0, 0, (abi.SmcReturn.ENOTAVAIL, 0, 0, 0, 0, 0, 0, 0))
    return example("LIFE-5", made, [*made.events, smc, no, DomainCreated(92, 3, tee=True)])


def life_6() -> Example:
    """A probe call with a client id left in x7."""
    made = board()
    return example("LIFE-6", made, with_register(made.events, El3Call, 7, 0x5A, nth=1))


def life_7() -> Example:
    """The hypervisor is down at the end of the trace."""
    made = lived()
    bad = [*made.events, End(99, board_alive=False)]
    made.events.append(End(99, board_alive=True))
    return example("LIFE-7", made, bad)


def life_8() -> Example:
    """OP-TEE is told that a domain is gone whose vCPU it is still serving."""
    good, bad = lived(), board()
    bad.world.write(1, 0x4000_0000, INVOKE)
    bad.trap(1, 0, (abi.CALL_WITH_ARG, 0, 0x4000_0000))
    bad.hypervisor_smc((abi.VM_DESTROYED, 2, 0, 0, 0, 0, 0, 0))
    return example("LIFE-8", good, without_books(bad.events))


def life_9() -> Example:
    """A hypervisor that does not ask whether OP-TEE knows guests."""
    good = board()
    asked = index_of(good.events, El3Call, 2)
    return example("LIFE-9", good, [*good.events[:asked], *good.events[asked + 2 :]])


EXAMPLES = (life_1, life_2, life_3, life_4, life_5, life_6, life_7, life_8, life_9)

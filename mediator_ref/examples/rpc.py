# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples for RPC, cookies and addresses of the host."""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.events import El3Call, GuestCall, GuestReturn
from mediator_ref.examples.calls import INVOKE, shadow_of
from mediator_ref.examples.mutate import (
    Example,
    board,
    example,
    index_of,
    until,
    with_guest_bytes,
    with_register,
    with_shadow_bytes,
    without_books,
)
from mediator_ref.simulator.board import ARG, RPC, Board
from mediator_ref.simulator.optee import INTR, alloc, ask

COOKIE = 0xC0
RET = abi.ARG_FIELDS["ret"]


def asked(*plan: str) -> tuple[Board, tuple[int, ...]]:
    """A guest's call is suspended with a request in its RPC page; the registers it got."""
    made = board()
    regs = made.message(1, INVOKE, plan=plan)
    return made, made.serve_alloc(1, regs, cookie=COOKIE)


def rpc_shadow(made: Board) -> int:
    """Address of the shadow of the RPC page."""
    return made.mediator.domains[1].rpcs[COOKIE].shadow


def rpc_1() -> Example:
    """The guest is handed another x1 than OP-TEE's."""
    made = board()
    made.message(1, INVOKE, plan=[INTR])
    return example("RPC-1", made, with_register(made.events, GuestReturn, 1, 0x12))


def rpc_2() -> Example:
    """OP-TEE is given the guest's own page for requests."""
    made, _ = asked(ask(abi.RpcCmd.GET_TIME))
    frame, _ = made.world.lookup(1, RPC)
    assert frame is not None
    events = until(made.events, El3Call)
    return example("RPC-2", made, with_register(events, El3Call, 2, frame << 12))


def rpc_3() -> Example:
    """The request the guest finds has another parameter."""
    made, _ = asked(ask(abi.RpcCmd.GET_TIME))
    return example("RPC-3", made, with_guest_bytes(made.events, GuestReturn, RPC, abi.HEADER_SIZE + 16, b"\xff"))


def _time() -> Board:
    made, regs = asked(ask(abi.RpcCmd.GET_TIME))
    made.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1_500_000_000, 7, 0))
    made.resume(1, regs)
    return made


def rpc_4() -> Example:
    """OP-TEE finds another time than the guest gave."""
    made = _time()
    events = with_shadow_bytes(made.events, El3Call, rpc_shadow(made), abi.HEADER_SIZE + 8, b"\xff")
    return example("RPC-4", made, events)


def rpc_5() -> Example:
    """A thread that is not suspended is resumed."""
    made = board()
    made.call(1, 0, (abi.RETURN_FROM_RPC, 0, 0, 7))
    return example("RPC-5", made, with_register(made.events, GuestReturn, 0, abi.SmcReturn.OK))


def rpc_6() -> Example:
    """After an interrupt OP-TEE does not get its x1 back."""
    made = board()
    made.resume(1, made.message(1, INVOKE, plan=[INTR]), x1=0, x2=0)
    return example("RPC-6", made, with_register(made.events, El3Call, 1, 0))


def rpc_7() -> Example:
    """The guest clears x1 and x2 before it returns, as the ABI allows; the bad mediator loses the call."""
    made, regs = asked(ask(abi.RpcCmd.GET_TIME))
    made.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    made.resume(1, regs, x1=0, x2=0)
    events = until(made.events, GuestCall)
    call = events[-1]
    assert isinstance(call, GuestCall)
    return example("RPC-7", made, [*events, GuestReturn(99, 0, 1, call.regs, call.mem)])


def _shared(bad: int | None = None) -> tuple[Board, tuple[int, ...]]:
    """The guest answered SHM_ALLOC."""
    made, regs = asked(alloc())
    made.reply(1, made.buffer(1, 2, attr=abi.Attr.TMEM_OUTPUT, cookie=0x77, bad=bad))
    return made, made.resume(1, regs)


def rpc_8() -> Example:
    """The address of the guest's page list reaches OP-TEE as it is."""
    made, _ = _shared()
    event = made.events[index_of(made.events, GuestCall)]
    assert isinstance(event, GuestCall)
    page = event.mem[RPC].data
    assert page is not None
    raw = page[abi.HEADER_SIZE + 8 : abi.HEADER_SIZE + 16]
    return example("RPC-8", made, with_shadow_bytes(made.events, El3Call, rpc_shadow(made), abi.HEADER_SIZE + 8, raw))


def rpc_9() -> Example:
    """A buffer with a bad page: the guest is asked to free it, or another one."""
    made, _ = _shared(bad=1)
    return example("RPC-9", made, with_guest_bytes(made.events, GuestReturn, RPC, abi.HEADER_SIZE + 16, b"\x78"))


def rpc_10() -> Example:
    """After it freed the buffer OP-TEE hears that it could not be had, or that it could."""
    made, regs = _shared(bad=1)
    made.reply(1)
    made.resume(1, regs)
    events = with_shadow_bytes(made.events, El3Call, rpc_shadow(made), RET, bytes(4))
    return example("RPC-10", made, events)


def rpc_11() -> Example:
    """The RPC page is gone when OP-TEE asks for something: OP-TEE is resumed, or called anew."""
    made, regs = asked(ask(abi.RpcCmd.GET_TIME), ask(abi.RpcCmd.SUSPEND))
    made.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    made.balloon(1, RPC)
    made.resume(1, regs)
    return example("RPC-11", made, with_register(made.events, El3Call, 0, abi.CALL_WITH_ARG))


def rpc_12() -> Example:
    """A reply with 200 parameters."""
    made, regs = asked(ask(abi.RpcCmd.GET_TIME))
    made.world.write(1, RPC, abi.encode_arg(abi.Arg(cmd=abi.RpcCmd.GET_TIME, num_params=200)))
    made.resume(1, regs)
    return example("RPC-12", made, with_shadow_bytes(made.events, El3Call, rpc_shadow(made), RET, bytes(4)))


def rpc_13() -> Example:
    """Another call's ALLOC is answered with nothing and the cookie of a page in use; OP-TEE asks to free it."""
    good, bad = board(), board(defects=frozenset({"D13"}))
    for made in (good, bad):
        first = made.message(1, INVOKE, plan=[ask(abi.RpcCmd.GET_TIME), ask(abi.RpcCmd.GET_TIME)])
        first = made.serve_alloc(1, first, cookie=COOKIE)
        second = made.message(1, INVOKE, ipa=ARG + 4096, vcpu=1, plan=[ask(abi.RpcCmd.GET_TIME)])
        second = made.resume(1, second, vcpu=1, x1=0, x2=0, x5=COOKIE)
        made.resume(1, second, vcpu=1)
        made.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
        made.resume(1, first)
    return example("RPC-13", good, without_books(bad.events))


def rpc_14() -> Example:
    """Two calls wait at a request; when one is resumed, the shadow of the other's has another command."""
    made, _ = asked(ask(abi.RpcCmd.GET_TIME))
    second = made.message(1, INVOKE, ipa=ARG + 4096, vcpu=1, plan=[ask(abi.RpcCmd.GET_TIME)])
    second = made.serve_alloc(1, second, ipa=RPC + 4096, cookie=COOKIE + 1)
    made.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3), ipa=RPC + 4096)
    made.resume(1, second)
    return example("RPC-14", made, with_shadow_bytes(made.events, El3Call, rpc_shadow(made), 0, b"\x77"))


def cache_1() -> Example:
    """DISABLE_SHM_CACHE gave the cookie back; it is offered again and accepted, or turned down."""
    made, regs = asked(ask(abi.RpcCmd.GET_TIME))
    made.reply(1)
    made.resume(1, regs)
    made.call(1, 0, (abi.DISABLE_SHM_CACHE,))
    regs = made.message(1, INVOKE, plan=[ask(abi.RpcCmd.GET_TIME)])
    made.serve_alloc(1, regs, cookie=COOKIE)
    events = with_register(with_register(until(made.events, El3Call), El3Call, 1, 0), El3Call, 2, 0)
    return example("CACHE-1", made, events)


def iso_1() -> Example:
    """The guest finds the address of the shadow page list in its message."""
    made = board()
    made.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, made.buffer(1, 2, attr=abi.Attr.TMEM_INOUT)))
    event = made.events[index_of(made.events, El3Call)]
    assert isinstance(event, El3Call)
    at = abi.HEADER_SIZE + 8
    leaked = event.shadow[shadow_of(made.events)][at : at + 8]
    return example("ISO-1", made, with_guest_bytes(made.events, GuestReturn, ARG, at, leaked))


EXAMPLES = (
    rpc_1,
    rpc_2,
    rpc_3,
    rpc_4,
    rpc_5,
    rpc_6,
    rpc_7,
    rpc_8,
    rpc_9,
    rpc_10,
    rpc_11,
    rpc_12,
    rpc_13,
    rpc_14,
    cache_1,
    iso_1,
)

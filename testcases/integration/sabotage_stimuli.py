# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests, or the toolstack, do on boards that are sabotaged: what follows the ``yield`` is."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from framework.common.errors import GuestError
from framework.guests.xl import GuestConfig
from framework.probe.call import Parking, StdCall
from framework.probe.client import Probe, create_probe, upload
from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    Invoke,
    Message,
    OpenSession,
    RegisterShm,
    contiguous,
    rmem,
    tmem,
)
from framework.probe.ops import Call, Drive, Loop
from framework.probe.xen import balloon_out
from mediator_ref import abi
from mediator_ref.events import PAGE_SIZE
from testcases.integration.sabotage import Rig, Stimulus

NOTHING = 0x7000_0000
"""Guest address at which nothing is."""

CALLS_FROM_32_BITS = struct.pack(
    "<16I",
    0xEA00000A, *[0] * 8,  # b 0x30
    0x016F2818, 0, 0x1000,  # the mark of a zImage, where it begins (anywhere), where it ends
    0xE3000004, 0xE34F0200,  # r0 = 0xf2000004, an SMC64 call
    0xE1400070,  # hvc #0
    0xEAFFFFFE,  # b .
).ljust(0x1000, b"\0")  # fmt: skip
"""Kernel for Arm's 32-bit boot protocol (Linux Documentation/arch/arm/booting.rst)."""


def smc(*regs: int, imm: int = 0, conduit: str = "hvc") -> Stimulus:
    """One call."""

    def stimulus(rig: Rig) -> Iterator[None]:
        yield
        rig.probe.smc(*regs, imm=imm, conduit=conduit)

    return stimulus


def call(content: Message, *park: Parking, first: tuple[Message, ...] = ()) -> Stimulus:
    """One standard call, up to its end or a request; ``first``: calls before it."""

    def stimulus(rig: Rig) -> Iterator[None]:
        for before in first:
            assert rig.probe.call_with_arg(before).arg.ret == 0
        yield
        rig.probe.begin(content, park=park)

    return stimulus


def answered(where: Parking, answer: Callable[[Probe, StdCall], object]) -> Stimulus:
    """The answer to a request of OP-TEE."""

    def stimulus(rig: Rig) -> Iterator[None]:
        waiting = rig.probe.begin(OpenSession(NO_TA), park=[where])
        yield
        answer(rig.probe, waiting)

    return stimulus


def give_page(_probe: Probe, waiting: StdCall) -> None:
    waiting.give_page(park=[abi.RpcFunc.CMD])


def give_memory(_probe: Probe, waiting: StdCall) -> None:
    waiting.give_memory(park=[abi.RpcFunc.CMD])


def give_nothing(probe: Probe, waiting: StdCall) -> None:
    listed = probe.pages(1)
    probe.write(listed, NOTHING.to_bytes(8, "little"))
    waiting.answer(abi.Param(abi.RPC_ALLOC_ATTR, listed, PAGE_SIZE, 7), park=[abi.RpcFunc.CMD])


def turn_down(_probe: Probe, waiting: StdCall) -> None:
    waiting.answer(ret=abi.Tee.OUT_OF_MEMORY)


def too_many(probe: Probe, waiting: StdCall) -> None:
    probe.write(waiting.rpc_page(), abi.encode_arg(abi.Arg(cmd=abi.RpcCmd.SHM_ALLOC, num_params=200))[:32])
    waiting.resume(waiting.regs[1], waiting.regs[2])


def freed_for_xen(rig: Rig) -> Iterator[None]:
    """The answer to a request that is Xen's own."""
    waiting = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcCmd.SHM_ALLOC])
    give_nothing(rig.probe, waiting)
    yield
    waiting.resume(waiting.regs[1], waiting.regs[2], park=[abi.RpcFunc.CMD])


def misaligned(rig: Rig) -> Iterator[None]:
    page = rig.probe.pages(1)
    rig.probe.write(page, OpenSession(INVOKE_TESTS).place(rig.probe)[0])
    high, low = abi.split(page)
    yield
    rig.probe.smc(abi.CALL_WITH_ARG, high, low | 8)


def by_address(rig: Rig) -> Iterator[None]:
    data, listed = rig.probe.pages(1), rig.probe.pages(1)
    rig.probe.write(listed, data.to_bytes(8, "little"))
    yield
    rig.probe.call_with_arg(Invoke(0, 1, [contiguous(listed, PAGE_SIZE, ref=7)]))


def seventeen(rig: Rig) -> Iterator[None]:
    for ref in range(16):
        assert rig.probe.call_with_arg(RegisterShm(tmem(ref=ref))).arg.ret == 0
    yield
    rig.probe.call_with_arg(RegisterShm(tmem(ref=16)))


def cookie_again(rig: Rig) -> Iterator[None]:
    """A cookie that was given back is offered again."""
    page, cookie = rig.probe.pages(1), 0x1234_5678_9ABC_DEF0
    for number in range(2):
        rig.probe.smc(abi.FID["ENABLE_SHM_CACHE"])
        waiting = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcFunc.ALLOC])
        if number == 1:
            yield
        waiting.give_page(page, cookie=cookie, park=[abi.RpcFunc.CMD] if number else [])
        if number == 0:
            rig.probe.smc(abi.DISABLE_SHM_CACHE)


def page_gone(rig: Rig) -> Iterator[None]:
    """The argument page is given away while its call waits."""
    waiting = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcFunc.ALLOC])
    balloon_out(rig.probe, waiting.arg_page)
    yield
    rig.probe.run(Drive(waiting.regs[:8], answer=True))


def by_reference(rig: Rig) -> Iterator[None]:
    opened = rig.probe.call_with_arg(OpenSession(INVOKE_TESTS))
    assert rig.probe.call_with_arg(RegisterShm(tmem(ref=0xC0))).arg.ret == 0
    yield
    rig.probe.call_with_arg(Invoke(opened.arg.session, PTA_CMD_PARAMS, [rmem(0xBAD, 64)]))


def grown(rig: Rig) -> Iterator[None]:
    """A message without parameters, behind which are sixteen buffers as large as can be."""
    data = rig.probe.pages(1)
    params = tuple(tmem(ipas=[data] * 129, ref=ref) for ref in range(16))
    yield
    rig.probe.call_with_arg(Message(abi.MsgCmd.INVOKE_COMMAND, params=params, num_params=0))


def two_wait(rig: Rig) -> Iterator[None]:
    """One call waits at a command while another is resumed."""
    rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcCmd.SHM_ALLOC])
    other = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcFunc.ALLOC])
    yield
    other.give_page(park=[abi.RpcFunc.CMD])


def one_cookie_twice(rig: Rig) -> Iterator[None]:
    """D13: a page turned down for its cookie costs the call that has this cookie its page."""
    yield
    cookie = rig.probe.cookie()
    first = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcFunc.ALLOC]).give_page(cookie=cookie, park=[abi.RpcCmd.FS])
    second = rig.probe.begin(OpenSession(NO_TA), park=[abi.RpcFunc.ALLOC])
    second.give_page(cookie=cookie, park=[abi.RpcFunc.ALLOC, abi.RpcFunc.CMD, abi.RpcFunc.FREE])
    first.answer(ret=abi.Tee.GENERIC, park=[abi.RpcFunc.CMD])


def fatal(rig: Rig) -> Iterator[None]:
    yield
    with suppress(GuestError):  # of a board that is dead
        rig.probe.begin(OpenSession(INVOKE_TESTS), timeout_s=5)


def create(rig: Rig, name: str = "another", *, tee: bool = True) -> Probe:
    """One more probe, by its console."""
    console = rig.target.board.consoles["guest1"]
    return create_probe(rig.target.dom0, name, "guest1", console, None, tee=tee)


def created(rig: Rig) -> Iterator[None]:
    assert rig.target.dom0.xl.list()  # it is awake now
    yield
    create(rig)


def without_tee(rig: Rig) -> Iterator[None]:
    bare = create(rig, tee=False)
    yield
    bare.smc(abi.CALLS_UID)


def from_32_bits(rig: Rig) -> Iterator[None]:
    """A call of a domain whose kernel is 32-bit code: a zImage of a handful of instructions."""
    upload(rig.target.dom0, CALLS_FROM_32_BITS, "/run/medcheck-32.img")
    config = GuestConfig("narrow", "/run/medcheck-32.img", memory_mib=32, network=False)
    yield
    rig.target.dom0.xl.create_attached(config, "guest1")
    assert rig.target.dom0.xl.list()


def destroyed(rig: Rig) -> Iterator[None]:
    """The end of the first probe's domain, which has called OP-TEE."""
    rig.probe.call_with_arg(OpenSession(INVOKE_TESTS))
    assert rig.target.dom0.xl.list()
    yield
    assert rig.probe.domid is not None
    rig.target.dom0.xl.destroy(rig.probe.domid)


def other_destroyed(rig: Rig) -> Iterator[None]:
    """The end of the second probe's domain, then a call of the first one."""
    first, second = rig.probes
    assert rig.target.dom0.xl.list() and second.domid is not None
    yield
    rig.target.dom0.xl.destroy(second.domid)
    first.smc(abi.CALLS_UID)


def both_call(rig: Rig) -> Iterator[None]:
    """Both probes call again and again, so that one is in OP-TEE when the other calls."""
    calls = [Loop(500, (Call((abi.CALLS_UID,), quiet=True),))]
    yield
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda probe: probe.run(*calls), rig.probes))


def boot(_rig: Rig) -> Iterator[None]:
    """Nothing but Xen's own calls, up to the creation of dom0."""
    yield

# SPDX-License-Identifier: GPL-2.0-or-later
"""A sabotaged board for each rule that can be checked: a stimulus, and the one thing that becomes another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    Invoke,
    Message,
    OpenSession,
    Plain,
    RegisterShm,
    null_tmem,
    tmem,
)
from mediator_ref import Limits, abi
from mediator_ref.events import PAGE_SIZE
from testcases.integration import sabotage_stimuli as do
from testcases.integration.sabotage import (
    At,
    Change,
    Place,
    Sabotage,
    Scene,
    Stimulus,
    add,
    copy,
    first_reply_copy,
    message,
    page_list,
    put,
    reply,
    reply_copy,
    xens,
)

TRAP, TO_TEE, IN_TEE, SAID, HEARD, ANSWER, GONE = At
CMD, FUNC, RET, NUM_PARAMS = 0, 4, 20, 28
"""Offsets in a message."""


def word(param: int, number: int) -> int:
    """Offset of a word of a parameter: 0 attr, then the three words a, b, c (of memory: address, size, cookie)."""
    return 32 + 32 * param + 8 * number


def own_page(place: Callable[[Scene], int]) -> Change:
    """OP-TEE is given a page of the guest's, by its IPA."""

    def act(scene: Scene) -> None:
        for name, half in zip(("x1", "x2"), abi.split(scene.held.translate(place(scene)).ma or 0), strict=True):
            scene.held.write_register(name, half)

    return Change(TO_TEE, do=act)


def pointer(place: Place) -> Callable[[Scene], int]:
    """Address in the first parameter of a message."""
    return lambda scene: scene.word((place(scene)[0], place(scene)[1] + word(0, 1)))


def client_in_tee(scene: Scene) -> int:
    """Client id of the domain that is in OP-TEE."""
    return min(scene.in_tee) + 1


def no_guest(scene: Scene) -> None:
    """No guest runs on this processor, as Xen has it."""
    scene.kept = scene.word(CURRENT(scene))
    put(CURRENT, 0)(scene)


def next_page(scene: Scene) -> None:
    """Xen's buffer names the page behind the one that OP-TEE has."""
    add(xens("buffer", "xen_buf_pages"), scene.xen["xen_page_size"])(scene)


UID, OPEN = do.smc(abi.CALLS_UID), do.call(OpenSession(INVOKE_TESTS))
REGISTER = do.call(RegisterShm(tmem(ref=0xC0)))
ASKS = do.call(OpenSession(NO_TA), abi.RpcCmd.SHM_ALLOC)
OFFERED = do.call(OpenSession(NO_TA), abi.RpcFunc.ALLOC)
ENDED, ASKED, REQUESTED, RESUMED = 0, 0xFFFF0000, abi.RPC_CMD_RETURN, abi.RETURN_FROM_RPC
"""x0 of the end of a call, of requests for a page and for a command, and of the call that returns from one."""
BOOTED = Change(IN_TEE, do=lambda scene: scene.held.stop(), on=abi.VM_CREATED)
"""The board is stopped when Xen tells OP-TEE of dom0."""
FIRST_CLIENT = 2
CURRENT = xens("cpu", "xen_curr_vcpu")


def S(stimulus: Stimulus, *changes: Change, **rest: object) -> Sabotage:  # noqa: N802 - a row of the table
    return Sabotage(stimulus, changes, **rest)  # type: ignore[arg-type]


SABOTAGES: Mapping[str, Sabotage] = {
    "DISP-1": S(do.smc(abi.CALLS_UID, imm=1, conduit="smc"), patch="any-immediate"),
    "DISP-2": S(do.smc(abi.GET_THREAD_COUNT), Change(TRAP, {"x0": abi.CALLS_UID})),
    "DISP-3": S(do.from_32_bits, Change(ANSWER, {"x0": 0}, on=abi.U32)),
    "DISP-4": S(do.without_tee, Change(ANSWER, {"x0": 0})),
    "DISP-5": S(OPEN, Change(HEARD, {"x0": abi.RPC_CMD_RETURN, "x1": 0, "x2": 0xBAD}, on=ENDED)),
    "REGS-1": S(UID, Change(ANSWER, {"x9": 7})),
    "REGS-2": S(OPEN, Change(SAID, {"x0": (1 << 64) - 1}, on=ENDED), Change(ANSWER, {"x5": 7})),
    "CID-1": S(UID, Change(TO_TEE, {"x7": 1})),
    "FAST-1": S(UID, Change(TO_TEE, {"x3": 7})),
    "FAST-2": S(UID, Change(ANSWER, {"x2": 7})),
    "FAST-3": S(do.smc(abi.FID["CALLS_COUNT"]), Change(ANSWER, {"x0": 7})),
    "CAPS-1": S(do.smc(abi.EXCHANGE_CAPABILITIES, 0), Change(TO_TEE, {"x1": 0x10})),
    "CAPS-2": S(do.smc(abi.EXCHANGE_CAPABILITIES, 0), Change(ANSWER, {"x1": 0x15})),
    "CACHE-1": S(do.cookie_again, Change(TO_TEE, {"x1": 0, "x2": 0}, on=RESUMED)),
    "STD-1": S(OPEN, Change(TRAP, {"x0": abi.FID["GET_SHM_CONFIG"]}), Change(ANSWER, {"x0": 1})),
    "STD-2": S(do.misaligned, Change(TRAP, {"x2": lambda scene: scene.trap[2] & ~8})),
    "STD-3": S(
        do.call(Message(abi.MsgCmd.OPEN_SESSION, num_params=128)), Change(TRAP, do=put(message, 0, NUM_PARAMS, 4))
    ),
    "STD-4": S(do.call(Message(6)), Change(TRAP, do=put(message, abi.MsgCmd.OPEN_SESSION, CMD, 4))),
    "STD-5": S(OPEN, Change(TO_TEE, {"x3": 0})),
    "STD-6": S(OPEN, Change(TO_TEE, do=put(copy, 7, FUNC, 4))),
    "STD-7": S(OPEN, own_page(lambda scene: scene.message)),
    "STD-8": S(OPEN, Change(ANSWER, {"x0": 5}, on=ENDED)),
    "STD-9": S(OPEN, Change(ANSWER, do=put(message, 7, FUNC, 4), on=ENDED)),
    "STD-10": S(do.page_gone, Change(ANSWER, {"x0": 6}, on=ENDED)),
    "STD-11": S(OPEN, Change(IN_TEE, do=put(copy, 7, FUNC, 4))),
    "STD-12": S(
        do.call(Invoke(0, 1, [Plain(abi.Param(abi.Attr.VALUE_INPUT | 1 << 63))])),
        Change(TO_TEE, do=put(copy, abi.Attr.VALUE_INPUT | 1 << 62, word(0, 0))),
    ),
    "MEM-1": S(REGISTER, Change(TRAP, do=put(message, abi.Attr.TMEM_OUTPUT, word(0, 0)))),
    "MEM-2": S(REGISTER, Change(TRAP, do=add(page_list, PAGE_SIZE))),
    "MEM-3": S(
        do.call(RegisterShm(tmem(ipas=[do.NOTHING], ref=0xC0))),
        Change(TRAP, do=put(page_list, lambda scene: scene.message)),
    ),
    "MEM-4": S(do.by_address, Change(TRAP, do=put(message, abi.Attr.TMEM_INOUT | abi.ATTR_NONCONTIG, word(0, 0)))),
    "MEM-5": S(
        do.call(RegisterShm(tmem(size=130 * PAGE_SIZE, ref=0xC0))), Change(TRAP, do=put(message, PAGE_SIZE, word(0, 2)))
    ),
    "MEM-6": S(do.seventeen, Change(TRAP, do=put(message, abi.Attr.NONE, word(0, 0)))),
    # Sixteen buffers of 129 pages do not come near to Xen's limit: the check is told of a lower one.
    "MEM-7": S(do.call(RegisterShm(tmem(pages=2, ref=0xC0))), limits=Limits(total_pages=2)),
    "MEM-8": S(
        do.call(RegisterShm(tmem(ref=0xC0)), first=(RegisterShm(tmem(ref=0xC0)),)),
        Change(TRAP, do=put(message, 0xC1, word(0, 3))),
    ),
    "MEM-9": S(do.call(Invoke(0, 1, [null_tmem()])), Change(TO_TEE, do=put(copy, 0x1000, word(0, 1)))),
    "MEM-10": S(REGISTER, Change(ANSWER, do=put(xens("page", "xen_page_owner"), 0), on=ENDED)),
    "MEM-11": S(do.by_reference, Change(TRAP, do=put(message, 0xC0, word(0, 3)))),
    "RPC-1": S(OFFERED, Change(ANSWER, {"x3": 7}, on=ASKED)),
    "RPC-2": S(
        do.answered(abi.RpcFunc.ALLOC, do.give_page), own_page(lambda scene: scene.trap[1] << 32 | scene.trap[2])
    ),
    "RPC-3": S(ASKS, Change(ANSWER, do=put(reply, 7, 2048), on=REQUESTED)),
    "RPC-4": S(
        do.answered(abi.RpcCmd.SHM_ALLOC, do.turn_down), Change(TRAP, do=put(reply, 0xFFFF0000, RET, 4), on=RESUMED)
    ),
    "RPC-5": S(do.smc(abi.RETURN_FROM_RPC, 0, 0, 1), Change(ANSWER, {"x0": 0})),
    "RPC-6": S(do.answered(abi.RpcFunc.ALLOC, do.give_page), Change(TO_TEE, {"x6": 7}, on=RESUMED)),
    "RPC-7": S(
        do.answered(abi.RpcCmd.SHM_ALLOC, do.turn_down),
        Change(TRAP, {"x1": 0, "x2": 0}, on=RESUMED),
        Change(ANSWER, {"x1": lambda scene: scene.trap[1], "x2": lambda scene: scene.trap[2]}),
    ),
    "RPC-8": S(
        do.answered(abi.RpcCmd.SHM_ALLOC, do.give_memory),
        Change(TO_TEE, do=put(reply_copy, pointer(reply), word(0, 1)), on=RESUMED),
    ),
    "RPC-9": S(do.answered(abi.RpcCmd.SHM_ALLOC, do.give_nothing), Change(ANSWER, {"x1": 7}, on=REQUESTED)),
    "RPC-10": S(do.freed_for_xen, Change(TO_TEE, do=put(reply_copy, 0, RET, 4), on=RESUMED)),
    "RPC-11": S(
        OPEN,
        Change(SAID, {"x0": abi.RPC_CMD_RETURN, "x1": 0, "x2": 0xBAD}, on=ENDED),
        Change(TO_TEE, {"x0": abi.RETURN_FROM_RPC, "x6": 7}),
    ),
    "RPC-12": S(
        do.answered(abi.RpcCmd.SHM_ALLOC, do.too_many), Change(TO_TEE, do=put(reply_copy, 0, RET, 4), on=RESUMED)
    ),
    "RPC-13": S(do.one_cookie_twice, mended="D13"),
    "RPC-14": S(do.two_wait, Change(TO_TEE, do=put(first_reply_copy, 7, FUNC, 4), on=RESUMED)),
    "FETCH-1": S(
        do.call(Invoke(0, 1, [tmem(), tmem()])),
        Change(TRAP, do=put(message, pointer(message), word(1, 1))),
    ),
    "FETCH-2": S(
        do.call(Invoke(0, 1, [tmem(pages=2, size=PAGE_SIZE)])),
        Change(TRAP, do=put(message, 2 * PAGE_SIZE, word(0, 2))),
        Change(TO_TEE, do=put(message, PAGE_SIZE, word(0, 2))),
    ),
    "TIME-1": S(do.grown, Change(TRAP, do=put(message, 16, NUM_PARAMS, 4))),
    "ISO-1": S(OPEN, Change(ANSWER, {"x5": lambda scene: scene.copy}, on=ENDED)),
    "LIFE-1": S(do.created, Change(TO_TEE, {"x2": 7}, on=abi.VM_CREATED)),
    "LIFE-2": S(do.destroyed, Change(TO_TEE, {"x2": 7}, on=abi.VM_DESTROYED)),
    "LIFE-3": S(do.other_destroyed, Change(TO_TEE, {"x1": FIRST_CLIENT}, on=abi.VM_DESTROYED), checkpoint="probe_pair"),
    "LIFE-4": S(do.destroyed, Change(GONE, do=add(xens("domain", "xen_domain_pages"), 1, 4))),
    "LIFE-5": S(do.created, Change(TO_TEE, on=abi.VM_CREATED), Change(SAID, {"x0": 7}), Change(HEARD, {"x0": 0})),
    "LIFE-6": S(
        do.boot,
        Change(TO_TEE, {"x1": 7}, on=abi.GET_THREAD_COUNT),
        BOOTED,
        boots=True,
    ),
    "LIFE-7": S(do.fatal, Change(TRAP, do=put(xens("optee", "xen_tee_calls"), 1, 8))),
    # While one guest is in OP-TEE, the other's call becomes one of Xen's own, on a processor that runs no guest.
    "LIFE-8": S(
        do.both_call,
        Change(TO_TEE, {"x0": abi.VM_DESTROYED, "x1": client_in_tee, "x7": 0}, no_guest, when=lambda s: bool(s.in_tee)),
        Change(IN_TEE, do=put(CURRENT, lambda scene: scene.kept)),
        checkpoint="probe_pair",
    ),
    "LIFE-9": S(
        do.boot,
        Change(TO_TEE, on=abi.GET_THREAD_COUNT),
        Change(SAID, {"x0": 7}),
        Change(HEARD, {"x0": 0}),
        BOOTED,
        boots=True,
    ),
    "BOOK-1": S(REGISTER, Change(ANSWER, do=add(xens("optee", "xen_tee_buf_pages"), 1, 4), on=ENDED)),
    "BOOK-2": S(REGISTER, Change(ANSWER, do=add(xens("buffer", "xen_buf_cookie"), 1), on=ENDED)),
    "BOOK-3": S(ASKS, Change(ANSWER, do=add(xens("rpc", "xen_rpc_cookie"), 1), on=REQUESTED)),
    "BOOK-4": S(OFFERED, Change(ANSWER, do=add(xens("call", "xen_call_thread"), 1, 4), on=ASKED)),
    "BOOK-5": S(
        do.destroyed, Change(GONE, do=put(xens("domain", "xen_domain_tee"), lambda scene: scene.held.event.regs[0]))
    ),
    "BOOK-6": S(REGISTER, Change(ANSWER, do=next_page, on=ENDED)),
    "REF-1": S(REGISTER, Change(ANSWER, do=add(xens("page", "xen_page_count"), -1), on=ENDED)),
    "REF-2": S(REGISTER, Change(TO_TEE, do=add(xens("page", "xen_page_count"), 1))),
    "HEAP-1": S(REGISTER, Change(ANSWER, do=add(xens("", "xen_heap_free"), -5), on=ENDED)),
    "HEAP-2": S(do.destroyed, Change(TO_TEE, do=add(xens("", "xen_heap_free"), -5), on=abi.VM_DESTROYED)),
}
"""By rule."""

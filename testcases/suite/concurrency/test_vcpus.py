# SPDX-License-Identifier: GPL-2.0-or-later
"""Several virtual CPUs of one domain in the mediator at once."""

from __future__ import annotations

import pytest

from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    Invoke,
    OpenSession,
    tmem,
    value,
)
from framework.probe.ops import Call, Drive, Join, Loop, Op, Read, Run, SetFlag, WaitFlag, Write
from medcheck import Probe
from mediator_ref.abi import (
    CALL_WITH_ARG,
    FID,
    RETURN_FROM_RPC,
    RpcFunc,
    SmcReturn,
    decode_arg,
    is_rpc,
    split,
)

ROUNDS = 50


def meet(index: int, count: int) -> tuple[Op, ...]:
    """A barrier of ``count`` vCPUs on flag ``index``."""
    return SetFlag(index, 1, add=True), WaitFlag(index, count)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R5", "R14", "STD-6")
def test_r14_two_calls_at_once(smp_probe: Probe) -> None:
    """Two vCPUs invoke a TA at the same time, again and again: each gets its own result in its own page."""
    session = smp_probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    pages = [smp_probe.pages(1), smp_probe.pages(1)]
    bodies = []
    for number, page in enumerate(pages):
        content, _ = Invoke(session, PTA_CMD_PARAMS, [value(100 * (number + 1), 7)]).place(smp_probe)
        bodies.append(
            (
                Write(page, content),
                *meet(1, 2),
                Loop(ROUNDS, (Drive((CALL_WITH_ARG, *split(page)), quiet=True),)),
                Read(page, 4096),
            )
        )
    *_, own, joined = smp_probe.run(SetFlag(1, 0), Run(1, bodies[1]), *bodies[0], Join(1, 60.0), timeout_s=90)
    results = [decode_arg(own.data), decode_arg(joined.inner[-1].data)]
    assert [(arg.ret, arg.params[0].a) for arg in results] == [
        (0, 100 * (number + 1) + 7 * ROUNDS) for number in range(2)
    ]


@pytest.mark.mc_rule("R12", "R14", "RPC-1")
def test_r12_a_call_moves_to_another_vcpu(smp_probe: Probe) -> None:
    """A call that one vCPU began is resumed by another: the thread is the domain's, not the vCPU's."""
    call = smp_probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
    parked = call.regs[:8]
    *_, joined = smp_probe.run(Run(1, (Drive(parked, answer=True), Read(call.arg_page, 4096))), Join(1, 60.0))
    moved, page = joined.inner
    assert moved.x0 == 0
    assert decode_arg(page.data).ret == TEE_ITEM_NOT_FOUND


@pytest.mark.mc_core
@pytest.mark.mc_rule("R12", "R14", "RPC-1", "RPC-5")
def test_r12_a_call_that_runs_cannot_be_resumed(smp_probe: Probe) -> None:
    """While one vCPU's calls run in OP-TEE, no thread that it never handed out can be resumed by another: ERESUME.

    -1 is what the mediator calls the thread of a call that runs.
    """
    probe = smp_probe
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    call = probe.begin(Invoke(session, PTA_CMD_PARAMS, [tmem(pages=129)]))
    busy = Loop(ROUNDS, (Drive((CALL_WITH_ARG, *split(call.arg_page)), quiet=True),))
    threads = (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0x7FFF_FFFF, 0xFFFF)
    tries = [Call((RETURN_FROM_RPC, 0, 0, thread)) for thread in threads] * 10
    records = probe.run(SetFlag(3, 0), Run(1, (*meet(3, 2), busy)), *meet(3, 2), *tries, Join(1, 60.0), timeout_s=90)
    answers = [record.x0 for record in records if record.regs]
    assert answers == [SmcReturn.ERESUME] * len(tries)


@pytest.mark.mc_core
@pytest.mark.mc_rule("R12", "R14", "RPC-1", "RPC-5")
def test_r12_only_one_of_two_resumes_a_call(smp_probe: Probe) -> None:
    """Two vCPUs resume the same thread at the same time: one goes on with the call, the other gets ERESUME."""
    for attempt in range(10):
        call = smp_probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC])
        page = split(smp_probe.pages(1))
        resume = Call((RETURN_FROM_RPC, *page, call.thread, *page))
        *_, mine, joined = smp_probe.run(
            SetFlag(2, 0), Run(1, (*meet(2, 2), resume)), *meet(2, 2), resume, Join(1, 20.0), timeout_s=60
        )
        answers = [mine, joined.inner[-1]]
        refused = [record for record in answers if record.x0 == SmcReturn.ERESUME]
        going_on = [record for record in answers if is_rpc(record.x0)]
        # The second, if it came after the first was back in the guest, resumed a call that waits again.
        assert len(refused) + len(going_on) == 2, attempt
        assert going_on, attempt
        call.regs = going_on[-1].regs if len(going_on) == 1 else max(going_on, key=lambda record: record.regs[0]).regs
        call.rpc_pages[(page[0] << 32) | page[1]] = (page[0] << 32) | page[1]
        if len(refused) == 1:
            smp_probe.run(*_known(page))
            call.finish()
            assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND), attempt
        else:
            return


def _known(page: tuple[int, int]) -> tuple[Op, ...]:
    from framework.probe.ops import RpcPage

    ipa = page[0] << 32 | page[1]
    return (RpcPage(ipa, ipa),)


@pytest.mark.mc_rule("R5", "R7", "R14")
def test_r5_fast_calls_while_a_call_waits(smp_probe: Probe) -> None:
    """One vCPU's call is suspended in the guest; another's calls are answered meanwhile, each within a second."""
    with smp_probe.parked_at(RpcFunc.ALLOC) as call:
        *_, joined = smp_probe.run(Run(1, tuple(Call((FID["CALLS_UID"],)) for _ in range(20))), Join(1, 60.0))
        assert all(record.x0 == 0x384FB3E0 for record in joined.inner)
        assert max(record.ticks for record in joined.inner) < 62_500_000
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)

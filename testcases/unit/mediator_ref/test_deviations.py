# SPDX-License-Identifier: GPL-2.0-or-later
"""Each listed deviation is recognized by its condition when it is there, and reported as stale when it is not.

The model's mediator has the listed defects on request; the stimulus is the one the list names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mediator_ref import DEVIATIONS, RULES, Limits, Outcome, State, Verdict, abi, step
from mediator_ref.books import frame_word, mfn_of
from mediator_ref.deviations import Mismatch
from mediator_ref.events import El3Call, El3Return, End, GuestReturn, PageKind
from mediator_ref.examples.mutate import with_register, with_shadow_bytes
from mediator_ref.knowledge import TrackedDomain
from mediator_ref.rules import RuleId
from mediator_ref.simulator.board import ARG, DATA, RPC, Board
from mediator_ref.simulator.optee import INTR, TOO_LONG, UNKNOWN_COOKIE, Optee, alloc, ask

INVOKE = abi.message(abi.MsgCmd.INVOKE_COMMAND)
NONCONTIG = abi.Attr.TMEM_INPUT | abi.ATTR_NONCONTIG


def register(board: Board, cookie: int = 0xB0, pages: int = 1, bad: int | None = None, ret: int = 0) -> None:
    parameter = board.buffer(1, pages, cookie=cookie, bad=bad)
    board.message(1, abi.message(abi.MsgCmd.REGISTER_SHM, parameter, ret=ret))


def asked(board: Board, *plan: str) -> tuple[int, ...]:
    return board.serve_alloc(1, board.message(1, INVOKE, plan=plan))


def d1(board: Board) -> None:
    regs = asked(board, alloc())
    board.reply(1, abi.Param(abi.Attr.TMEM_OUTPUT, 0x1234_5000, 4096, 0x77))
    board.resume(1, regs)


def d2(board: Board) -> None:
    register(board)
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, abi.Param(NONCONTIG, 0, 0, 0xB0)))
    register(board)


def d2_balloon(board: Board) -> None:
    register(board)
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, abi.Param(NONCONTIG, 0, 0, 0xB0)))
    board.balloon(1, DATA)


def d3(board: Board) -> None:
    for _ in range(3):
        register(board, pages=4, bad=0)
    register(board, pages=4)


def d4(board: Board) -> None:
    for _ in range(2):
        regs = asked(board, ask(abi.RpcCmd.GET_TIME))
        board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
        board.resume(1, regs, x1=0, x2=0)
        board.call(1, 0, (abi.DISABLE_SHM_CACHE,))
    board.message(1, INVOKE)


def d5(board: Board) -> None:
    plain = abi.Param(abi.Attr.TMEM_INPUT, DATA, 64, 1)
    for cookie in range(16):
        board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, cookie=cookie), plain))
    register(board, 0x99)


def d6(board: Board) -> None:
    board.message(1, INVOKE, plan=[UNKNOWN_COOKIE])


def d7(board: Board) -> None:
    regs = board.message(1, INVOKE, plan=[INTR])
    board.world.protect(1, ARG, PageKind.RAM_RO)
    board.resume(1, regs)


def d8(board: Board) -> None:
    board.message(1, abi.encode_arg(abi.Arg(cmd=1, num_params=128)))


def d9(board: Board) -> None:
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 1, offset=4095, size=abi.U64)))
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 1, size=(1 << 44) + 4096, cookie=2)))


def d11_hidden(board: Board) -> None:
    regs = asked(board, alloc())
    board.reply(1, board.buffer(1, 2, attr=abi.Attr.TMEM_OUTPUT), cmd=abi.RpcCmd.GET_TIME)
    board.resume(1, regs)


def d11_claimed(board: Board) -> None:
    regs = asked(board, ask(abi.RpcCmd.GET_TIME))
    board.reply(1, board.buffer(1, 2, attr=abi.Attr.TMEM_OUTPUT), cmd=abi.RpcCmd.SHM_ALLOC)
    board.resume(1, regs)


def d12(board: Board) -> None:
    board.optee.threads = 0
    register(board)
    board.optee.threads = 2
    register(board)


def d12_unregister(board: Board) -> None:
    register(board)
    board.optee.threads = 0
    board.message(1, abi.message(abi.MsgCmd.UNREGISTER_SHM, abi.Param(abi.Attr.RMEM_INPUT, 0, 0, 0xB0)))
    board.optee.threads = 2
    register(board)


def d13(board: Board) -> None:
    first = board.message(1, INVOKE, plan=[ask(abi.RpcCmd.GET_TIME), ask(abi.RpcCmd.GET_TIME)])
    first = board.serve_alloc(1, first)
    second = board.message(1, INVOKE, ipa=ARG + 4096, vcpu=1, plan=[ask(abi.RpcCmd.GET_TIME)])
    second = board.resume(1, second, vcpu=1, x1=0, x2=0, x5=0xC0)
    board.resume(1, second, vcpu=1)
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.resume(1, first)


def d14(board: Board) -> None:
    register(board)
    regs = asked(board, alloc())
    board.reply(1, abi.Param(abi.RPC_ALLOC_ATTR, 0, 4096, 0xB0))
    regs = board.resume(1, regs)
    board.reply(1)
    board.resume(1, regs)
    register(board)


def d18(board: Board) -> None:
    regs = asked(board, ask(abi.RpcCmd.GET_TIME))
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.resume(1, regs)


def d15(board: Board) -> None:
    regs = asked(board, alloc(), ask(abi.RpcCmd.GET_TIME))
    board.reply(1, board.buffer(1, 2, attr=abi.Attr.TMEM_OUTPUT, bad=0))
    regs = board.resume(1, regs)
    board.world.write(1, RPC, abi.encode_arg(abi.Arg(cmd=abi.RpcCmd.SHM_FREE, num_params=200)))
    regs = board.resume(1, regs)
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.resume(1, regs)


def d16(board: Board) -> None:
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, abi.Param(abi.Attr.VALUE_INOUT | 1 << 40, 1, 2, 3)))


def d17(board: Board) -> None:
    board.optee.foreign = abi.U64
    board.message(1, INVOKE)


def d19(board: Board) -> None:
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, cookie=0xB0)), plan=[INTR])
    named = abi.Param(abi.Attr.RMEM_INPUT, 0, 64, 0xB0)
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, named), ipa=ARG + 4096, vcpu=1)


def d20(board: Board) -> None:
    regs = asked(board, TOO_LONG)
    if abi.is_rpc(regs[0]):
        board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
        board.resume(1, regs)


def d21(board: Board) -> None:
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, abi.Param(abi.Attr.RMEM_INOUT, 28, 4, 0)))


Stimulus = Callable[[Board], None]
CASES: list[tuple[str, str, Stimulus]] = [
    ("D1", "D1", d1),
    ("D2", "D2", d2),
    ("D3", "D3", d3),
    ("D4", "D4", d4),
    ("D5", "D5", d5),
    ("D6", "D6", d6),
    ("D7", "D7", d7),
    ("D8", "D8", d8),
    ("D9", "D9", d9),
    ("D11", "D11", d11_hidden),
    ("D11", "D11", d11_claimed),
    ("D12", "D2", d12),
    ("D12", "D2", d12_unregister),
    ("D13", "D13", d13),
    ("D14", "D14", d14),
    ("D15", "D15", d15),
    ("D16", "D16", d16),
    ("D17", "D17", d17),
    ("D18", "D18", d18),
    ("D19", "D19", d19),
    ("D21", "D21", d21),
    ("D20", "D20", d20),
]
LIMITS = {"D3": Limits(total_pages=16)}


def judge(board: Board) -> tuple[State, list[Verdict]]:
    state = State(limits=board.limits)
    found: list[Verdict] = []
    for event in board.events:
        verdicts = step(state, event)
        found += [v for v in verdicts if v.outcome is not Outcome.NOT_CHECKED]
    return state, found


def booted(defects: frozenset[str], limits: Limits | None = None) -> Board:
    board = Board(defects=defects, limits=limits or Limits())
    board.create(0)
    board.create(1)
    return board


@pytest.mark.parametrize(("deviation", "defect", "stimulus"), CASES, ids=[c[2].__name__ for c in CASES])
def test_defect_is_reported_as_its_deviation(deviation: str, defect: str, stimulus: Stimulus) -> None:
    board = booted(frozenset({defect}), LIMITS.get(deviation))
    stimulus(board)
    state, verdicts = judge(board)
    assert verdicts, "the defect left no trace"
    assert {(v.outcome, v.deviation) for v in verdicts} == {(Outcome.DEVIATION, deviation)}, list(map(str, verdicts))
    assert all(v.rule in DEVIATIONS[deviation].rules for v in verdicts)
    assert deviation not in state.tally.stale_deviations()


@pytest.mark.parametrize(("deviation", "defect", "stimulus"), CASES, ids=[c[2].__name__ for c in CASES])
def test_without_the_defect_nothing_is_reported_but_the_stale_entry(
    deviation: str, defect: str, stimulus: Stimulus
) -> None:
    del defect
    board = booted(frozenset(), LIMITS.get(deviation))
    stimulus(board)
    state, verdicts = judge(board)
    assert not verdicts, list(map(str, verdicts))
    assert deviation in state.tally.stale_deviations()


def test_a_probe_with_registers_left_has_no_excuse() -> None:
    board = Board()
    board.events[1] = replace(board.events[1], regs=(abi.CALLS_UID, 0, 0, 0, 0, 0, 0, 9))  # type: ignore[call-arg]
    assert isinstance(board.events[1], El3Call)
    _, verdicts = judge(board)
    assert [(v.rule, v.outcome, v.deviation) for v in verdicts] == [("LIFE-6", Outcome.FAIL, None)]


def test_what_no_run_has_shown_excuses_nothing() -> None:
    assert [deviation.id for deviation in DEVIATIONS.values() if not deviation.seen_in] == []


def test_page_released_after_d2_is_d2() -> None:
    board = booted(frozenset({"D2"}))
    d2_balloon(board)
    _, verdicts = judge(board)
    assert [(v.rule, v.deviation) for v in verdicts] == [("BOOK-2", "D2"), ("BOOK-6", "D2"), ("MEM-10", "D2")]


def test_a_refusal_because_of_d5_is_not_taken_for_one_of_the_references_in_the_message() -> None:
    """A failed call left cookie 1; the next with it is refused for that, though it names memory by reference as well,
    and leaves cookie 2."""
    board = booted(frozenset({"D5"}))
    plain = abi.Param(abi.Attr.TMEM_INPUT, DATA, 64, 1)
    named = abi.Param(abi.Attr.RMEM_INPUT, 0, 64, 1)
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, cookie=1), plain))
    for _ in range(2):
        parameters = board.buffer(1, cookie=2), board.buffer(1, cookie=1), named
        board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, *parameters))
    _, verdicts = judge(board)
    assert {v.deviation for v in verdicts} == {"D5"}, list(map(str, verdicts))


def test_a_page_that_was_given_away_says_nothing_when_its_last_reference_is_gone() -> None:
    """It is another's then, and may be free or counted by other rules."""
    board = booted(frozenset())
    register(board)
    board.balloon(1, DATA)
    board.message(1, INVOKE)
    board.destroy(1)
    events = list(board.events)
    at, end = next(
        (n, e) for n, e in enumerate(events) if isinstance(e, El3Call) and e.regs[0] == abi.VM_DESTROYED and e.regs[1]
    )
    assert end.books is not None
    held = [e.books.lists.buffers for e in events if isinstance(e, GuestReturn) and e.books and e.books.lists]
    mfn = mfn_of(held[-1][0].frames[0])
    assert mfn is not None
    events[at] = replace(end, books=replace(end.books, frames=(frame_word(mfn, 0, own=False),)))
    board.events[:] = events
    _, verdicts = judge(board)
    assert not [v for v in verdicts if v.rule in ("REF-1", "REF-2")], list(map(str, verdicts))


def test_pages_of_a_wrong_answer_count_for_d3_where_its_model_foresaw_them() -> None:
    """A failed translation whose answer has another fault besides: neither it nor the next is an alarm of BOOK-1."""
    board = booted(frozenset({"D3"}))
    for _ in range(3):
        register(board, pages=2, bad=0)
    board.events = with_register(board.events, GuestReturn, 0, abi.SmcReturn.EBADADDR, nth=-2)
    _, verdicts = judge(board)
    assert Outcome.FAIL in {v.outcome for v in verdicts}, "the answer was not wrong"
    books = [(v.outcome, v.deviation) for v in verdicts if v.rule == "BOOK-1"]
    assert books == [(Outcome.DEVIATION, "D3")] * 3


@pytest.mark.parametrize(("cookie", "deviation"), [(0xB0, "D19"), (0xB1, None)])
def test_memory_of_an_ended_call_by_reference_is_d19(
    monkeypatch: pytest.MonkeyPatch, cookie: int, deviation: str | None
) -> None:
    """An OP-TEE that kept it goes on (O2); that it accepts a cookie that was never used has no excuse."""
    monkeypatch.setattr(Optee, "_accepts", lambda *_: True)
    board = booted(frozenset({"D19"}))
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, cookie=0xB0)))
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, abi.Param(abi.Attr.RMEM_INPUT, 0, 64, cookie)))
    _, verdicts = judge(board)
    assert [(v.rule, v.deviation) for v in verdicts] == [("MEM-11", deviation)]


def test_ground_truth_agrees_that_d1_and_d11_break_isolation() -> None:
    for defect, stimulus in (("D1", d1), ("D11", d11_hidden)):
        board = booted(frozenset({defect}))
        stimulus(board)
        assert board.world.violations
        clean = booted(frozenset())
        stimulus(clean)
        assert not clean.world.violations


def test_a_defect_outside_the_list_is_a_failure() -> None:
    board = booted(frozenset({"D8"}))
    d8(board)
    state = State(deviations={name: d for name, d in DEVIATIONS.items() if name != "D8"})
    for event in board.events:
        step(state, event)
    assert state.tally.outcome("STD-3") is Outcome.FAIL


def test_the_condition_matters_not_only_the_rule() -> None:
    """x0 wrong in another way than D8 says is a new finding."""
    board = booted(frozenset())
    d8(board)
    last = board.events[-1]
    regs = (5, *last.regs[1:])  # type: ignore[union-attr]
    board.events[-1] = replace(last, regs=regs)  # type: ignore[call-arg]
    state, verdicts = judge(board)
    assert [(v.rule, v.outcome) for v in verdicts] == [("STD-3", Outcome.FAIL)]
    assert state.tally.outcome("STD-3") is Outcome.FAIL


def test_a_refusal_without_an_error_is_not_d9() -> None:
    """A mediator with D9 passes the message on; one that answers it with success by itself has another defect."""
    board = booted(frozenset())
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 1, offset=4095, size=abi.U64)))
    last = board.events[-1]
    assert isinstance(last, GuestReturn)
    view = last.mem[ARG]
    assert view.data is not None
    page = view.data[:20] + bytes(8) + view.data[28:]
    board.events[-1] = replace(last, mem={ARG: replace(view, data=page)})
    _, verdicts = judge(board)
    assert [(v.rule, v.outcome, v.deviation) for v in verdicts] == [("MEM-5", Outcome.FAIL, None)]


def test_deviations_name_rules_that_exist_and_disclosure_is_marked() -> None:
    for deviation in DEVIATIONS.values():
        assert set(deviation.rules) <= set(RULES)
        assert deviation.condition
        assert deviation.stimulus
    isolation = {"D1", "D2", "D11", "D12", "D13", "D14", "D19", "D20", "D21"}
    assert {d.id for d in DEVIATIONS.values() if d.disclosure} == isolation
    assert {f"D{i}" for i in range(1, 10)} <= set(DEVIATIONS)


def ended(board: Board, alive: bool | None, *, destroyed: bool) -> list[tuple[str, Outcome, str | None]]:
    """What is said of LIFE-7 at the end of a trace, in which domain 1 may have told OP-TEE of its end."""
    if destroyed:
        board.destroy(1)
    state = State(limits=board.limits)
    for event in board.events:
        step(state, event)
    last = board.events[-1].seq
    return [(v.rule, v.outcome, v.deviation) for v in step(state, End(last + 1, alive)) if v.rule == "LIFE-7"]


@pytest.mark.parametrize(("deviation", "stimulus"), [("D3", d3), ("D4", d4)])
@pytest.mark.parametrize("destroyed", [False, True])
def test_a_hypervisor_that_asserts_over_leftovers_has_the_deviation(
    deviation: str, stimulus: Stimulus, destroyed: bool
) -> None:
    board = booted(frozenset({deviation}), LIMITS.get(deviation))
    stimulus(board)
    assert ended(board, False, destroyed=destroyed) == [("LIFE-7", Outcome.DEVIATION, deviation)]


@pytest.mark.parametrize("stimulus", [d4, d8])
def test_a_hypervisor_that_stops_without_leftovers_does_not_conform(stimulus: Stimulus) -> None:
    board = booted(frozenset())
    stimulus(board)
    assert ended(board, False, destroyed=True) == [("LIFE-7", Outcome.FAIL, None)]
    assert ended(booted(frozenset()), True, destroyed=True) == []


def test_functions_of_ffa_are_unknown_and_never_reach_el3() -> None:
    ffa_version = 0x84000063
    board = booted(frozenset())
    board.call(1, 0, (ffa_version, 0x10001))
    state, verdicts = judge(board)
    assert not verdicts
    assert state.tally.passes["DISP-2"] == 1
    answer = board.events.pop()
    assert isinstance(answer, GuestReturn)
    board.events.append(El3Call(answer.seq, 0, 1, (ffa_version, 0x10001, 0, 0, 0, 0, 0, 2)))
    _, verdicts = judge(board)
    assert [(v.rule, v.outcome) for v in verdicts] == [("DISP-2", Outcome.FAIL)]
    own = booted(frozenset())
    own.hypervisor_smc((ffa_version, 0x10001, 0, 0, 0, 0, 0, 0), domid=None)
    assert not judge(own)[1]


@pytest.mark.parametrize("writes", [True, False])
def test_whether_a_request_is_written_into_read_only_memory_is_the_versions(writes: bool) -> None:
    board = booted(frozenset(), Limits(writes_read_only=writes))
    regs = asked(board, ask(abi.RpcCmd.GET_TIME), ask(abi.RpcCmd.GET_TIME))
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.world.protect(1, RPC, PageKind.RAM_RO)
    board.resume(1, regs)
    state, verdicts = judge(board)
    assert not verdicts
    assert bool(state.tally.passes["RPC-11"]) is not writes
    other = State(limits=Limits(writes_read_only=not writes))
    found = [v.rule for event in board.events for v in step(other, event) if v.outcome is Outcome.FAIL]
    assert found == ["RPC-11" if writes else "DISP-5"]


@pytest.mark.parametrize(("memory_free", "outcome"), [(False, Outcome.NOT_CHECKED), (True, Outcome.FAIL)])
def test_no_memory_is_no_answer_of_a_hypervisor_that_has_some(memory_free: bool, outcome: Outcome) -> None:
    board = booted(frozenset())
    board.message(1, INVOKE)
    seen = [event for event in board.events if not isinstance(event, El3Call | El3Return) or event.domid != 1]
    answer = seen[-1]
    assert isinstance(answer, GuestReturn)
    seen[-1] = replace(answer, regs=(abi.SmcReturn.ENOMEM, *answer.regs[1:]))
    state = State(limits=board.limits, memory_free=memory_free)
    verdicts = [verdict for event in seen for verdict in step(state, event)]
    assert [(v.rule, v.outcome) for v in verdicts if v.rule == "STD-5"] == [("STD-5", outcome)]
    assert bool(state.tally.unearned) is not memory_free


def changed(board: Board, kind: type[El3Call], ma: int, offset: int, data: bytes) -> Board:
    """The board's trace with other bytes in a page of the hypervisor, where it was handed over last."""
    board.events = with_shadow_bytes(board.events, kind, ma, offset, data)
    return board


def third_d1(board: Board) -> None:
    """D1's mediator hands the guest's address on; this one makes another of it."""
    d1(board)
    rpc = board.mediator.domains[1].rpcs[0xC0]
    changed(board, El3Call, rpc.shadow, abi.HEADER_SIZE + 8, (0x4567_8000).to_bytes(8, "little"))


def third_d4(board: Board) -> None:
    """D4's mediator takes the reply from another page and leaves this request's shadow alone; this one writes it."""
    regs = asked(board, ask(abi.RpcCmd.GET_TIME))
    other = board.message(1, INVOKE, ipa=ARG + 4096, vcpu=1, plan=[ask(abi.RpcCmd.GET_TIME)])
    board.serve_alloc(1, other, ipa=RPC + 4096, cookie=0xC1)
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    board.resume(1, regs, x1=0, x2=0xC1)
    rpc = board.mediator.domains[1].rpcs[0xC0]
    at = next(i for i, e in reversed(list(enumerate(board.events))) if isinstance(e, El3Call))
    board.events = [
        *with_shadow_bytes(board.events[: at + 1], El3Call, rpc.shadow, 20, b"\x77"),
        *board.events[at + 1 :],
    ]


def third_d6(board: Board) -> None:
    """D6's mediator repeats x0; this one resumes another thread besides."""
    d6(board)
    board.events = with_register(board.events, El3Call, 3, 1)


def third_d8(board: Board) -> None:
    """D8's mediator leaves x0 alone; this one gives another code."""
    d8(board)
    board.events = with_register(board.events, GuestReturn, 0, abi.SmcReturn.EBADADDR)


def third_d15(board: Board) -> None:
    """D15's mediator throws the next reply away; this one changes it."""
    d15(board)
    rpc = board.mediator.domains[1].rpcs[0xC0]
    changed(board, El3Call, rpc.shadow, abi.HEADER_SIZE + 8, b"\x99")


THIRD = [("D1", third_d1), ("D4", third_d4), ("D6", third_d6), ("D8", third_d8), ("D15", third_d15)]


@pytest.mark.parametrize(("deviation", "stimulus"), THIRD, ids=[name for name, _ in THIRD])
def test_a_third_behaviour_is_a_nonconformance(deviation: str, stimulus: Stimulus) -> None:
    """The condition of a deviation is there, and the answer is neither right nor the one that it says."""
    board = booted(frozenset({deviation}))
    stimulus(board)
    _, verdicts = judge(board)
    assert Outcome.FAIL in {v.outcome for v in verdicts}, list(map(str, verdicts))


def test_d13_is_no_excuse_for_a_page_that_another_way_lost() -> None:
    """A page in the mediator's lists that is no longer the domain's: D13 is about released RPC pages, and there are
    none."""
    lost = Mismatch(RuleId.MEM_10, GuestReturn(9, 0, 1, (0,) * 18), TrackedDomain(1))
    assert not DEVIATIONS["D13"].explains(lost)

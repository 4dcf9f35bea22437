# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the reference on their own: tables, decoder, page lists, what is not observed, gibberish, documents."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from framework.common.paths import ROOT
from mediator_ref import DEVIATIONS, RULES, Limits, Outcome, State, Verdict, abi, step
from mediator_ref.defect_model import wrapped_page_count
from mediator_ref.describe import describe_arg, describe_call, describe_caps, describe_return, field_at
from mediator_ref.events import (
    DomainDying,
    El3Call,
    El3Return,
    End,
    Event,
    FrameReleased,
    Gap,
    GuestCall,
    GuestReturn,
    PageKind,
    PageView,
    Start,
)
from mediator_ref.rules import ABOUT_BOOKS
from mediator_ref.simulator.board import ARG, DATA, LIST, RPC, Board
from mediator_ref.simulator.optee import INTR, alloc, ask
from mediator_ref.spec.translate import page_count, walk_list

INVOKE = abi.message(abi.MsgCmd.INVOKE_COMMAND)


def judge(events: Iterable[Event], limits: Limits | None = None) -> tuple[State, list[Verdict]]:
    state, found = State(limits=limits or Limits()), []
    for event in events:
        verdicts = step(state, event)
        found += verdicts
    return state, found


def booted(limits: Limits | None = None) -> Board:
    board = Board(limits=limits or Limits())
    board.create(0)
    board.create(1)
    return board


# Documents


def test_rules_cover_the_behaviour_table_and_the_review() -> None:
    sections = {section for rule in RULES.values() for section in rule.sections}
    assert {f"1.{n}" for n in range(1, 10)} == sections
    requirements = {requirement for rule in RULES.values() for requirement in rule.requirements}
    assert {f"R{n}" for n in range(1, 23)} == requirements


def test_package_does_no_input_or_output() -> None:
    forbidden = (
        "import os",
        "import sys",
        "import time",
        "import random",
        "import socket",
        "open(",
        "print(",
        "pathlib",
    )
    for path in (ROOT / "mediator_ref").rglob("*.py"):
        code = [line for line in path.read_text().splitlines() if '"' not in line]
        assert not [line for line in code for word in forbidden if word in line], path
        assert "framework" not in "\n".join(line for line in code if "import" in line), path


# Tables and decoder


def test_function_ids_follow_smccc() -> None:
    for fid, row in abi.FUNCTIONS.items():
        assert abi.owner_of(fid) in abi.TRUSTED_OWNERS
        assert not abi.is_smc64(fid)
        fast = bool(fid >> 31)
        assert fast == (not row.name.startswith("CALL_") or row.name.startswith("CALLS_"))


def test_message_layout_is_that_of_the_abi_header() -> None:
    assert abi.ARG_FIELDS == {
        "cmd": 0,
        "func": 4,
        "session": 8,
        "cancel_id": 12,
        "pad": 16,
        "ret": 20,
        "ret_origin": 24,
        "num_params": 28,
    }
    assert (abi.HEADER_SIZE, abi.PARAM_SIZE, abi.MAX_NUM_PARAMS, abi.LIST_ENTRIES) == (32, 32, 127, 511)


def test_encode_then_decode_gives_the_same_message() -> None:
    params = (abi.Param(abi.Attr.VALUE_INOUT, 1, 2, abi.U64), abi.Param(abi.RPC_ALLOC_ATTR, 4, 5, 6))
    arg = abi.Arg(cmd=4, func=1, session=2, cancel_id=3, ret=abi.Tee.GENERIC, ret_origin=2, num_params=2, params=params)
    assert abi.decode_arg(abi.encode_arg(arg)) == arg


def test_messages_that_do_not_fit_are_refused_by_the_encoder() -> None:
    with pytest.raises(ValueError, match="4128 bytes"):
        abi.message(0, *[abi.Param(0)] * 128)
    with pytest.raises(ValueError, match="512 entries"):
        abi.encode_list_page(range(512))


@pytest.mark.parametrize(
    ("x0", "rpc"), [(0xFFFF0000, True), (0xFFFF0005, True), (abi.U32, False), (abi.U64, False), (0, False), (7, False)]
)
def test_unknown_function_is_not_an_rpc(x0: int, rpc: bool) -> None:
    assert abi.is_rpc(x0) is rpc


def test_calls_and_messages_are_described_in_the_words_of_the_abi() -> None:
    assert describe_call((abi.CALL_WITH_ARG, 1, 0x8000_0000, 1, 0, 0, 0, 2)) == (
        "CALL_WITH_ARG arg=0x180000000 cache=0x1 client id x7=0x2"
    )
    assert describe_call((0xB2000099,)) == "function 0xb2000099"
    assert describe_return(0xFFFF0005) == "RPC CMD"
    assert describe_return(abi.U64) == "UNKNOWN_FUNCTION"
    assert describe_return(1) == "ETHREAD_LIMIT"
    assert describe_caps(0x14) == "DYNAMIC_SHM|MEMREF_NULL"
    page = abi.message(abi.MsgCmd.REGISTER_SHM, abi.Param(abi.RPC_ALLOC_ATTR, LIST, 4096, 0xB0))
    assert describe_arg(page).splitlines()[1] == (
        "  params[0] TMEM_OUTPUT|NONCONTIG buf_ptr=0x40020000 size=0x1000 shm_ref=0xb0"
    )
    assert field_at(20) == "ret"
    assert field_at(48, page) == "params[0].size"
    assert field_at(48 + 32) == "params[1].b"


# Page lists


@pytest.mark.parametrize("pages", [1, 510, 511, 512, 1022, 1023])
def test_a_page_list_rolls_over_after_511_entries(pages: int) -> None:
    limits = Limits(buffer_pages=2000)
    board = booted(limits)
    board.message(
        1, abi.message(abi.MsgCmd.REGISTER_SHM, board.buffer(1, pages, offset=0x20, size=pages * 4096 - 0x20))
    )
    state, verdicts = judge(board.events, limits)
    assert not verdicts
    assert state.tally.passes["MEM-2"] == 1
    assert state.domains[1].buffers[0xB0].pages == pages


def test_a_wrong_entry_on_the_second_list_page_is_found() -> None:
    limits = Limits(buffer_pages=2000)
    board = booted(limits)
    board.message(1, abi.message(abi.MsgCmd.REGISTER_SHM, board.buffer(1, 600)))
    at = max(i for i, event in enumerate(board.events) if isinstance(event, El3Call))
    event = board.events[at]
    assert isinstance(event, El3Call)
    first = abi.decode_arg(event.shadow[abi.pair(event.regs[1], event.regs[2])]).params[0].a
    second = abi.LIST_PAGE.unpack(event.shadow[first])[511]
    page = event.shadow[second]
    board.events[at] = replace(event, shadow={**event.shadow, second: page[:80] + bytes(8) + page[88:]})
    _, verdicts = judge(board.events, limits)
    assert [(v.rule, v.differences[0].field) for v in verdicts] == [("MEM-2", "params[0] list entry 521")]


def test_list_entries_lose_their_low_bits() -> None:
    mem = {
        LIST: PageView(PageKind.RAM_RW, 1, abi.encode_list_page([DATA | 0xFFF])),
        DATA: PageView(PageKind.RAM_RW, 0x77),
    }
    assert walk_list(LIST | 5, 1, mem).mfns == (0x77,)


@pytest.mark.parametrize(
    ("size", "pointer", "pages", "wrapped"),
    [
        (0, 0, 0, 0),
        (1, 0xFFF, 1, 1),
        (2, 0xFFF, 2, 2),
        (4096, 1, 2, 2),
        (abi.U64, 0xFFF, 1 << 52 | 1, 1),
        ((1 << 44) + 4096, 0, (1 << 32) + 1, 1),
    ],
)
def test_pages_are_counted_without_wrapping(size: int, pointer: int, pages: int, wrapped: int) -> None:
    assert page_count(size, pointer) == pages
    assert wrapped_page_count(size, pointer) == wrapped


# What is not observed is not passed


def stripped(events: Iterable[Event]) -> list[Event]:
    """The same events without any page."""
    return [
        replace(e, mem={})
        if isinstance(e, GuestCall | GuestReturn)
        else replace(e, mem={}, shadow={})
        if isinstance(e, El3Call | El3Return)
        else e
        for e in events
    ]


def busy() -> Board:
    board = booted()
    regs = board.message(1, abi.message(1, board.buffer(1, 2, attr=abi.Attr.TMEM_INOUT)), plan=[ask(3), alloc()])
    regs = board.serve_alloc(1, regs)
    board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3))
    regs = board.resume(1, regs)
    board.reply(1, board.buffer(1, 2, attr=abi.Attr.TMEM_OUTPUT, cookie=0x77))
    board.resume(1, regs)
    board.destroy(1)
    return board


def test_without_pages_nothing_about_pages_passes() -> None:
    state, verdicts = judge(stripped(busy().events))
    assert {v.outcome for v in verdicts} == {Outcome.NOT_CHECKED}
    for rule in ("STD-6", "STD-9", "MEM-2", "RPC-2", "RPC-3", "RPC-4", "RPC-8"):
        assert state.tally.passes[rule] == 0, rule
    for rule in ("CID-1", "STD-5", "STD-8", "RPC-1", "RPC-6"):
        assert state.tally.outcome(rule) is Outcome.PASS, rule


def test_a_reason_is_handed_out_once_and_counted_always() -> None:
    board = booted()
    for _ in range(5):
        board.message(1, INVOKE)
    state, verdicts = judge(stripped(board.events))
    assert len(verdicts) == len(state.tally.not_checked)
    assert state.tally.not_checked[("STD-6", "the argument page was not observed")] == 5


@pytest.mark.parametrize("start", range(4, 40, 3))
def test_a_trace_from_the_middle_fails_nothing(start: int) -> None:
    board = busy()
    state, verdicts = judge([Start(0, mid_stream=True), *board.events[start:]])
    assert not [str(v) for v in verdicts if v.outcome is not Outcome.NOT_CHECKED]
    if start < 20:
        assert state.tally.passes["STD-8"] + state.tally.passes["RPC-1"]


def test_a_domain_born_after_the_start_is_fully_checked() -> None:
    board = booted()
    before = len(board.events)
    board.create(2)
    board.call(2, 0, (abi.RETURN_FROM_RPC, 0, 0, 9))
    state, verdicts = judge([Start(0, mid_stream=True), *board.events[before:]])
    assert not verdicts
    assert state.tally.passes["RPC-5"] == 1


def test_a_state_can_be_kept_and_gone_on_from() -> None:
    """A cloned board goes on from where its snapshot was: so does a copy of the state."""
    board = booted()
    regs = board.message(1, INVOKE, plan=[INTR])
    kept, _ = judge(board.events)
    copies = [copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))]
    before = len(board.events)
    board.resume(1, regs)
    for state in copies:
        for event in board.events[before:]:
            verdicts = step(state, event)
            assert not verdicts
        assert not state.domains[1].calls
    assert kept.domains[1].calls


def test_pages_of_a_dying_domain_may_be_used_again_at_once() -> None:
    board = booted()
    board.message(1, INVOKE, plan=[INTR])
    board.create(2)
    board.message(2, INVOKE)
    calls = [i for i, e in enumerate(board.events) if isinstance(e, El3Call) and e.regs[0] == abi.CALL_WITH_ARG]
    first, second = board.events[calls[0]], board.events[calls[1]]
    assert isinstance(first, El3Call)
    assert isinstance(second, El3Call)
    shadow = {abi.pair(*first.regs[1:3]): second.shadow[abi.pair(*second.regs[1:3])]}
    again = replace(second, regs=(second.regs[0], *first.regs[1:3], *second.regs[3:]), shadow=shadow)
    before = board.events[: calls[1]]
    _, verdicts = judge([*before, DomainDying(first.seq + 1, 1), again])
    assert [(v.rule, v.outcome) for v in verdicts] == [("STD-7", Outcome.NOT_CHECKED)]
    _, verdicts = judge([*before, again])
    assert [(v.rule, v.outcome) for v in verdicts] == [("STD-7", Outcome.FAIL)]


def test_a_gap_forgets_running_calls_and_fails_nothing() -> None:
    board = booted()
    regs = board.message(1, INVOKE, plan=[INTR, INTR])
    board.events.append(Gap(900, "the buffer was full"))
    board.resume(1, regs)
    state, verdicts = judge(board.events)
    assert {v.outcome for v in verdicts} == {Outcome.NOT_CHECKED}
    assert any("events are missing" in v.reason for v in verdicts)
    assert state.domains[1].history_unknown


def test_decisions_that_race_on_two_vcpus_are_not_called_wrong() -> None:
    """A call ends on one vCPU while another asks for a thread: either answer is fair."""
    board = booted()
    board.message(1, INVOKE, vcpu=1, ipa=ARG + 4096, plan=[INTR])
    board.world.write(1, ARG, INVOKE)
    board.trap(1, 0, (abi.CALL_WITH_ARG, 0, ARG))
    board.leave(1, 0)
    ended = board.events.pop()  # vCPU 0 has OP-TEE's answer, and is still in the mediator
    regs = (abi.CALL_WITH_ARG, 0, ARG + 8192, 0, 0, 0, 0, 0)
    board.world.write(1, ARG + 8192, INVOKE)
    board.events += [GuestCall(901, 2, 1, regs, board.world.view(1)), GuestReturn(902, 2, 1, (1, *regs[1:]))]
    assert isinstance(ended, GuestReturn)
    state, verdicts = judge([*board.events, replace(ended, seq=903)])
    assert {(v.rule, v.outcome) for v in verdicts if v.rule not in ABOUT_BOOKS} == {("STD-1", Outcome.NOT_CHECKED)}
    assert not [v for v in verdicts if v.outcome is Outcome.FAIL]
    assert not state.tally.fails


def test_a_guest_that_writes_while_it_is_copied_is_told_from_a_wrong_copy() -> None:
    board = booted()
    board.message(1, INVOKE)
    at = max(i for i, event in enumerate(board.events) if isinstance(event, GuestCall))
    call = board.events[at]
    assert isinstance(call, GuestCall)
    view = call.mem[ARG]
    assert view.data is not None
    board.events[at] = replace(call, mem={**call.mem, ARG: replace(view, data=view.data[:4] + b"\7" + view.data[5:])})
    _, verdicts = judge(board.events)
    assert ("STD-6", Outcome.NOT_CHECKED) in {(v.rule, v.outcome) for v in verdicts}
    # What stood in the page neither before nor after is no copy of it.
    at += 1
    entered = board.events[at]
    assert isinstance(entered, El3Call)
    ma = abi.pair(*entered.regs[1:3])
    page = entered.shadow[ma]
    board.events[at] = replace(entered, shadow={**entered.shadow, ma: page[:4] + b"\x99" + page[5:]})
    _, verdicts = judge(board.events)
    assert ("STD-6", Outcome.FAIL) in {(v.rule, v.outcome) for v in verdicts}


def test_an_address_that_is_not_translated_is_no_list_that_was_not_observed() -> None:
    board = booted()
    board.message(1, abi.message(abi.MsgCmd.INVOKE_COMMAND, board.buffer(1, 2)))
    at = max(i for i, event in enumerate(board.events) if isinstance(event, El3Call))
    entered = board.events[at]
    assert isinstance(entered, El3Call)
    ma, pointer = abi.pair(*entered.regs[1:3]), abi.HEADER_SIZE + 8
    page = entered.shadow[ma]
    untranslated = page[:pointer] + LIST.to_bytes(8, "little") + page[pointer + 8 :]
    _, verdicts = judge([*board.events[:at], replace(entered, shadow={ma: untranslated})])
    assert ("MEM-2", Outcome.FAIL) in {(v.rule, v.outcome) for v in verdicts}


def test_a_call_that_another_vcpu_resumes_waits_no_longer() -> None:
    """Two vCPUs return from their requests at once: the second's reply is in its shadow when the first enters EL3."""
    board = booted()
    ask_time = ask(abi.RpcCmd.GET_TIME)
    first = board.serve_alloc(1, board.message(1, INVOKE, plan=[ask_time]))
    second = board.message(1, INVOKE, ipa=ARG + 4096, vcpu=1, plan=[ask_time])
    second = board.serve_alloc(1, second, ipa=RPC + 4096, cookie=0xC1)
    for ipa in (RPC, RPC + 4096):
        board.reply(1, abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3), ipa=ipa)
    board.trap(1, 1, (abi.RETURN_FROM_RPC, *second[1:4]))
    board.trap(1, 0, (abi.RETURN_FROM_RPC, *first[1:4]))
    *events, call_b, enter_b, call_a, enter_a = board.events
    # The second traps first and enters EL3 last, with its shadow written in between.
    _, verdicts = judge([*events, call_b, call_a, enter_a, enter_b])
    assert "RPC-14" not in {v.rule for v in verdicts}
    _, verdicts = judge([*events, call_a, enter_a])
    assert "RPC-14" in {v.rule for v in verdicts}


def test_32_bit_guests_are_judged_by_32_bits() -> None:
    board = booted()
    board.call(1, 0, (abi.FID["L2CC_MUTEX"], 1, 2, 3))
    events = [replace(e, aarch32=True) if isinstance(e, GuestCall) else e for e in board.events]
    last = events[-1]
    assert isinstance(last, GuestReturn)
    events[-1] = replace(last, regs=(abi.U32, *last.regs[1:]))
    assert not judge(events)[1]


def test_calls_of_other_owners_are_left_alone() -> None:
    psci = (0x84000000, 0, 0, 0, 0, 0, 0, 0)
    state, verdicts = judge(
        [
            Start(0),
            GuestCall(1, 0, 1, psci),
            El3Call(2, 0, 1, psci),
            El3Return(3, 0, 1, psci),
            GuestReturn(4, 0, 1, (0x10001, *psci[1:])),
            End(5),
        ]
    )
    assert [v.rule for v in verdicts] == ["LIFE-7"]
    assert not state.tally.passes


def test_an_rpc_page_is_pinned_until_it_is_freed() -> None:
    board = booted()
    board.serve_alloc(1, board.message(1, INVOKE, plan=[ask(3)]))
    frame, _ = board.world.lookup(1, RPC)
    assert frame is not None
    _, verdicts = judge([*board.events, FrameReleased(900, 1, frame)])
    assert [v.rule for v in verdicts] == ["MEM-10"]


def test_verdicts_explain_themselves() -> None:
    board = booted()
    board.call(1, 0, (abi.FID["CALLS_COUNT"],))
    last = board.events[-1]
    assert isinstance(last, GuestReturn)
    board.events[-1] = replace(last, regs=(14, *last.regs[1:]))
    _, (verdict,) = judge(board.events)
    assert str(verdict) == f"#{last.seq} d1 FAST-3 fail: the answer to the guest; x0: expected 0xb, observed 0xe"
    assert verdict.cause == last.seq - 1
    assert "0 calls running" in verdict.state


# Gibberish


def test_gibberish_never_raises() -> None:
    """Any events in any order with anything in them: verdicts, never an exception."""
    pick = random.Random(1)
    pages = [bytes(4096), INVOKE, abi.message(4, abi.Param(abi.RPC_ALLOC_ATTR, LIST, 5000, 1)), pick.randbytes(4096)]
    words = [0, 1, 2, abi.U32, abi.U64, ARG, RPC, LIST, 0xFFFF0000, 0xFFFF0002, 0xFFFF0004, 0xFFFF0005, *abi.FUNCTIONS]
    views = [
        PageView(),
        PageView(PageKind.UNMAPPED),
        *[PageView(PageKind.RAM_RW, n, page) for n, page in enumerate(pages)],
        PageView(PageKind.RAM_RO, 9, pages[1]),
        PageView(None, None, pages[2]),
        PageView(PageKind.RAM_RW),
    ]
    for seed in range(30):
        pick.seed(seed)
        state = State(limits=Limits(threads=pick.choice([None, 0, 2])))
        for seq in range(400):
            regs = tuple(pick.choice(words) if pick.random() < 0.8 else pick.getrandbits(64) for _ in range(8))
            mem = {pick.choice([0, ARG, RPC, LIST, DATA]): pick.choice(views) for _ in range(4)}
            shadow = {pick.choice(words) & ~0xFFF: pick.choice(pages) for _ in range(3)}
            domid, vcpu = pick.randint(0, 2), pick.randint(0, 1)
            event: Event = pick.choice(
                [
                    GuestCall(seq, vcpu, domid, regs, mem, imm=pick.choice([0, 0, 0, 5])),
                    GuestCall(
                        seq,
                        vcpu,
                        domid,
                        (pick.choice([abi.CALL_WITH_ARG, abi.RETURN_FROM_RPC]), 0, ARG, *regs[3:]),
                        mem,
                    ),
                    El3Call(seq, vcpu, pick.choice([domid, domid, None]), regs, shadow, mem),
                    El3Return(seq, vcpu, domid, regs, shadow, mem),
                    GuestReturn(seq, vcpu, domid, regs, mem),
                    *([Gap(seq, "test")] if pick.random() < 0.02 else []),
                    FrameReleased(seq, domid, pick.randint(0, 9)),
                ]
            )
            verdicts = step(state, event)
            for verdict in verdicts:
                assert verdict.rule in RULES
                assert verdict.deviation is None or verdict.rule in DEVIATIONS[verdict.deviation].rules, verdict
                str(verdict)


def test_a_thread_limit_nobody_saw_is_not_held_against_a_refusal() -> None:
    """A trace that begins after GET_THREAD_COUNT: the third call is refused, and it is unknown whether rightly, so that
    the whole is incomplete. A domain's only call is refused wrongly, for there is one thread at least."""
    board = booted(Limits(threads=2))
    start = len(board.events)
    board.create(2)
    for number in range(2):
        board.message(2, INVOKE, ipa=ARG + 4096 * number, plan=[INTR])
    board.world.write(2, ARG + 8192, INVOKE)
    regs = (abi.CALL_WITH_ARG, 0, ARG + 8192, 0, 0, 0, 0, 0)
    refused = [
        GuestCall(901, 0, 2, regs, board.world.view(2)),
        GuestReturn(902, 0, 2, (abi.SmcReturn.ETHREAD_LIMIT, *regs[1:])),
    ]
    events = [Start(0, mid_stream=True), *board.events[start:], *refused]
    state, verdicts = judge(events)
    assert [(v.rule, v.outcome) for v in verdicts if v.rule == "STD-1"] == [("STD-1", Outcome.NOT_CHECKED)]
    assert list(state.tally.unearned) == ["how many threads OP-TEE has was never seen"]
    created = board.events[start : start + 3]
    _state, verdicts = judge([Start(0, mid_stream=True), *created, *refused])
    assert [(v.rule, v.outcome) for v in verdicts if v.rule == "STD-1"] == [("STD-1", Outcome.FAIL)]
    # The same trace from a reader who knows the limit: then the refusal is right.
    _state, verdicts = judge(events, Limits(threads=2))
    assert not [v for v in verdicts if v.rule == "STD-1"]

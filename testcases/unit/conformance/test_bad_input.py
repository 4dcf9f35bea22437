# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces that are not as they should be: never a crash, never a guess, never a pass for what was not seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.common.errors import ExitCode, TraceError
from framework.conformance.checker import Checker, check_file
from framework.conformance.conclusion import conclude
from framework.conformance.result import INCOMPLETE, KEPT, NOT_CHECKED, PASS
from framework.conformance.synthesize import record_of, write_trace
from framework.jobs.check import exit_code
from framework.trace.event import Event as Record
from framework.trace.format import RECORD, Kind
from framework.trace.writer import Writer, pack_record
from mediator_ref import abi
from mediator_ref.events import El3Call, Event, GuestCall, GuestReturn
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import with_register
from mediator_ref.simulator.board import Board
from testcases.unit.conformance.samples import (
    as_traced,
    busy_board,
    check_events,
    check_records,
    failed_rules,
    records_of,
    simple_trace,
)

BUSY = busy_board()
RECORDS = records_of(BUSY.events)


@pytest.mark.parametrize("start", range(1, len(RECORDS), 3))
def test_a_trace_that_starts_in_the_middle_says_so_and_raises_no_alarm(start: int) -> None:
    result = check_records(RECORDS[start:])
    assert failed_rules(result) == set()
    assert "starts in the middle, at record" in result.gaps[0]
    assert not result.notes


def test_after_a_start_in_the_middle_the_rest_is_checked() -> None:
    board = Board()
    board.create(0)
    board.create(1)
    head = len(records_of(board.events))
    board.message(1, INVOKE)
    events = with_register(board.events, El3Call, 3, 0)
    assert failed_rules(check_records(records_of(events)[head:])) == {"STD-5"}


@pytest.mark.parametrize("at", range(5, len(RECORDS) - 2, 4))
def test_missing_records_are_named_and_raise_no_alarm(at: int) -> None:
    result = check_records(RECORDS[:at] + RECORDS[at + 2 :])
    assert failed_rules(result) == set()
    assert result.gaps[0] == f"records {at + 1} to {at + 2} are missing"


def test_a_domain_destroyed_and_created_again_in_a_gap_raises_no_alarm() -> None:
    board = Board()
    board.create(0)
    board.create(1)
    lost = len(records_of(board.events))
    board.destroy(1)
    found = len(records_of(board.events))
    board.create(1)
    board.message(1, INVOKE)
    board.destroy(1)
    records = records_of(board.events)
    for hole in range(lost, found):
        result = check_records(records[:lost] + records[hole + 1 :])
        assert failed_rules(result) == set(), f"records {lost + 1} to {hole + 1} missing"


def test_pages_that_were_not_recorded_leave_their_rules_unchecked() -> None:
    bare = []
    for record in RECORDS:
        raw = bytearray(record.raw[: RECORD.size + 8 * record.nregs])
        raw[0:4] = len(raw).to_bytes(4, "little")
        raw[56:60] = bytes(4)  # no blocks
        bare.append(Record(bytes(raw)))
        assert bare[-1].nblocks == 0
    result = check_records(bare)
    assert failed_rules(result) == set()
    for rule in ("STD-6", "STD-9", "MEM-2", "RPC-3", "RPC-4", "MEM-1"):
        assert result.rule(rule).passed == 0, rule
    for rule in ("STD-6", "STD-9", "RPC-3"):
        assert result.rule(rule).verdict == NOT_CHECKED
        assert result.rule(rule).not_checked_reasons


def test_calls_without_a_domain_are_a_gap_and_nothing_is_guessed() -> None:
    anonymous = []
    for record in RECORDS:
        raw = bytearray(record.raw)
        raw[24:26] = raw[28:30] = b"\xff\xff"
        anonymous.append(Record(bytes(raw)))
        assert anonymous[-1].domain is None
        assert anonymous[-1].vcpu is None
    result = check_records(anonymous)
    assert failed_rules(result) == set()
    assert any("domain is not known" in gap for gap in result.gaps)


def test_unknown_functions_of_a_guest_are_judged_by_their_rule() -> None:
    regs = (0xB2001234, *range(1, 18))
    board = Board()
    board.create(0)
    board.create(1)
    call, good = GuestCall(90, 0, 1, regs), GuestReturn(91, 0, 1, (abi.SMCCC_UNKNOWN_FUNCTION, *regs[1:]))
    result = check_events([*board.events, call, good])
    assert (result.rule("DISP-2").passed, failed_rules(result)) == (1, set())
    bad: list[Event] = [*board.events, call, GuestReturn(91, 0, 1, regs)]
    assert failed_rules(check_events(bad)) == {"DISP-2"}


def test_an_unknown_kind_of_record_is_a_gap() -> None:
    strange = bytearray(RECORDS[3].raw)
    strange[4] = 77
    result = check_records([*RECORDS[:3], Record(bytes(strange)), *RECORDS[4:]])
    assert failed_rules(result) == set()
    assert "record 4 is malformed: there is no kind 77" in result.gaps


def test_a_record_with_too_few_registers_is_a_gap() -> None:
    short = Record(pack_record(Kind.GUEST_CALL, 1, (abi.CALL_WITH_ARG,), domain=1, vcpu=0))
    result = check_records([short])
    assert any("record 1 is malformed: it has 1 registers" in gap for gap in result.gaps)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_gibberish_in_every_field_never_crashes_the_checker(seed: int) -> None:
    rng = random.Random(seed)
    garbled = []
    for number, record in enumerate(RECORDS, start=1):
        raw = bytearray(record.raw)
        for _ in range(rng.choice((0, 0, 1, 4, 200))):
            at = rng.randrange(4, len(raw))
            raw[at] = rng.choice((0, 0xFF, rng.randrange(256)))
        if rng.random() < 0.9:  # mostly the numbers fit, or little but gaps would be tested
            raw[8:16] = number.to_bytes(8, "little")
        garbled.append(Record(bytes(raw)))
    result = check_records(garbled)
    assert not result.notes, result.notes


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_gibberish_registers_never_crash_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    values = (0, 1, 2**64 - 1, 0xFFFF0000, 0xFFFF0005, abi.CALL_WITH_ARG, abi.RETURN_FROM_RPC, 0x4000_0000)
    checker = Checker()
    for number in range(1, 60):
        regs = [rng.choice((*values, rng.getrandbits(64))) for _ in range(18)]
        page = rng.randbytes(32) + rng.randbytes(4064 if rng.random() < 0.5 else 0).ljust(4064, b"\0")
        view = {ipa: Page(page) for ipa in (0, 0x4000_0000, abi.pair(regs[1], regs[2]) & ~4095)}
        kind = rng.choice((GuestCall, GuestReturn, El3Call))
        event = kind(number, rng.randrange(2), rng.randrange(3), tuple(regs), mem=view)
        record = record_of(event, number)
        assert record is not None
        checker.feed(Record(record))
    assert not checker.result().notes


def Page(data: bytes) -> object:  # noqa: N802 - reads as what it makes
    from mediator_ref.events import PageKind, PageView

    return PageView(PageKind.RAM_RW, 0x1234, data)


def test_a_file_cut_at_any_byte_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    simple_trace(whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    header = 40 + 2
    for length in range(header, len(data), 7):
        cut.write_bytes(data[:length])
        result = check_file(cut)
        assert result.verdict == INCOMPLETE
        assert exit_code(conclude(result)) == ExitCode.INFRASTRUCTURE
        assert failed_rules(result) == set()
        assert result.gaps


def test_a_damaged_chunk_is_skipped_and_told(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Writer(path, chunk_bytes=4096) as writer:
        for record in RECORDS:
            writer.append(record.raw)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    result = check_file(path)
    assert failed_rules(result) == set()
    assert any("damaged" in gap for gap in result.gaps)
    assert any("are missing" in gap for gap in result.gaps)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a trace")
    with pytest.raises(TraceError):
        check_file(tmp_path / "text")
    with pytest.raises(TraceError):
        check_file(tmp_path / "absent")


def test_a_second_run_of_the_plugin_in_one_file_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    write_trace(path, as_traced(BUSY.events))
    with Writer(path, append=True) as writer:
        for record in RECORDS:
            writer.append(record.raw)
    result = check_file(path)
    assert failed_rules(result) == set()
    assert any("a new run of the trace plugin begins" in gap for gap in result.gaps)


def test_an_empty_trace_passes_nothing(tmp_path: Path) -> None:
    with Writer(tmp_path / "empty"):
        pass
    result = check_file(tmp_path / "empty")
    assert result.verdict == NOT_CHECKED
    assert not any(rule.verdict == PASS for rule in result.rules)


def test_endless_failures_are_counted_and_only_the_first_kept() -> None:
    board = Board()
    board.create(1)
    checker, number = Checker(), 0
    regs = (0xB2001234, *range(1, 18))
    events: list[Event] = [*board.events]
    for _ in range(KEPT * 3):
        events += [GuestCall(0, 0, 1, regs), GuestReturn(0, 0, 1, regs)]
    for event in events:
        raw = record_of(event, number + 1)
        if raw is not None:
            number += 1
            checker.feed(Record(raw))
    result = checker.result()
    assert result.failed == KEPT * 3
    assert len(result.nonconformances) == KEPT

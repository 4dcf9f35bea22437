# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of restored boards: what came before the restore is known, and does not count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.conformance.checker import check_file
from framework.conformance.result import ConformanceResult
from framework.conformance.synthesize import record_of
from framework.trace.writer import Writer
from mediator_ref.events import El3Call, End, Event, Start
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import with_register
from mediator_ref.simulator.board import Board

from .samples import as_traced

CALLS = 2
"""Calls before the restore, each of as many events as those behind it."""


def events_of_one_board() -> tuple[list[Event], list[Event]]:
    """A domain's creation and some of its calls; then one more call of it."""
    board = Board()
    board.create(0)
    board.create(1)
    for _ in range(CALLS):
        board.message(1, INVOKE)
    cut = len(board.events)
    board.message(1, INVOKE)
    events = as_traced(board.events)
    return events[:cut], events[cut:]


def write(path: Path, *runs: Sequence[Event], continues: bool = True, close: bool = True) -> Path:
    for number, events in enumerate(runs):
        meta = {"continues": True} if number and continues else {}
        recorded = [event for event in events if not isinstance(event, Start | End)]
        with Writer(path, meta, append=number > 0, counters=close or number > 0) as writer:
            for seq, event in enumerate(recorded, start=1):
                record = record_of(event, seq)
                assert record is not None
                writer.append(record)
    return path


def passes(result: ConformanceResult, rule: str) -> int:
    return next(found.passed for found in result.rules if found.id == rule)


def test_the_domains_past_is_known_and_only_what_follows_counts(tmp_path: Path) -> None:
    before, after = events_of_one_board()
    whole = check_file(write(tmp_path / "whole.trace", [*before, *after]))
    result = check_file(write(tmp_path / "board.trace", before, after), board_alive=True)
    assert (result.verdict, result.gaps) == ("pass", ())
    assert passes(whole, "STD-5") == (CALLS + 1) * passes(result, "STD-5") > 0
    assert passes(whole, "LIFE-1") and not passes(result, "LIFE-1")
    assert not any(rule.reasons for rule in result.rules)


@pytest.mark.parametrize("how", [{"continues": False}, {"close": False}])
def test_another_boards_run_or_an_unclosed_one_is_a_gap(tmp_path: Path, how: dict[str, bool]) -> None:
    result = check_file(write(tmp_path / "board.trace", *events_of_one_board(), **how))
    assert any("a new run of the trace plugin begins" in gap for gap in result.gaps)


def test_a_nonconformance_of_the_past_is_not_forgotten(tmp_path: Path) -> None:
    before, after = events_of_one_board()
    result = check_file(write(tmp_path / "board.trace", with_register(before, El3Call, 3, 0), after))
    assert result.verdict == "fail"
    assert [(found.rule, found.segment) for found in result.nonconformances] == [("STD-5", 1)]


def test_a_nonconformance_is_found_in_its_own_run(tmp_path: Path) -> None:
    before, after = events_of_one_board()
    result = check_file(write(tmp_path / "board.trace", before, with_register(after, El3Call, 3, 0)))
    assert [(found.rule, found.segment) for found in result.nonconformances] == [("STD-5", 2)]
    # What led to it has the numbers of its own run, too.
    assert "because of record 1 of run 2: " in result.nonconformances[0].explanation

# SPDX-License-Identifier: GPL-2.0-or-later
"""The head of a run turns red or incomplete when the evidence for any rule is sabotaged; it is never *conforms*."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from framework.conformance.checker import check_file
from framework.conformance.conclusion import Kind, conclude
from framework.conformance.merge import merge
from framework.conformance.result import ConformanceResult
from mediator_ref import RULES
from mediator_ref.examples import EXAMPLES
from testcases.integration.sabotage import PATCHES
from testcases.integration.sabotages import SABOTAGES
from testcases.unit.conformance.samples import busy_board, check_events, simple_trace

CHECKED = [rule.id for rule in RULES.values() if not rule.unobservable]
CUTS = 1000


def head(**parts: ConformanceResult) -> Kind:
    return conclude(merge(parts)).kind


def good() -> ConformanceResult:
    return check_events(EXAMPLES["STD-6"].good, alive=True)


def test_every_rule_that_can_be_checked_has_an_example() -> None:
    assert sorted(EXAMPLES) == sorted(CHECKED)
    assert head(run=good()) is Kind.CONFORMS


def test_every_rule_that_can_be_checked_has_a_sabotaged_board() -> None:
    """``testcases/integration/test_sabotaged_boards.py`` runs them; a patch that it names is there, and is named."""
    assert sorted(SABOTAGES) == sorted(CHECKED)
    assert {s.patch for s in SABOTAGES.values()} - {""} == {path.stem for path in PATCHES.glob("*.patch")}
    for rule, sabotage in SABOTAGES.items():
        assert sabotage.changes or sabotage.patch or sabotage.limits or sabotage.mended, f"{rule}: nothing is sabotaged"


@pytest.mark.parametrize("rule", CHECKED)
def test_a_stimulus_that_breaks_one_rule_turns_the_head(rule: str) -> None:
    example = EXAMPLES[rule]
    bad = check_events(example.bad, example.limits, deviations={})
    assert head(run=good(), stimulus=bad) is Kind.NONCONFORMING
    assert rule in conclude(merge({"run": good(), "stimulus": bad})).rules_broken
    # With the list of known deviations it may be one of them, and is never a plain "conforms".
    assert head(run=good(), stimulus=check_events(example.bad, example.limits)) is not Kind.CONFORMS


@pytest.mark.parametrize("alive", [None, True])
def test_a_stimulus_of_which_nothing_was_seen_turns_the_head(alive: bool | None) -> None:
    assert head(run=good(), stimulus=check_events([], alive=alive)) is Kind.INCOMPLETE
    assert conclude(check_events([], alive=alive)).kind is Kind.INCOMPLETE


def sabotaged(data: bytes, kind: str, seed: int) -> bytes:
    """A trace cut at a random byte, or with two pieces of its middle swapped, or with a piece doubled."""
    chance = random.Random(seed)
    begin, end = sorted(chance.sample(range(64, len(data)), 2))
    if kind == "cut":
        return data[:begin]
    middle = (begin + end) // 2
    if kind == "swapped":
        return data[:begin] + data[middle:end] + data[begin:middle] + data[end:]
    return data[:end] + data[begin:]


@pytest.mark.parametrize("kind", ["cut", "swapped", "doubled"])
def test_a_sabotaged_trace_never_conforms(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole"
    simple_trace(whole)
    data = whole.read_bytes()
    assert conclude(check_file(whole)).kind is Kind.CONFORMS
    path = tmp_path / kind
    for seed in range(CUTS if kind == "cut" else CUTS // 10):
        path.write_bytes(sabotaged(data, kind, seed))
        if path.read_bytes() == data:
            continue
        drawn = conclude(check_file(path))
        assert drawn.kind is not Kind.CONFORMS, (kind, seed)


def test_the_end_of_another_board_is_no_end_of_this_one(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    simple_trace(one)
    simple_trace(other)
    half = one.read_bytes()
    mixed = tmp_path / "mixed"
    mixed.write_bytes(half[: len(half) // 2] + other.read_bytes()[len(half) // 2 + 1 :])
    assert conclude(check_file(mixed)).kind is not Kind.CONFORMS


def test_a_busy_board_conforms_and_one_without_its_hypervisor_does_not() -> None:
    events = busy_board().events
    assert head(run=check_events(events, alive=True)) is Kind.CONFORMS
    assert head(run=check_events(events, alive=False)) is Kind.NONCONFORMING

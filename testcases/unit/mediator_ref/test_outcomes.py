# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage of the specification: every outcome it names can be reached, and nothing is counted that has no name."""

from __future__ import annotations

from mediator_ref import State, step
from mediator_ref.compare.outcomes import OUTCOMES
from mediator_ref.examples import EXAMPLES
from testcases.unit.mediator_ref.test_deviations import CASES, booted


def test_examples_and_stimuli_reach_every_outcome() -> None:
    seen: set[str] = set()
    traces = [(example.limits, example.good) for example in EXAMPLES.values()]
    for _, _, stimulus in CASES:
        board = booted(frozenset())
        stimulus(board)
        traces.append((None, tuple(board.events)))
    for limits, events in traces:
        state = State() if limits is None else State(limits=limits)
        for event in events:
            step(state, event)
        seen |= set(state.tally.outcomes)
    assert seen == set(OUTCOMES)


def test_the_most_instructions_at_once_are_kept() -> None:
    state = State()
    for event in EXAMPLES["TIME-1"].bad:
        step(state, event)
    assert state.tally.instructions["CALL_WITH_ARG"] > 1_000_000

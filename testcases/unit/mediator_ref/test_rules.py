# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule has one good and one bad trace: the good one passes, the bad one is caught by exactly that rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from mediator_ref import DEVIATIONS, RULES, Limits, Outcome, State, Verdict, step
from mediator_ref.abi import RETURN_FROM_RPC, Attr, Param, RpcCmd
from mediator_ref.books import Lists, frame_word, mfn_of
from mediator_ref.deviations import Deviation
from mediator_ref.events import El3Call, Event, GuestReturn
from mediator_ref.examples import EXAMPLES
from mediator_ref.examples.books import with_lists
from mediator_ref.examples.rpc import asked
from mediator_ref.simulator.optee import FREE_ARG, ask

CHECKED = [rule.id for rule in RULES.values() if not rule.unobservable]


def judge(
    events: Iterable[Event], *, limits: Limits | None = None, deviations: dict[str, Deviation] | None = None
) -> tuple[State, list[Verdict]]:
    state = State(limits=limits or Limits(), deviations=DEVIATIONS if deviations is None else deviations)
    verdicts: list[Verdict] = []
    for event in events:
        found = step(state, event)
        verdicts += found
    return state, verdicts


def test_every_checked_rule_has_an_example() -> None:
    assert sorted(EXAMPLES) == sorted(CHECKED)


@pytest.mark.parametrize("rule", CHECKED)
def test_good(rule: str) -> None:
    example = EXAMPLES[rule]
    state, verdicts = judge(example.good, limits=example.limits)
    assert not [str(v) for v in verdicts if v.outcome is not Outcome.NOT_CHECKED]
    assert state.tally.outcome(rule) is Outcome.PASS


@pytest.mark.parametrize("rule", CHECKED)
def test_bad(rule: str) -> None:
    example = EXAMPLES[rule]
    state, verdicts = judge(example.bad, limits=example.limits, deviations={})
    failed = {v.rule for v in verdicts if v.outcome is Outcome.FAIL}
    assert failed == {rule}, "\n".join(map(str, verdicts))
    assert state.tally.outcome(rule) is Outcome.FAIL
    assert not state.tally.deviations


@pytest.mark.parametrize("what", ["calls", "rpcs"])
def test_a_page_of_the_hypervisor_that_counts_as_the_domains(what: str) -> None:
    made, _ = asked(ask(RpcCmd.GET_TIME))

    def given(lists: Lists) -> Lists:
        owned = [replace(entry, shadow=frame_word(mfn_of(entry.shadow) or 0, 1)) for entry in getattr(lists, what)]
        return replace(lists, **{what: tuple(owned)})

    _, verdicts = judge(with_lists(made.events, GuestReturn, given))
    assert {v.rule for v in verdicts if v.outcome is Outcome.FAIL} == {"STD-7"}


def test_a_request_that_is_kept_from_the_guest() -> None:
    """OP-TEE gives a page back, and the mediator resumes it at once: no page is in the way of that request."""
    made, regs = asked(ask(RpcCmd.GET_TIME), FREE_ARG)
    made.reply(1, Param(Attr.VALUE_OUTPUT, 1, 2, 3))
    freed = made.resume(1, regs)
    *events, last = made.events
    latest = next(event for event in reversed(events) if isinstance(event, El3Call))
    regs = [RETURN_FROM_RPC, *freed[1:4], 0, 0, 0, latest.regs[7]]
    again = replace(latest, seq=last.seq, regs=tuple(regs), accesses=None)
    _, verdicts = judge([*events, again])
    assert {v.rule for v in verdicts if v.outcome is Outcome.FAIL} == {"DISP-5"}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule through the whole way, records in and verdicts out: a bad trace fails its rule alone."""

from __future__ import annotations

import pytest

from framework.conformance.result import DEVIATION, FAIL, NOT_EXERCISED, NOT_SEEN, PASS, SEEN
from framework.trace.event import Event as Record
from framework.trace.format import Kind
from framework.trace.writer import pack_record
from mediator_ref import RULES, abi
from mediator_ref.events import DomainCreated, El3Call, El3Return, GuestCall, GuestReturn
from mediator_ref.examples import EXAMPLES, Example
from mediator_ref.examples.calls import INVOKE
from mediator_ref.examples.mutate import with_register
from mediator_ref.simulator.board import Board
from mediator_ref.simulator.optee import alloc
from testcases.unit.conformance.samples import (
    busy_board,
    check_events,
    check_records,
    failed_rules,
    records_of,
)

CHECKED = sorted(rule for rule in EXAMPLES if rule != "LIFE-7")


def checked(example: Example, name: str, alive: bool | None = None) -> set[str]:
    result = check_events(getattr(example, name), example.limits, {}, alive=alive)
    assert not result.notes
    return failed_rules(result)


@pytest.mark.parametrize("rule", CHECKED)
def test_good_trace_conforms(rule: str) -> None:
    assert checked(EXAMPLES[rule], "good") == set()


@pytest.mark.parametrize("rule", CHECKED)
def test_bad_trace_fails_exactly_its_rule(rule: str) -> None:
    assert checked(EXAMPLES[rule], "bad") == {rule}


def test_a_dead_hypervisor_is_told_at_the_end() -> None:
    good = EXAMPLES["STD-8"]
    assert checked(good, "good", alive=False) == {"LIFE-7"}
    assert checked(good, "good", alive=True) == set()


def test_every_observable_rule_has_an_example() -> None:
    assert {rule.id for rule in RULES.values() if not rule.unobservable} == set(EXAMPLES)


def test_interleaved_calls_of_two_domains_on_two_vcpus_conform() -> None:
    events = busy_board().events
    running = {(e.domid, e.vcpu) for e in events if isinstance(e, GuestCall)}
    assert {(1, 0), (1, 1), (2, 0), (2, 1)} <= running
    result = check_events(events)
    assert failed_rules(result) == set()
    assert result.verdict == PASS
    assert result.rule("MEM-2").passed == 4
    assert result.rule("STD-9").passed == 4


def test_one_wrong_byte_among_interleaved_calls_is_attributed_to_its_domain() -> None:
    events = busy_board().events
    calls = [e for e in events if isinstance(e, El3Call)]
    nth = max(i for i, e in enumerate(calls) if e.domid == 2)
    result = check_events(with_register(events, El3Call, 7, 2, nth=nth))  # domain 1's
    assert failed_rules(result) == {"CID-1"}
    (found,) = result.nonconformances
    assert found.domid == 2
    assert (found.expected, found.observed) == ("x7 = 0x3", "x7 = 0x2")
    assert found.event.startswith("d2v")


def test_a_refused_domain_that_runs_is_found_from_records_alone() -> None:
    board = Board()
    board.create(0)
    events = [
        *board.events,
        DomainCreated(90, 3),
        El3Call(91, 0, 0, (abi.VM_CREATED, 4, 0, 0, 0, 0, 0, 0)),
        El3Return(92, 0, 0, (abi.SmcReturn.ENOTAVAIL, 0, 0, 0, 0, 0, 0, 0)),
    ]
    assert failed_rules(check_records(records_of(events))) == set()
    regs = (abi.FID["CALLS_COUNT"], *range(1, 18))
    runs = [GuestCall(93, 0, 3, regs), GuestReturn(94, 0, 3, (abi.SMCCC_UNKNOWN_FUNCTION, *regs[1:]))]
    assert failed_rules(check_records(records_of([*events, *runs]))) == {"LIFE-5"}
    records = records_of(events)
    rings = Record(pack_record(Kind.DOORBELL, len(records) + 1, (0,) * 18, domain=3, vcpu=0))
    assert failed_rules(check_records([*records, rings])) == {"LIFE-5"}


def test_a_domain_whose_creation_was_seen_and_that_optee_was_not_told_of_has_no_mediator() -> None:
    """In a trace that begins in the middle, too: what such a domain is answered is known."""
    regs = (abi.CALLS_UID, *range(1, 18))
    records = [
        pack_record(Kind.DOMAIN_CREATE, 5, (0,), imm=3),
        pack_record(Kind.GUEST_CALL, 6, regs, domain=3, vcpu=0, pc=0x1000),
        pack_record(Kind.GUEST_RETURN, 7, (0, *regs[1:]), domain=3, vcpu=0, pc=0x1004),
    ]
    assert failed_rules(check_records(map(Record, records))) == {"DISP-4"}


def test_a_known_deviation_is_reported_with_its_evidence_and_is_no_failure() -> None:
    board = Board(defects=frozenset({"D8"}))
    board.create(1)
    board.message(1, abi.encode_arg(abi.Arg(cmd=1, num_params=128)))
    result = check_events(board.events)
    assert result.verdict == PASS
    assert result.rule("STD-3").verdict == DEVIATION
    (seen,) = [d for d in result.deviations if d.id == "D8"]
    assert (seen.status, seen.rule, seen.count) == (SEEN, "STD-3", 1)
    assert "x0: expected 0x0, observed 0x32000004" in seen.evidence
    strict = check_events(board.events, deviations={})
    assert strict.verdict == FAIL
    assert not strict.deviations


def test_a_listed_deviation_that_is_gone_is_reported() -> None:
    board = Board()
    board.create(1)
    board.message(1, abi.encode_arg(abi.Arg(cmd=1, num_params=128)))
    result = check_events(board.events)
    (gone,) = [d for d in result.deviations if d.id == "D8"]
    assert gone.status == NOT_SEEN
    assert result.rule("STD-3").verdict == PASS


def test_isolation_findings_are_marked_for_private_report() -> None:
    board = Board(defects=frozenset({"D1"}))
    board.create(1)
    regs = board.message(1, INVOKE, plan=[alloc()])
    regs = board.serve_alloc(1, regs)
    board.reply(1, abi.Param(abi.Attr.TMEM_OUTPUT, 0x8000_0000, 4096, 0xB1))
    board.resume(1, regs)
    result = check_events(board.events)
    private = {d.id for d in result.deviations if d.report_privately}
    assert private == {"D1"}


def test_a_killed_domain_that_never_goes_is_told() -> None:
    board = Board()
    board.create(0)
    board.create(1)
    records = records_of(board.events)
    last = len(records)
    kill = Record(pack_record(Kind.DOMAIN_KILL, last + 1, (0,), imm=1))
    gone = Record(pack_record(Kind.DOMAIN_DESTROY, last + 2, (0,), imm=1))
    told = f"domain 1 was killed at record {last + 1} and is not gone at the end of the trace"
    assert told in check_records([*records, kill]).gaps
    assert check_records([*records, kill, gone]).gaps == ()


def test_a_rule_nothing_happened_for_is_not_exercised() -> None:
    result = check_events(EXAMPLES["STD-8"].good)
    assert result.rule("MEM-3").verdict == NOT_EXERCISED
    assert result.rule("STD-8").verdict == PASS
    with pytest.raises(KeyError):
        result.rule("STD-99")

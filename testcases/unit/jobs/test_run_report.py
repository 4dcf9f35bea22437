# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run's verdict is made of: traces first, then what ended it, then what failed, then what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework.common.errors import BoardError, GuestCrash, GuestError, InfrastructureError
from framework.conformance.conclusion import conclude
from framework.conformance.policy import FailOn
from framework.conformance.result import ConformanceResult
from framework.jobs.run import TRACEBACK, _expected
from framework.jobs.run_report import Found, verdict_of
from framework.report.model import BoardTestReport
from testcases.unit.conformance.test_merge import deviating, result

GOOD = result(STD_1="pass")
BROKEN = result(STD_1="fail")


def verdict(
    trace: ConformanceResult | None = GOOD,
    failure: BaseException | None = None,
    tests: tuple[BoardTestReport, ...] = (),
    fail_on: FailOn = FailOn.NONCONFORMANCE,
) -> tuple[str, str | None]:
    found = Found({}, {} if trace is None else {"run": trace}, tests, failure)
    return verdict_of(found, None if trace is None else conclude(trace, fail_on))


def test_a_run_in_which_all_went_well_passes() -> None:
    assert verdict() == ("pass", None)
    assert verdict(None) == ("pass", None)


@pytest.mark.parametrize("failure", [GuestError("the domain needs `tee`"), BoardError("no byte"), KeyboardInterrupt()])
def test_what_the_trace_proves_comes_before_what_ended_the_run(failure: BaseException) -> None:
    kind, reason = verdict(BROKEN, failure)
    assert kind == "fail"
    assert reason is not None
    assert reason.startswith("the mediator does not conform: STD-1 broken; ")
    assert reason.endswith(str(failure) or "interrupted")


def test_a_run_that_broke_off_without_a_broken_rule_is_infrastructure() -> None:
    assert verdict(GOOD, GuestError("no answer")) == ("infrastructure", "no answer")
    assert verdict(GOOD, KeyboardInterrupt()) == ("infrastructure", "interrupted")
    assert verdict(GOOD, GuestCrash("Xen panicked")) == ("fail", "Xen panicked")


def test_evidence_that_is_incomplete_is_no_pass_and_no_failure() -> None:
    kind, reason = verdict(replace(GOOD, incomplete=True, gaps=("run: the closing record is missing",)))
    assert kind == "infrastructure"
    assert reason == "the evidence is incomplete: run: the closing record is missing"
    assert verdict(result(0))[0] == "infrastructure"


def test_a_failed_stimulus_fails_the_run_and_a_skipped_one_does_not() -> None:
    assert verdict(tests=(BoardTestReport("a", "skipped", 1.0),))[0] == "pass"
    assert verdict(tests=(BoardTestReport("a", "failed", 1.0),)) == ("fail", "1 of 1 tests failed, first a")
    assert verdict(tests=(BoardTestReport("a", "error", 1.0),))[0] == "fail"


def test_the_policy_is_named_where_it_decides() -> None:
    seen = deviating("D1", isolation=True)
    assert verdict(seen)[0] == "pass"
    kind, reason = verdict(seen, fail_on=FailOn.ISOLATION)
    assert kind == "fail"
    assert reason is not None
    assert reason.endswith("(--fail-on isolation)")


def test_an_unexpected_exception_leaves_its_traceback_and_is_infrastructure(tmp_path: Path) -> None:
    try:
        int("x" * 5)
    except ValueError as error:
        made = _expected(error, tmp_path)
    assert isinstance(made, InfrastructureError)
    assert made.where == str(tmp_path / TRACEBACK)
    assert "ValueError: invalid literal" in (tmp_path / TRACEBACK).read_text()
    known = BoardError("dead")
    assert _expected(known, tmp_path) is known
    with pytest.raises(SystemExit):
        _expected(SystemExit(3), tmp_path)

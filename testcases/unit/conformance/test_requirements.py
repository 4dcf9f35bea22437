# SPDX-License-Identifier: GPL-2.0-or-later
"""R1 to R22: each has rules and a verdict; the documents and the report name the same ones."""

from __future__ import annotations

import re

from framework.common.paths import ROOT
from framework.conformance.requirements import judge_requirements
from framework.conformance.result import DEVIATION, FAIL, NOT_CHECKED, PASS
from mediator_ref import RULES
from mediator_ref.examples import EXAMPLES
from mediator_ref.requirements import REQUIREMENTS, RULES_OF
from testcases.unit.conformance.samples import check_events


def verdicts(rule: str, *, good: bool = False) -> dict[str, str]:
    example = EXAMPLES[rule]
    found = judge_requirements(check_events(example.good if good else example.bad, example.limits, deviations={}))
    return {requirement.id: requirement.verdict for requirement in found}


def test_every_requirement_has_a_rule_and_every_name_of_one_is_known() -> None:
    assert all(RULES_OF.values())
    assert {name for rule in RULES.values() for name in rule.requirements} <= set(REQUIREMENTS)
    text = (ROOT / "docs" / "requirements.md").read_text()
    assert re.findall(r"^\| (R[0-9]+) \|", text, re.MULTILINE) == list(REQUIREMENTS)


def test_a_requirement_is_as_bad_as_its_worst_rule() -> None:
    assert verdicts("STD-6", good=True)["R22"] == PASS
    assert verdicts("STD-6")["R22"] == FAIL
    deviating = judge_requirements(check_events(EXAMPLES["STD-12"].bad, EXAMPLES["STD-12"].limits))
    assert next(one for one in deviating if one.id == "R6").verdict == DEVIATION


def test_what_was_not_checked_is_said_with_its_reason() -> None:
    found = {one.id: one for one in judge_requirements(check_events(EXAMPLES["STD-6"].good))}
    assert found["R13"].verdict == NOT_CHECKED
    assert found["R13"].open == (f"CODE-4: {RULES['CODE-4'].unobservable}",)
    assert any(reason.startswith("RPC-2: ") for reason in found["R22"].open)

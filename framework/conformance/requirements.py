# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts for the requirements of the review, from those of the rules that decide them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from framework.conformance.result import (
    DEVIATION,
    FAIL,
    NOT_CHECKED,
    NOT_EXERCISED,
    PASS,
    ConformanceResult,
    RuleResult,
)
from mediator_ref.requirements import REQUIREMENTS, RULES_OF


@dataclass(frozen=True, slots=True)
class RequirementResult:
    """One requirement over a whole run.

    ``verdict`` is the worst of its rules' that were checked, or ``not checked``; ``rules`` decide it, and ``open`` are
    those of them that were not checked, with the first reason of each.
    """

    id: str
    title: str
    verdict: str
    rules: tuple[str, ...]
    open: tuple[str, ...]


def judge_requirements(result: ConformanceResult) -> tuple[RequirementResult, ...]:
    """Return the verdict of each requirement, in the order of the review."""
    return tuple(_requirement(id_, result) for id_ in REQUIREMENTS)


def _requirement(id_: str, result: ConformanceResult) -> RequirementResult:
    rules = [rule for rule in result.rules if rule.id in RULES_OF[id_]]
    found = {rule.verdict for rule in rules}
    verdict = next((v for v in (FAIL, DEVIATION, PASS) if v in found), NOT_CHECKED)
    return RequirementResult(id_, REQUIREMENTS[id_], verdict, RULES_OF[id_], tuple(_open(rules)))


def _open(rules: Iterable[RuleResult]) -> Iterable[str]:
    for rule in rules:
        if rule.verdict == NOT_EXERCISED:
            yield f"{rule.id}: nothing that it is about happened"
        elif rule.verdict == NOT_CHECKED:
            yield f"{rule.id}: {rule.not_checked_reasons[0] if rule.not_checked_reasons else 'not checked'}"

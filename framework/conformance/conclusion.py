# SPDX-License-Identifier: GPL-2.0-or-later
"""Conclusion of a run or a trace: a sentence, and whether it fails by the policy that the user has set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from framework.conformance.baseline import Baseline
from framework.conformance.policy import FailOn
from framework.conformance.result import FAIL, NOT_CHECKED, SEEN, ConformanceResult, DeviationSeen


class Kind(StrEnum):
    """Kinds of a conclusion."""

    CONFORMS = "conforms"
    DEVIATES = "conforms but for known deviations"
    NONCONFORMING = "does not conform"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Conclusion:
    """The head of a report. ``unexpected`` are deviations that the baseline does not have (none without a baseline),
    ``vanished`` those of the baseline whose condition was met and that did not show."""

    kind: Kind
    sentence: str
    failed: bool
    fail_on: FailOn
    deviations: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    rules_broken: tuple[str, ...] = ()


def conclude(
    result: ConformanceResult,
    fail_on: FailOn = FailOn.NONCONFORMANCE,
    baseline: Baseline | None = None,
    version: str | None = None,
) -> Conclusion:
    """Draw the conclusion of a result; ``version`` is that of the mediator under test, which waivers may name.

    A nonconformance outweighs everything, then what is missing: an incomplete trace does not conform to anything.
    """
    seen = [deviation for deviation in result.deviations if deviation.status == SEEN]
    waived = None if baseline is None else baseline.waived(version)
    unexpected = () if waived is None else tuple(d.id for d in seen if d.id not in waived)
    vanished = () if waived is None else tuple(d.id for d in result.deviations if d.status != SEEN and d.id in waived)
    isolation = tuple(d.id for d in seen if d.report_privately)
    broken = tuple(rule.id for rule in result.rules if rule.verdict == FAIL)
    kind, sentence = _words(result, seen, isolation, broken, unexpected)
    bad = {FailOn.NONCONFORMANCE: False, FailOn.ISOLATION: bool(isolation), FailOn.ANY_DEVIATION: bool(seen)}[fail_on]
    return Conclusion(
        kind,
        sentence,
        kind is Kind.NONCONFORMING or bad,
        fail_on,
        tuple(d.id for d in seen),
        isolation,
        unexpected,
        vanished,
        broken,
    )


def _words(
    result: ConformanceResult,
    seen: Sequence[DeviationSeen],
    isolation: Sequence[str],
    broken: Sequence[str],
    unexpected: Sequence[str],
) -> tuple[Kind, str]:
    if result.failed:
        return Kind.NONCONFORMING, f"does not conform: {', '.join(broken)} broken"
    if unexpected:
        return Kind.NONCONFORMING, f"does not conform: {', '.join(unexpected)} seen and not in the baseline"
    if result.incomplete:
        return Kind.INCOMPLETE, f"incomplete: {result.gaps[-1] if result.gaps else 'a trace holds nothing to check'}"
    if result.verdict == NOT_CHECKED:
        return Kind.INCOMPLETE, "incomplete: nothing could be checked"
    if seen:
        plural = "" if len(seen) == 1 else "s"
        inside = f", {len(isolation)} of them isolation" if isolation else ""
        return Kind.DEVIATES, f"conforms but for {len(seen)} known deviation{plural}{inside}"
    return Kind.CONFORMS, "conforms"

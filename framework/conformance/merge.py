# SPDX-License-Identifier: GPL-2.0-or-later
"""Sum of the results of several traces: a verdict for each rule over a whole run, its stimuli and its boot included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from framework.conformance.result import (
    DEVIATION,
    FAIL,
    KEPT,
    NOT_CHECKED,
    NOT_EXERCISED,
    NOT_SEEN,
    PASS,
    SEEN,
    ConformanceResult,
    DeviationSeen,
    Nonconformance,
    RuleResult,
    counted,
)
from mediator_ref import RULES

CARRIERS = 8
"""Traces of a rule or deviation that the result names; the numbers count all."""


def merge(parts: Mapping[str, ConformanceResult]) -> ConformanceResult:
    """Add up the results of several traces, by the name of what each recorded (``run``, or a stimulus's id).

    A rule is as bad as at its worst, and checked where it was checked once. :attr:`RuleResult.carried_by` names the
    traces that its verdict rests on. The whole is incomplete if one part is, or if a part checked nothing at all.
    """
    rules = tuple(_rule(id_, parts) for id_ in RULES)
    return ConformanceResult(
        events_checked=sum(part.events_checked for part in parts.values()),
        rules=rules,
        nonconformances=tuple(_nonconformances(parts)),
        deviations=tuple(_deviations(parts)),
        gaps=tuple(f"{name}: {gap}" for name, part in parts.items() for gap in part.gaps),
        notes=tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes),
        incomplete=any(part.incomplete or part.verdict == NOT_CHECKED for part in parts.values()),
        outcomes=_sums(part.outcomes for part in parts.values()),
        instructions=_largest(part.instructions for part in parts.values()),
    )


def _sums(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


def _largest(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    largest: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            largest[name] = max(largest.get(name, 0), number)
    return largest


def _rule(id_: str, parts: Mapping[str, ConformanceResult]) -> RuleResult:
    found = {name: part.rule(id_) for name, part in parts.items()}
    if not found:
        return RuleResult(id_, RULES[id_].title, RULES[id_].severity.value, NOT_EXERCISED, 0, 0)
    verdicts = {rule.verdict for rule in found.values()}
    worst = next(v for v in (FAIL, DEVIATION, PASS, NOT_CHECKED, NOT_EXERCISED) if v in verdicts)
    reasons: Counter[str] = Counter()
    for rule in found.values():
        reasons.update(rule.reasons)
    carriers = [name for name, rule in found.items() if rule.verdict == worst and worst != NOT_EXERCISED]
    first = next(iter(found.values()))
    return replace(
        first,
        verdict=worst,
        passed=sum(rule.passed for rule in found.values()),
        failed=sum(rule.failed for rule in found.values()),
        deviations=sum(rule.deviations for rule in found.values()),
        not_checked=sum(rule.not_checked for rule in found.values()),
        not_checked_reasons=tuple(counted(reasons)) or first.not_checked_reasons,
        reasons=dict(reasons),
        carried_by=tuple(carriers[:CARRIERS]),
    )


def _nonconformances(parts: Mapping[str, ConformanceResult]) -> Iterable[Nonconformance]:
    kept: Counter[str] = Counter()
    for name, part in parts.items():
        for found in part.nonconformances:
            kept[found.rule] += 1
            if kept[found.rule] <= KEPT:
                yield replace(found, where=name)


def _deviations(parts: Mapping[str, ConformanceResult]) -> Iterable[DeviationSeen]:
    """Return each listed deviation once: seen if one trace saw it, else absent if one met its condition."""
    by_id: dict[str, list[tuple[str, DeviationSeen]]] = {}
    for name, part in parts.items():
        for deviation in part.deviations:
            by_id.setdefault(deviation.id, []).append((name, deviation))
    for found in by_id.values():
        seen = [(name, deviation) for name, deviation in found if deviation.status == SEEN]
        chosen = seen or found
        rules = dict.fromkeys(rule for _, deviation in chosen for rule in deviation.rule.split(", "))
        yield replace(
            chosen[0][1],
            rule=", ".join(rules),
            status=SEEN if seen else NOT_SEEN,
            count=sum(deviation.count for _, deviation in chosen),
            carried_by=tuple(name for name, _ in chosen[:CARRIERS]),
        )

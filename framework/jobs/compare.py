# SPDX-License-Identifier: GPL-2.0-or-later
"""Two reports side by side: what one run found and the other did not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.common.errors import UsageError

_ORDER = ("fail", "not checked", "not exercised", "deviation", "pass")
"""Verdicts of a rule, the worst first: one that is no longer checked may hide a failure."""
_XTEST_ORDER = ("crashed", "failed", "missing", "skipped", "ok")
_SLOWER, _SLOWER_BY = 1.5, 5.0
"""A phase is told of as slower from this factor and these seconds on: boots on a busy host differ that much."""


@dataclass(frozen=True)
class Difference:
    """One thing that differs: ``kind`` is stack, verdict, rule, deviation, xtest, test or timing; ``worse`` than
    before, or not."""

    kind: str
    name: str
    before: str
    after: str
    worse: bool

    def __str__(self) -> str:
        mark = "!" if self.worse else " "
        return f"{mark} {self.kind:<9} {self.name}: {self.before} -> {self.after}"


def load_report(path: Path) -> Mapping[str, Any]:
    """``report.json``, given itself or by its folder.

    :raises UsageError: there is none, or it is no report.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no report: {error}", hint="give a report's folder or its report.json") from error
    if not isinstance(document, dict) or "verdict" not in document or "stack" not in document:
        raise UsageError(f"{file} is no report of medcheck", hint="give a report's folder or its report.json")
    return document


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """All differences between two reports, those of the parts under test first."""
    return [
        *_stacks(before, after),
        *_verdicts(before, after),
        *_rules(before, after),
        *_deviations(before, after),
        *_xtest(before, after),
        *_tests(before, after),
        *_timings(before, after),
    ]


def _pairs(kind: str, before: Mapping[str, str], after: Mapping[str, str], worse: Any) -> Iterator[Difference]:
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name, "missing"), after.get(name, "missing")
        if one != other:
            yield Difference(kind, name, one, other, worse(one, other))


def _rank(order: tuple[str, ...], word: str) -> int:
    return order.index(word) if word in order else 0


def _stacks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    one, other = (
        {part["name"].split(" (")[0]: f"{part['version']} [{part['sha256'][:8]}]" for part in report["stack"]}
        for report in (before, after)
    )
    yield from _pairs("stack", one, other, lambda _one, _other: False)


def _verdicts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    order = ("infrastructure", "fail", "pass")
    one, other = before["verdict"], after["verdict"]
    if one != other:
        worse = _rank(order, other) < _rank(order, one)
        yield Difference("verdict", "run", one, f"{other} ({after['reason']})" if after["reason"] else other, worse)


def _rules(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    one, other = (
        {rule["id"]: rule["verdict"] for rule in report.get("conformance", {"rules": []})["rules"]}
        for report in (before, after)
    )
    yield from _pairs("rule", one, other, lambda a, b: _rank(_ORDER, b) < _rank(_ORDER, a))


def _deviations(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    one, other = (
        {
            deviation["id"]: deviation["status"]
            for deviation in report.get("conformance", {"deviations": []})["deviations"]
        }
        for report in (before, after)
    )
    yield from _pairs("deviation", one, other, lambda _one, other: other == "seen")


def _xtest(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    one, other = (
        {
            f"{guest['name']} {case['id']}": case["status"]
            for guest in report["guests"]
            for case in (guest["xtest"] or {"cases": []})["cases"]
        }
        for report in (before, after)
    )
    yield from _pairs("xtest", one, other, lambda a, b: _rank(_XTEST_ORDER, b.lower()) < _rank(_XTEST_ORDER, a.lower()))


def _tests(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    order = ("error", "failed", "missing", "skipped", "passed")
    one, other = ({test["id"]: test["status"] for test in report.get("tests", ())} for report in (before, after))
    yield from _pairs("test", one, other, lambda a, b: _rank(order, b) < _rank(order, a))


def _timings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """Phases that take much longer or much less; the time of a phase is no failure."""
    one, other = (
        {phase["name"]: phase["seconds"] for phase in report.get("timings", ())} for report in (before, after)
    )
    for name in one.keys() & other.keys():
        short, long = sorted((one[name], other[name]))
        if long > _SLOWER * short and long - short > _SLOWER_BY:
            yield Difference("timing", name, f"{one[name]:.1f} s", f"{other[name]:.1f} s", False)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of a check as plain data: for the report, the command line and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mediator_ref import RULES

PASS = "pass"
FAIL = "fail"
DEVIATION = "deviation"
NOT_CHECKED = "not checked"
INCOMPLETE = "incomplete"
NOT_EXERCISED = "not exercised"
SEEN = "seen"
NOT_SEEN = "not seen"

_FROM_OUTSIDE = frozenset(rule.id for rule in RULES.values() if rule.needs)
"""Rules that hold by what was measured beside the trace: they do not make an empty trace evidence."""

KEPT = 20
"""Nonconformances of one rule that are kept with their explanations; all are counted."""
SAID = "nonconformance: "
"""The beginning of the line by which a running job says so."""

RESULT_FILE = "conformance.json"
"""File beside the trace of a test's board: the test's id as ``test``, and its result."""


def counted(reasons: Counter[str], most: int | None = None) -> list[str]:
    """Return the reasons as a person reads them, the commonest first, at most ``most``: ``no memory seen (3x)``."""
    return [f"{reason} ({count}x)" if count > 1 else reason for reason, count in reasons.most_common(most)]


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule over the whole trace.

    ``verdict`` is the worst that happened: ``fail``, ``deviation``, ``pass``, ``not checked`` (there was
    something to check and it never could be), ``not exercised`` (nothing the rule is about happened).
    ``passed`` and ``failed`` count checks, ``deviations`` those explained by a listed deviation,
    ``not_checked`` those that could not be made, for the ``not_checked_reasons`` given; ``reasons`` counts them.
    ``carried_by``: in a result over several traces, those that the verdict rests on.
    """

    id: str
    title: str
    severity: str
    verdict: str
    passed: int
    failed: int
    deviations: int = 0
    not_checked: int = 0
    not_checked_reasons: tuple[str, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    carried_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nonconformance:
    """A wrong action of the mediator that no listed deviation explains.

    ``seq`` is the record of the trace at which it was decided (of run ``segment`` of the plugin, from 1),
    ``event`` that record in the ABI's words; ``explanation`` is the whole explanation in several lines. ``where``: in a
    result over several traces, the one that shows it.
    """

    rule: str
    seq: int
    domid: int | None
    event: str
    expected: str
    observed: str
    explanation: str
    segment: int = 1
    where: str = ""


@dataclass(frozen=True, slots=True)
class DeviationSeen:
    """A listed deviation whose condition was met.

    ``status`` is ``seen`` (``count`` times; ``evidence`` is the first time) or ``not seen``: its condition
    was met ``count`` times and the mediator did the right thing, so the list is out of date for it.
    ``report_privately``: an isolation finding, for the mediator's maintainers first.
    """

    id: str
    rule: str
    status: str
    evidence: str
    count: int
    report_privately: bool
    carried_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConformanceResult:
    """Result of a check.

    ``gaps`` names what is missing from the trace and what was assumed instead; ``incomplete``: records are or may be
    missing that were once written, so that the whole proves nothing. ``nonconformances`` holds the
    first of each rule up to a limit; :attr:`failed` counts all. ``notes`` are defects of medcheck itself.
    ``outcomes`` counts the occasions for each outcome of the specification, 0 included. ``instructions``: the most
    that the hypervisor executed at once, by what for; empty when that was not observed.
    """

    events_checked: int
    rules: tuple[RuleResult, ...]
    nonconformances: tuple[Nonconformance, ...] = ()
    deviations: tuple[DeviationSeen, ...] = ()
    gaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    incomplete: bool = False
    outcomes: Mapping[str, int] = field(default_factory=dict)
    instructions: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Checks that failed without a listed deviation."""
        return sum(rule.failed for rule in self.rules)

    @property
    def verdict(self) -> str:
        """``fail``, ``pass``, ``incomplete`` (nothing failed, but the trace is damaged), or ``not checked`` when no
        rule could be checked at all."""
        if self.failed:
            return FAIL
        if self.incomplete:
            return INCOMPLETE
        checked = any(rule.verdict in (PASS, DEVIATION) for rule in self.rules if rule.id not in _FROM_OUTSIDE)
        return PASS if checked else NOT_CHECKED

    def rule(self, id_: str) -> RuleResult:
        """The result of one rule. Raises KeyError for an id that does not exist."""
        for rule in self.rules:
            if rule.id == id_:
                return rule
        raise KeyError(id_)

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and ``report.json``: the fields, and ``verdict``."""
        return {"verdict": self.verdict, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConformanceResult:
        """The result that :meth:`to_json` was made of. Raises KeyError or TypeError for anything else."""
        return cls(
            data["events_checked"],
            tuple(RuleResult(**_tuples(rule)) for rule in data["rules"]),
            tuple(Nonconformance(**_tuples(found)) for found in data["nonconformances"]),
            tuple(DeviationSeen(**_tuples(deviation)) for deviation in data["deviations"]),
            tuple(data["gaps"]),
            tuple(data["notes"]),
            data["incomplete"],
            dict(data["outcomes"]),
            dict(data["instructions"]),
        )


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

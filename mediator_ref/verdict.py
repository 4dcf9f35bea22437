# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts and their tally: passes are counted, everything else is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from mediator_ref.rules import DeviationId, RuleId


class Outcome(Enum):
    """Outcome of one check. A deviation is a known nonconformance, never a pass."""

    PASS = "pass"
    FAIL = "fail"
    DEVIATION = "deviation"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it should be, named in the ABI's words, with its expected and observed value."""

    field: str
    expected: str
    observed: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, observed {self.observed}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check that did not simply pass, with what is needed to explain it.

    ``seq`` is the event at which it was decided, ``cause`` the guest's call (or other event) it answers; ``state`` is
    the domain's state before, in words.
    """

    rule: RuleId
    outcome: Outcome
    seq: int
    domid: int | None = None
    vcpu: int | None = None
    cause: int | None = None
    differences: tuple[Difference, ...] = ()
    reason: str = ""
    deviation: DeviationId | None = None
    state: str = ""

    def __str__(self) -> str:
        named = f" [{self.deviation}]" if self.deviation else ""
        what = "; ".join(str(d) for d in self.differences)
        return f"#{self.seq} d{self.domid} {self.rule}{named} {self.outcome.value}: " + "; ".join(
            part for part in (self.reason, what) if part
        )


class RuleCounter(Counter[str]):
    """Counts by rule. Raises ValueError for a rule that does not exist, also when it is only read."""

    def __missing__(self, key: str) -> int:
        RuleId(key)
        return 0


@dataclass(slots=True)
class Tally:
    """Totals per rule. ``not_checked`` counts by rule and reason, so that silence is visible in numbers."""

    events: int = 0
    passes: RuleCounter = field(default_factory=RuleCounter)
    fails: RuleCounter = field(default_factory=RuleCounter)
    deviations: Counter[tuple[RuleId, DeviationId]] = field(default_factory=Counter)
    not_checked: Counter[tuple[RuleId, str]] = field(default_factory=Counter)
    unearned: Counter[str] = field(default_factory=Counter)
    """Reasons of ``not_checked`` that anything may hide behind: with one the evidence is incomplete."""
    instructions: dict[str, int] = field(default_factory=dict)
    """The most instructions that the hypervisor took at once, by what for."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Occasions for outcomes of the specification (:data:`mediator_ref.compare.outcomes.OUTCOMES`)."""
    deviations_not_seen: Counter[str] = field(default_factory=Counter)
    """Deviations whose stimulus was there and whose defect was not, by deviation id."""

    def saw(self, outcome: str | None) -> None:
        """Count an occasion for an outcome of the specification, if it is known."""
        if outcome is not None:
            self.outcomes[outcome] += 1

    def outcome(self, rule: str) -> Outcome:
        """Worst outcome of a rule; ``NOT_CHECKED`` when it never passed and never failed."""
        if self.fails[rule]:
            return Outcome.FAIL
        if any(name == rule for name, _ in self.deviations):
            return Outcome.DEVIATION
        return Outcome.PASS if self.passes[rule] else Outcome.NOT_CHECKED

    def seen_deviations(self) -> dict[str, int]:
        """Count the deviations that were seen, by deviation id."""
        seen: Counter[str] = Counter()
        for (_, deviation), count in self.deviations.items():
            seen[deviation] += count
        return dict(seen)

    def stale_deviations(self) -> tuple[str, ...]:
        """Listed deviations whose stimulus was there and that did not show: the defect is fixed, or the list wrong."""
        seen = self.seen_deviations()
        return tuple(sorted(name for name in self.deviations_not_seen if name not in seen))

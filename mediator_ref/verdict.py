"""Verdicts and their tally: passes are counted, everything else is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class Outcome(Enum):
    """What became of one check. A deviation is a known nonconformance, never a pass."""

    PASS = "pass"
    FAIL = "fail"
    DEVIATION = "deviation"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: ``field`` in the ABI's words, then what was due and what was there."""

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

    rule: str
    outcome: Outcome
    seq: int
    domid: int | None = None
    vcpu: int | None = None
    cause: int | None = None
    differences: tuple[Difference, ...] = ()
    reason: str = ""
    deviation: str | None = None
    state: str = ""

    def __str__(self) -> str:
        named = f" [{self.deviation}]" if self.deviation else ""
        what = "; ".join(str(d) for d in self.differences)
        return f"#{self.seq} d{self.domid} {self.rule}{named} {self.outcome.value}: " + "; ".join(
            part for part in (self.reason, what) if part
        )


@dataclass(slots=True)
class Tally:
    """Totals per rule. ``not_checked`` counts by rule and reason, so that silence is visible in numbers."""

    events: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    fails: Counter[str] = field(default_factory=Counter)
    deviations: Counter[tuple[str, str]] = field(default_factory=Counter)
    not_checked: Counter[tuple[str, str]] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    """Deviations whose stimulus was there and whose defect was not, by deviation id."""

    def outcome(self, rule: str) -> Outcome:
        """The worst that happened to a rule; ``NOT_CHECKED`` when it never passed and never failed."""
        if self.fails[rule]:
            return Outcome.FAIL
        if any(name == rule for name, _ in self.deviations):
            return Outcome.DEVIATION
        return Outcome.PASS if self.passes[rule] else Outcome.NOT_CHECKED

    def seen_deviations(self) -> dict[str, int]:
        """How often each listed deviation was seen, by deviation id."""
        seen: Counter[str] = Counter()
        for (_, deviation), count in self.deviations.items():
            seen[deviation] += count
        return dict(seen)

    def stale_deviations(self) -> tuple[str, ...]:
        """Listed deviations that had their chance and did not show: the list is out of date or the defect is fixed."""
        seen = self.seen_deviations()
        return tuple(sorted(name for name in self.absent if name not in seen))

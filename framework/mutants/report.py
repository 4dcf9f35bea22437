# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a campaign: the mutation-testing-elements document, the score, and what each rule is worth.

Source: https://github.com/stryker-mutator/mutation-testing-elements, report schema 2.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.mutants.faults import Fault
from framework.mutants.outcome import KILLS, WORDS, Status, Verdict
from framework.mutants.xen import MEDIATOR, Mutant
from mediator_ref import RULES

_SCHEMA = "2"
_THRESHOLDS = {"high": 95, "low": 85}
"""Per cent of killed mutants; what the project asks of itself."""
_FOREIGN = {
    **dict.fromkeys(KILLS, "Killed"), Status.TIMEOUT: "Timeout", Status.SURVIVED: "Survived",
    Status.NOT_MET: "NoCoverage", Status.EQUIVALENT: "Ignored", Status.DUPLICATE: "Ignored",
    Status.UNDECIDED: "Pending",
}  # fmt: skip
"""Our statuses in the words of the schema."""
_COUNTED = (*KILLS, Status.TIMEOUT, Status.SURVIVED, Status.NOT_MET)
_SHOWN = 40


@dataclass(frozen=True)
class Score:
    """Counts by status. Equivalents and duplicates are no mutants to detect, and what is undecided is not counted."""

    counts: Counter[Status]

    @property
    def total(self) -> int:
        """Mutants that could be detected, with a verdict."""
        return sum(self.counts[status] for status in _COUNTED)

    @property
    def killed(self) -> int:
        """Mutants that were detected."""
        return sum(self.counts[status] for status in KILLS)

    def share(self, *statuses: Status) -> float:
        """The part of the detectable mutants with one of these statuses; 0 without any mutant."""
        return sum(self.counts[status] for status in statuses) / self.total if self.total else 0.0


def score(verdicts: Mapping[int, Verdict]) -> Score:
    """Count verdicts."""
    return Score(Counter(verdict.status for verdict in verdicts.values()))


@dataclass(frozen=True)
class RuleWorth:
    """What one rule earned: mutants at whose end it was broken, and those of them where no other rule was."""

    rule: str
    kills: int
    alone: int


def worth(verdicts: Mapping[int, Verdict]) -> list[RuleWorth]:
    """Every rule with what it killed, the best first; rules that killed nothing stand there as well."""
    kills: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for verdict in verdicts.values():
        if verdict.status is Status.NONCONFORMANCE:
            kills.update(verdict.evidence)
            alone.update(verdict.evidence if len(verdict.evidence) == 1 else ())
    rows = [RuleWorth(rule, kills[rule], alone[rule]) for rule in RULES]
    return sorted(rows, key=lambda row: (-row.kills, row.rule))


def document(source: str, mutants: Mapping[int, Mutant], verdicts: Mapping[int, Verdict]) -> dict[str, Any]:
    """The mutation-testing-elements document of a campaign, with our own words beside the schema's."""
    tests = sorted({test for verdict in verdicts.values() for test in verdict.ran})
    rows = [_row(mutants[number], verdict) for number, verdict in sorted(verdicts.items())]
    found = score(verdicts)
    return {
        "schemaVersion": _SCHEMA,
        "thresholds": _THRESHOLDS,
        "framework": {"name": "medcheck"},
        "files": {MEDIATOR: {"language": "c", "source": source, "mutants": rows}},
        "testFiles": {"testcases/suite": {"tests": [{"id": test, "name": test} for test in tests]}},
        "config": {
            "counts": {status.value: found.counts[status] for status in Status},
            "killed": round(found.share(*KILLS), 4),
            "nonconformance": round(found.share(Status.NONCONFORMANCE), 4),
            "rules": {row.rule: {"kills": row.kills, "alone": row.alone} for row in worth(verdicts)},
        },
    }


def _row(mutant: Mutant, verdict: Verdict) -> dict[str, Any]:
    place = mutant.place
    return {
        "id": mutant.id,
        "mutatorName": mutant.operator,
        "location": {
            "start": {"line": place.line, "column": place.column},
            "end": {"line": place.end_line, "column": place.end_column},
        },
        "description": mutant.words,
        "replacement": mutant.replacement,
        "status": _FOREIGN[verdict.status],
        "statusReason": " ".join([WORDS[verdict.status], *verdict.evidence]),
        "killedBy": [verdict.test] if verdict.status.kills else [],
        "coveredBy": list(verdict.ran),
        "testsCompleted": len(verdict.ran),
    }


def summary(mutants: Mapping[int, Mutant], verdicts: Mapping[int, Verdict]) -> str:
    """The score, what the rules are worth, and the lines that nothing defends, for a terminal."""
    found = score(verdicts)
    lines = [f"{len(verdicts)} mutants, {found.total} of them decided and detectable"]
    lines += [f"  {found.counts[status]:5} {WORDS[status]}" for status in Status if found.counts[status]]
    lines.append(f"killed {found.share(*KILLS):.1%}, by nonconformance {found.share(Status.NONCONFORMANCE):.1%}")
    earning = [f"{row.rule} {row.kills} ({row.alone} alone)" for row in worth(verdicts) if row.kills]
    if earning:
        lines.append(f"rules that were broken: {', '.join(earning)}")
    lines += _undefended(mutants, verdicts)
    return "\n".join(lines)


def survivors(mutants: Mapping[int, Mutant], verdicts: Mapping[int, Verdict]) -> str:
    """The mutants that nothing killed, as Markdown, by function and line."""
    by_function: dict[str, list[int]] = defaultdict(list)
    for number, verdict in verdicts.items():
        if verdict.status in (Status.SURVIVED, Status.NOT_MET, Status.TIMEOUT):
            by_function[mutants[number].function].append(number)
    lines = []
    for function in sorted(by_function, key=lambda name: (-len(by_function[name]), name)):
        lines += ["", f"### {function}", "", "| line | id | operator | change | why |", "|---|---|---|---|---|"]
        for number in sorted(by_function[function], key=lambda n: (mutants[n].place.line, n)):
            mutant, verdict = mutants[number], verdicts[number]
            why = "; ".join([verdict.status.value, *verdict.evidence])
            change = mutant.words.replace("|", "\\|").replace("`", "'")
            lines.append(f"| {mutant.place.line} | {mutant.id} | {mutant.operator} | `{change}` | {why} |")
    return "\n".join(lines).strip() + "\n"


def _undefended(mutants: Mapping[int, Mutant], verdicts: Mapping[int, Verdict]) -> list[str]:
    """The lines whose mutants all live, with the number of these."""
    living: Counter[tuple[str, int]] = Counter()
    killed: set[int] = set()
    for number, verdict in verdicts.items():
        line = mutants[number].place.line
        if verdict.status.kills:
            killed.add(line)
        elif verdict.status in (Status.SURVIVED, Status.NOT_MET):
            living[mutants[number].function, line] += 1
    open_lines = sorted((function, line, n) for (function, line), n in living.items() if line not in killed)
    if not open_lines:
        return []
    shown = [f"  {function}:{line} ({n})" for function, line, n in open_lines[:_SHOWN]]
    more = [f"  and {len(open_lines) - _SHOWN} more"] if len(open_lines) > _SHOWN else []
    return [f"{len(open_lines)} lines that nothing defends:", *shown, *more]


def seeded(rows: Sequence[tuple[Fault, Verdict]]) -> str:
    """The faults of meaning with what became of each, as Markdown."""
    lines = ["| fault | kind | what it breaks | expected | outcome | evidence |", "|---|---|---|---|---|---|"]
    for fault, verdict in rows:
        expected = ", ".join(fault.expected) or "nothing changes"
        evidence = ", ".join(verdict.evidence).replace("|", "\\|")
        lines.append(f"| {fault.id} | {fault.kind} | {fault.what} | {expected} | {verdict.status.value} | {evidence} |")
    return "\n".join(lines) + "\n"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two reports, or two matrices, side by side: what one found and the other did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from framework.common.errors import UsageError
from framework.report.facts import Facts

_SLOWER, _SLOWER_BY = 1.5, 5.0
"""A phase is told of as slower from this factor and these seconds on: boots on a busy host differ that much."""


@dataclass(frozen=True)
class Difference:
    """One thing that differs: ``kind`` is stack, verdict, rule, deviation, xtest, test, timing or column; ``worse``
    than before, or not."""

    kind: str
    name: str
    before: str
    after: str
    worse: bool

    def __str__(self) -> str:
        mark = "!" if self.worse else " "
        return f"{mark} {self.kind:<9} {self.name}: {self.before} -> {self.after}"


def compare_all(before: Mapping[str, Facts], after: Mapping[str, Facts]) -> list[Difference]:
    """All differences between two reports, or column by column between two matrices; a column that is no more is for
    the worse.

    :raises UsageError: one is a report and the other a matrix.
    """
    if ("" in before) != ("" in after):
        raise UsageError("one of them is a report and the other a matrix", hint="compare two reports, or two matrices")
    found = []
    for column in dict.fromkeys([*before, *after]):
        if column not in before or column not in after:
            one, other = (("there" if column in side else "missing") for side in (before, after))
            found.append(Difference("column", column, one, other, column not in after))
            continue
        differences = compare(before[column], after[column])
        found += [replace(item, name=f"{column}: {item.name}" if column else item.name) for item in differences]
    return found


def compare(before: Facts, after: Facts) -> list[Difference]:
    """All differences between two reports, those of the parts under test first."""
    return [*_differences(before, after), *_timings(before, after)]


def _sinks(*worst_first: str) -> Callable[[str, str], bool]:
    """Whether the second word is worse than the first; an unknown one is the worst."""

    def worse(before: str, after: str) -> bool:
        one, other = (worst_first.index(word) if word in worst_first else 0 for word in (before, after))
        return other < one

    return worse


_WORSE: Mapping[str, Callable[[str, str], bool]] = {
    "stack": lambda _before, _after: False,
    "verdict": _sinks("infrastructure", "fail", "flaky", "pass"),
    # One that is no longer checked may hide a failure.
    "rule": _sinks("fail", "not checked", "not exercised", "deviation", "pass"),
    "deviation": lambda _before, after: after == "seen",
    "xtest": lambda before, after: _sinks("crashed", "hang", "failed", "flaky", "missing", "skipped", "ok")(
        before.lower(), after.lower()
    ),
    "test": _sinks("error", "hang", "failed", "flaky", "missing", "skipped", "passed"),
}
"""Each kind of difference, and when it is for the worse."""


def _differences(before: Facts, after: Facts) -> Iterator[Difference]:
    for kind, worse in _WORSE.items():
        there, here = before.words[kind], after.words[kind]
        for name in dict.fromkeys([*there, *here]):
            one, other = there.get(name, "missing"), here.get(name, "missing")
            if one != other:
                why = f" ({after.reason})" if kind == "verdict" and after.reason else ""
                yield Difference(kind, name, one, other + why, worse(one, other))


def _timings(before: Facts, after: Facts) -> Iterator[Difference]:
    """Phases that take much longer or much less; the time of a phase is no failure."""
    for name in before.seconds.keys() & after.seconds.keys():
        one, other = before.seconds[name], after.seconds[name]
        short, long = sorted((one, other))
        if long > _SLOWER * short and long - short > _SLOWER_BY:
            yield Difference("timing", name, f"{one:.1f} s", f"{other:.1f} s", False)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Two reports side by side: what one run found and the other did not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.common.errors import UsageError

_SLOWER, _SLOWER_BY = 1.5, 5.0
"""A phase is told of as slower from this factor and these seconds on: boots on a busy host differ that much."""

_MOST_BYTES = 64 << 20
"""Of a report; that of a whole nightly run has a few MB."""
_HINT = "give a report's folder or its report.json"


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


@dataclass(frozen=True)
class Facts:
    """What of a report is compared: words by kind and name, the seconds of each phase, and why it is no pass."""

    words: Mapping[str, Mapping[str, str]]
    seconds: Mapping[str, float]
    reason: str


def load_report(path: Path) -> Facts:
    """``report.json``, given itself or by its folder; it may be anybody's.

    :raises UsageError: there is none, or it is no report.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        # A pipe or a device has no end.
        if file.exists() and not file.is_file():
            raise ValueError("this is not a file")
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        document = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no report: {error}", hint=_HINT) from error
    try:
        return facts_of(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is no report of medcheck, or a damaged one: {error!r}"[:400], hint=_HINT) from error


def facts_of(report: Mapping[str, Any]) -> Facts:
    """What is compared of a ``report.json`` document.

    Raises KeyError, TypeError or AttributeError for one that is malformed.
    """
    conformance = report.get("conformance", {"rules": [], "deviations": []})
    cases = [
        (f"{guest['name']} {case['id']}", case["status"])
        for guest in report["guests"]
        for case in (guest["xtest"] or {"cases": []})["cases"]
    ]
    words = {
        "stack": _words((_name(part), f"{part['version']} [{part['sha256'][:8]}]") for part in report["stack"]),
        "verdict": _words([("run", report["verdict"])]),
        "rule": _words((rule["id"], rule["verdict"]) for rule in conformance["rules"]),
        "deviation": _words((deviation["id"], deviation["status"]) for deviation in conformance["deviations"]),
        "xtest": _words(cases),
        "test": _words((test["id"], test["status"]) for test in report.get("tests", ())),
    }
    seconds = {_text(phase["name"]): _seconds(phase["seconds"]) for phase in report.get("timings", ())}
    return Facts(words, seconds, _text(report.get("reason") or ""))


def compare(before: Facts, after: Facts) -> list[Difference]:
    """All differences between two reports, those of the parts under test first."""
    return [*_differences(before, after), *_timings(before, after)]


def _words(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {_text(name): _text(word) for name, word in pairs}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} stands where a text belongs")
    return value


def _seconds(value: Any) -> float:
    """JSON has no number for what cannot be measured: a report says null."""
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} stands where seconds belong")
    return float(value)


def _name(part: Mapping[str, Any]) -> str:
    """The name of a part under test without its variant."""
    return _text(part["name"]).split(" (")[0]


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

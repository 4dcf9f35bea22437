# SPDX-License-Identifier: GPL-2.0-or-later
"""``matrix.json`` and its two readable forms, ``summary.md`` and ``index.html``: the facts of several runs as columns
of one table.

The document is described by ``matrix.schema.json`` beside this module.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from framework.common.disclosure import TELL_FIRST
from framework.common.safe_text import duration, one_line, plural
from framework.report import html, markdown
from framework.report.facts import KINDS, facts_of
from framework.report.model import Verdict, outcome
from mediator_ref import DEVIATIONS, RULES

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("matrix.schema.json")

_HERE = Path(__file__).resolve().parent
_NONE = "–"
_QUIET = {"rule": ("pass", "deviation", "not exercised"), "xtest": ("ok", "skipped"), "test": ("passed", "skipped")}
"""Words that a row of this kind may have without being listed, if all columns say the same."""
_BADGES = {"deviation": "lost", "seen": "lost", "not seen": "skip", "not checked": "skip", "not exercised": "skip"}
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("fail", "failed"), ("infrastructure", "could not be decided"), ("flaky", "passed only when run again"),
)  # fmt: skip
"""What decides over all columns, before what does not; and what is said of them."""
_TITLES = {
    "rule": "Rules", "deviation": "Known deviations", "xtest": "xtest", "test": "Exact and hostile stimuli",
    "stack": "Parts under test",
}  # fmt: skip


def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of ``matrix.json``."""
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


def column(name: str, cell: str, report: Mapping[str, Any] | None, error: str | None, *, cached: bool, where: str
           ) -> dict[str, Any]:  # fmt: skip
    """One column of the document: the facts of a ``report.json`` document, or why there is none.

    ``cell`` is the run's name by content, ``where`` the folder of its report beside the table.
    """
    found = None if report is None else facts_of(report)
    conclusion = {} if report is None else report.get("conclusion", {})
    conformance = {} if report is None else report.get("conformance", {})
    return {
        "name": name,
        "cell": cell,
        "cached": cached,
        "verdict": "infrastructure" if report is None else report["verdict"],
        "reason": error if report is None else report["reason"],
        "conclusion": conclusion.get("sentence"),
        "isolation": list(conclusion.get("isolation", ())),
        "events": conformance.get("events_checked"),
        "seconds": None if report is None else report["seconds"],
        "facts": {kind: {} if found is None else dict(found.words[kind]) for kind in KINDS if kind != "verdict"},
        "timings": {} if found is None else dict(found.seconds),
        "report": None if report is None else where,
    }


def verdict_of(columns: Sequence[Mapping[str, Any]]) -> tuple[Verdict, str | None]:
    """The verdict over all columns, and in a sentence why it is not ``pass``: what failed comes before what could not
    be decided."""
    for verdict, words in _VERDICTS:
        names = [item["name"] for item in columns if item["verdict"] == verdict]
        if names:
            return verdict, f"{len(names)} of {plural(len(columns), 'column')} {words}: {', '.join(names)}"
    return "pass", None


@dataclass(frozen=True)
class Row:
    """One line of the table: a word for each column. ``listed``: the columns differ, or a word is not a good one."""

    name: str
    title: str
    words: tuple[str, ...]
    listed: bool


def rows(content: Mapping[str, Any], kind: str) -> list[Row]:
    """The rows of one kind of facts, in the order of the columns' reports."""
    columns = content["columns"]
    names = dict.fromkeys(name for item in columns for name in item["facts"][kind])
    found = []
    for name in names:
        words = tuple(item["facts"][kind].get(name, _NONE) for item in columns)
        # A column without a report says nothing about any row.
        said = {item["facts"][kind].get(name, _NONE) for item in columns if item["report"] is not None}
        quiet = len(said) == 1 and next(iter(said)).lower() in _QUIET.get(kind, ())
        found.append(Row(name, _title(kind, name), words, not quiet))
    return found


def _title(kind: str, name: str) -> str:
    if kind == "rule" and name in RULES:
        return RULES[name].title
    return DEVIATIONS[name].title if kind == "deviation" and name in DEVIATIONS else ""


def head(content: Mapping[str, Any]) -> list[Row]:
    """The rows that sum up each column."""
    columns = content["columns"]
    counted = [
        ("verdict", [item["verdict"] for item in columns]),
        ("events", [_NONE if item["events"] is None else f"{item['events']:,}" for item in columns]),
        ("rules", [_counts(item["facts"]["rule"]) for item in columns]),
        ("deviations", [_deviations(item["facts"]["deviation"]) for item in columns]),
        ("xtest", [_counts(item["facts"]["xtest"]) for item in columns]),
        ("stimuli", [_counts(item["facts"]["test"]) for item in columns]),
    ]
    return [Row(name, "", tuple(words), True) for name, words in counted if set(words) != {_NONE}]


def times(content: Mapping[str, Any]) -> list[Row]:
    """When each phase ended, since power-on, and how long the whole run took."""
    columns = content["columns"]
    names = dict.fromkeys(name for item in columns for name in item["timings"])
    found = [
        Row(f"until {name}", "", tuple(duration(item["timings"].get(name)) for item in columns), True) for name in names
    ]
    if found:
        found.append(Row("whole run", "", tuple(duration(item["seconds"]) for item in columns), True))
    return found


def _counts(words: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {word.lower()}" for word, number in Counter(words.values()).most_common()) or _NONE


def _deviations(words: Mapping[str, str]) -> str:
    return ", ".join(name for name, word in words.items() if word == "seen") or (_NONE if not words else "none")


def summary(content: Mapping[str, Any], *, terminal: bool = True) -> str:
    """The table for a terminal, or (``terminal=False``) as Markdown for a mailing list or a CI page: what sums up each
    column, then the rows on which they differ or that are not good."""
    text = one_line if terminal else markdown.escaped
    return "\n".join(_lines(content, text)) + "\n"


def _lines(content: Mapping[str, Any], text: Any) -> Iterator[str]:
    columns = content["columns"]
    yield f"**{content['verdict'].upper()}** {text(content['reason'] or plural(len(columns), 'column'))}"
    yield ""
    listed = [row for kind in ("rule", "deviation", "xtest", "test") for row in rows(content, kind) if row.listed]
    shown = [*head(content), *listed, *times(content)]
    table = [["", *(item["name"] for item in columns)], *([row.name, *row.words] for row in shown)]
    cells = [[text(word) for word in line] for line in table]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns) + 1)]
    for number, line in enumerate(cells):
        yield f"| {' | '.join(word.ljust(width) for word, width in zip(line, widths, strict=True))} |"
        if number == 0:
            yield "|" + "|".join(":" + "-" * (width + 1) for width in widths) + "|"
    alike = sum(not row.listed for kind in _QUIET for row in rows(content, kind))
    yield ""
    if alike:
        yield f"{plural(alike, 'further rule, xtest case or stimulus', 'further rules, xtest cases and stimuli')} are "\
              "good and alike in all columns."  # fmt: skip
    for item in columns:
        yield f"- {text(item['name'])}: {text(_about(item))}"
    if any(item["isolation"] for item in columns):
        yield f"- {', '.join(_isolation(content))}: {TELL_FIRST}"
    yield ""
    again = markdown.code(content["reproduce"])
    yield f"{duration(content['seconds'])}, profile {text(content['profile'])}. Again: `{again}`"


def _about(item: Mapping[str, Any]) -> str:
    """One column in a sentence: which Xen, and its conclusion or why it has none."""
    named = item["facts"]["stack"].get("Xen")
    lines = (item["reason"] or item["conclusion"] or item["verdict"]).strip().splitlines()
    # Of a compiler's complaints, the first stands on the second line.
    why = " ".join(line.strip() for line in lines[:2])
    return f"Xen {named}: {why}" if named else why


def _isolation(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for item in content["columns"] for name in item["isolation"]))


def page(content: Mapping[str, Any]) -> str:
    """The table as ``index.html``: one file without scripts and outside resources."""
    kinds = [(kind, title, rows(content, kind)) for kind, title in _TITLES.items()]
    return html.environment().get_template("matrix.html.j2").render(
        m=content,
        verdict=html.VERDICTS[content["verdict"]],
        started=html.start_time(content["started"]),
        host=html.host_words(content["host"]),
        head=head(content),
        kinds=[(kind, title, sorted(found, key=lambda row: not row.listed)) for kind, title, found in kinds if found],
        times=times(content),
        about=[(item, _about(item)) for item in content["columns"]],
        isolation=_isolation(content),
        tell_first=TELL_FIRST,
        kind_of=_badge,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
    )  # fmt: skip


def _badge(word: str) -> str:
    """The kind of badge for a word; none for what is no verdict."""
    return "" if word == _NONE else _BADGES.get(word) or outcome(word)

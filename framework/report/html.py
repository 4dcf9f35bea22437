# SPDX-License-Identifier: GPL-2.0-or-later
"""``index.html``: one file without outside resources, readable without JavaScript, which adds filters."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from framework.common.disclosure import TELL_FIRST
from framework.common.safe_text import count, duration, one_line, plural, visible
from framework.report import timeline
from framework.report.markdown import failures, headline, share
from framework.report.model import outcome, rate

_HERE = Path(__file__).resolve().parent
_SLOWEST = 10
_LISTED = 200
"""Failed subtests shown per case; ``report.json`` has them all."""
_CHUNK = 100
"""Console lines that a browser lays out together; it skips those that are out of sight."""

VERDICTS = {
    "pass": ("✓", "Pass"),
    "flaky": ("~", "Flaky"),
    "fail": ("✗", "Fail"),
    "infrastructure": ("!", "No verdict: infrastructure failure"),
}
_WORDS = {"pass": "passed", "fail": "failed", "skip": "skipped", "flaky": "flaky"}
_RULES = {"pass": "pass", "fail": "fail", "deviation": "lost", "not checked": "skip", "not exercised": "skip"}


def render(content: Mapping[str, Any], folder: Path) -> str:
    """Render a ``report.json`` document; console logs are read from ``folder``."""
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    icon, verdict = VERDICTS[content["verdict"]]
    lines = timeline.merged(content, folder)
    return environment().get_template("index.html.j2").render(
        r=content,
        icon=icon,
        verdict=verdict,
        headline=headline(content),
        more=_more(content["reason"]),
        host=host_words(content["host"]),
        started=start_time(content["started"]),
        guests=[_guest(number, guest) for number, guest in enumerate(content["guests"])],
        slowdowns=any(guest.get("slowdown") is not None for guest in content["guests"]),
        failures=list(failures(content)),
        slowest=_slowest(content),
        timings=_waterfall(content["timings"]),
        conformance=_conformance(content.get("conformance")),
        share=share,
        tests=[{**test, "kind": outcome(test["status"]), "rate": rate(test)} for test in content["tests"]],
        tell_first=TELL_FIRST,
        tests_private=any(_private(line) for test in content["tests"] for line in test["deviations"]),
        chunks=[lines[start : start + _CHUNK] for start in range(0, len(lines), _CHUNK)],
        marked={line.problem for line in lines if line.problem is not None},
        # The page's own scripts and styles, from this folder and from nowhere else.
        script=Markup(script),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _private(deviation: str) -> bool:
    return TELL_FIRST in deviation


def environment() -> jinja2.Environment:
    """The templates of pages, in which whatever is printed is escaped and made visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever is printed passes here, so that no field of a report can forget it.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(count=count, duration=duration, plural=plural, href=_href)
    return environment


def _href(file: str) -> str:
    """A file beside the page as a link: always a relative path, never a scheme."""
    return "./" + quote(file.encode("utf-8", "replace"))


def host_words(host: Mapping[str, Any]) -> list[str]:
    """The machine in words; what this does not know is shown by its key."""
    known: Mapping[str, Callable[[Any], str]] = {
        "cores": lambda value: plural(value, "core"),
        "memory_mib": lambda value: f"{value / 1024:.1f} GiB of memory",
        "python": lambda value: f"Python {value}",
        "system": str,
    }
    return [known[key](value) if key in known else f"{key.replace('_', ' ')} {value}" for key, value in host.items()]


def _more(reason: str | None) -> str:
    return "\n".join((reason or "").strip().splitlines()[1:])


def start_time(started: str) -> str:
    """A time of ISO 8601 in words; what is none, as it is."""
    try:
        at = datetime.fromisoformat(started)
    except ValueError:
        return started
    return at.strftime("%-d %B %Y, %H:%M:%S %Z").strip()


def _guest(number: int, guest: Mapping[str, Any]) -> dict[str, Any]:
    xtest = guest["xtest"]
    cases = [_case(number, index, case) for index, case in enumerate(xtest["cases"])] if xtest else []
    longest = max([case["seconds"] or 0 for case in cases], default=0) or 1
    for case in cases:
        case["share"] = round(100 * (case["seconds"] or 0) / longest, 1)
    failed = any(case["kind"] in ("fail", "lost") for case in cases)
    if xtest is None:
        kind = "lost"
    else:
        fits = xtest["exit_code"] == 0 and xtest["totals"]["agree"] and not xtest["problems"]
        good = cases and not failed and fits
        flaky = not failed and not xtest["problems"] and any(case["kind"] == "flaky" for case in cases)
        kind = "flaky" if flaky else "pass" if good else "fail"
    return {
        "name": guest["name"],
        "domid": guest["domid"],
        "slowdown": guest.get("slowdown"),
        "kind": kind,
        "word": "did not run" if xtest is None else _WORDS[kind],
        "totals": xtest["totals"] if xtest else None,
        "problems": xtest["problems"] if xtest else [],
        "exit_code": xtest["exit_code"] if xtest else None,
        "seconds": sum(case["seconds"] or 0 for case in cases) if xtest else None,
        # What failed comes first; otherwise the order of the run.
        "cases": sorted(cases, key=lambda case: case["kind"] not in ("fail", "flaky", "lost")),
    }


def _case(guest: int, index: int, case: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [outcome(sub["status"]) for sub in case["subtests"]]
    bad = [sub for sub, kind in zip(case["subtests"], kinds, strict=True) if kind in ("fail", "lost")]
    kind = outcome(case["status"])
    if bad and kind in ("pass", "skip"):
        kind = "fail"
    return {
        "anchor": f"case-{guest}-{index}",
        "id": case["id"],
        "title": case["title"],
        "status": case["status"],
        "kind": kind,
        # A word that is none of the three usual ones says more than any other could.
        "word": case["status"] if kind == "lost" else _WORDS[kind],
        "rate": rate(case),
        "error": None if any(sub["error"] for sub in bad) else case["error"],
        "seconds": case["seconds"],
        "subtests": len(kinds),
        "failed": len(bad),
        "titled": any(sub["title"] for sub in case["subtests"]),
        "bad": bad[:_LISTED],
        "bad_left_out": max(0, len(bad) - _LISTED),
        "passed": [_subtest(s) for s, k in zip(case["subtests"], kinds, strict=True) if k == "pass"],
        "skipped": [_subtest(s) for s, k in zip(case["subtests"], kinds, strict=True) if k == "skip"],
    }


def _subtest(sub: Mapping[str, Any]) -> str:
    """One line, made visible here: the template joins these, and a joined text is markup already."""
    return one_line(f"{sub['id']} {sub['title']}".rstrip())


def _slowest(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"guest": guest["name"], "id": case["id"], "title": case["title"], "seconds": case["seconds"],
         "anchor": f"case-{number}-{index}"}
        for number, guest in enumerate(content["guests"])
        if guest["xtest"]
        for index, case in enumerate(guest["xtest"]["cases"])
        if case["seconds"]
    ]  # fmt: skip
    rows = sorted(rows, key=lambda row: -row["seconds"])[:_SLOWEST]
    for row in rows:
        row["share"] = round(100 * row["seconds"] / rows[0]["seconds"], 1)
    return rows


def _waterfall(timings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each phase as a bar that begins where the one before it ended."""
    whole = max([timing["seconds"] or 0 for timing in timings], default=0) or 1
    rows, before = [], 0.0
    for timing in timings:
        end = max(before, timing["seconds"] or 0)
        rows.append(
            {
                "name": timing["name"],
                "took": end - before,
                "end": end,
                "left": round(100 * before / whole, 2),
                "width": round(100 * (end - before) / whole, 2),
            }
        )
        before = end
    return rows


def _conformance(conformance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if conformance is None:
        return None
    rules = [{**rule, "kind": _RULES[rule["verdict"]]} for rule in conformance["rules"]]
    requirements = [{**one, "kind": _RULES[one["verdict"]]} for one in conformance.get("requirements", ())]
    counts = Counter(rule["verdict"] for rule in conformance["rules"])
    order = {"fail": 0, "lost": 1, "pass": 2, "skip": 3}
    return {
        **conformance,
        "rules": sorted(rules, key=lambda rule: order[rule["kind"]]),
        "counts": [(verdict, kind, counts[verdict]) for verdict, kind in _RULES.items() if counts[verdict]],
        "requirements": requirements,
        "private": any(d["report_privately"] for d in conformance["deviations"]),
    }

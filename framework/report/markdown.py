# SPDX-License-Identifier: GPL-2.0-or-later
"""``summary.md`` and the terminal's last lines: the verdict, the guests, what failed, how to do it again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from framework.common.disclosure import TELL_FIRST
from framework.common.safe_text import count, duration, one_line, plural
from framework.report.model import Outcome, outcome, rate

_LISTED = 10
_RULES = {
    "fail": "broken",
    "deviation": "with a known deviation",
    "pass": "held",
    "not checked": "could not be checked",
    "not exercised": "not exercised",
}
_LIVE = re.compile(r"@|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""Where renderers see an address or a user's name without any markup."""
_VERDICTS = {"pass": "PASS", "flaky": "FLAKY", "fail": "FAIL", "infrastructure": "INFRASTRUCTURE FAILURE"}


def summary(content: Mapping[str, Any], *, terminal: bool = True) -> str:
    """Summarise a ``report.json`` document for a terminal, or (``terminal=False``) as Markdown for a CI page.

    The two differ only in that Markdown's own characters are escaped where guests or users wrote them.
    """
    return "\n".join(_lines(content, one_line if terminal else escaped)) + "\n"


def headline(content: Mapping[str, Any]) -> str:
    """The verdict's reason in one sentence."""
    if content["verdict"] == "pass":
        ran = [guest for guest in content["guests"] if guest["xtest"]]
        kinds = [outcome(case["status"]) for guest in content["guests"] for case in _cases(guest)]
        subtests = sum(len(case["subtests"]) for guest in content["guests"] for case in _cases(guest))
        skipped = kinds.count("skip")
        text = (
            f"{plural(kinds.count('pass'), 'xtest case')} with {plural(subtests, 'subtest')} passed in "
            f"{plural(len(ran), 'domain')} at the same time"
        )
        if skipped:
            text += f"; {skipped:,} skipped"
        if "conclusion" not in content:
            return f"{text}."
        events = plural(content["conformance"]["events_checked"], "event")
        return f"The mediator {content['conclusion']['sentence']}: {events} checked; {text}."
    # Further lines of a reason are the error's hint; the page shows them below, the terminal has already.
    lines = (content["reason"] or "").strip().splitlines() or ["No reason was recorded"]
    reason = one_line(lines[0])
    return reason if reason.endswith((".", "!", "?")) else f"{reason}."


def failures(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield each case that did not pass, as (guest, case, first error line), in the order of the run."""
    for guest in content["guests"]:
        for case in _cases(guest):
            bad = [sub for sub in case["subtests"] if outcome(sub["status"]) in ("fail", "lost")]
            if outcome(case["status"]) in ("fail", "flaky", "lost") or bad:
                named = next((sub for sub in bad if sub["error"]), None)
                error = f"{named['id']}: {named['error']}" if named else case["error"] or case["status"]
                yield guest["name"], case, _with_rate(case, error)


def _with_rate(item: Mapping[str, Any], error: str) -> str:
    """The error of a case or stimulus, behind its verdict and rate if it ran again."""
    often = rate(item)
    return f"{item['status']}, {often}: {error}" if often else error


def _cases(guest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return guest["xtest"]["cases"] if guest["xtest"] else ()


def _lines(content: Mapping[str, Any], text: Callable[[str], str]) -> Iterator[str]:
    yield f"**{_VERDICTS[content['verdict']]}** {text(headline(content))}"
    yield ""
    names = [text(guest["name"]) for guest in content["guests"]]
    width = max([len("guest"), *map(len, names)])
    yield f"| {'guest':<{width}} |  cases | failed |   checks | failed | skipped |     time |"
    yield f"|:{'-' * width}-|-------:|-------:|---------:|-------:|--------:|---------:|"
    for name, guest in zip(names, content["guests"], strict=True):
        if guest["xtest"] is None:
            yield f"| {name:<{width}} |      – |      – |        – |      – |       – |        – |"
            continue
        t = guest["xtest"]["totals"]
        seconds = sum(case["seconds"] or 0 for case in guest["xtest"]["cases"])
        yield (
            f"| {name:<{width}} | {count(t['cases']):>6} | {count(t['cases_failed']):>6} | "
            f"{count(t['subtests']):>8} | {count(t['subtests_failed']):>6} | {count(t['skipped']):>7} | "
            f"{duration(seconds):>8} |"
        )
    yield from _failure_lines(content, text)
    yield from _conformance_lines(content, text)
    yield from _coverage_lines(content, text)
    yield from _test_lines(content, text)
    yield ""
    again = code(content["reproduce"])
    yield f"{duration(content['seconds'])}, profile {text(content['profile'])}. Again: `{again}`"


def _failure_lines(content: Mapping[str, Any], text: Callable[[str], str]) -> Iterator[str]:
    found = list(failures(content))
    if found or content["problems"] or any(g["xtest"] and g["xtest"]["problems"] for g in content["guests"]):
        yield ""
    for name, case, error in found[:_LISTED]:
        yield f"- {text(name)} {text(case['id'])} {text(case['title'])}: {text(error)}"
    if len(found) > _LISTED:
        yield f"- {plural(len(found) - _LISTED, 'more failed case')} in the report"
    for guest in content["guests"]:
        for sentence in guest["xtest"]["problems"][:_LISTED] if guest["xtest"] else ():
            yield f"- {text(guest['name'])}: {text(sentence)}"
    for problem in content["problems"][:_LISTED]:
        yield f"- {text(problem['kind'])} on console {text(problem['console'])}: {text(problem['text'])}"
    if len(content["problems"]) > _LISTED:
        yield f"- {plural(len(content['problems']) - _LISTED, 'more problem')} on consoles in the report"


def _test_lines(content: Mapping[str, Any], text: Callable[[str], str]) -> Iterator[str]:
    tests = content["tests"]
    if not tests:
        return
    kinds = Counter(outcome(test["status"]) for test in tests)
    words: dict[Outcome, str] = {
        "pass": "passed", "fail": "failed", "flaky": "flaky", "lost": "broken off", "skip": "skipped"
    }  # fmt: skip
    sums = ", ".join(f"{kinds[kind]:,} {word}" for kind, word in words.items() if kinds[kind])
    yield ""
    yield f"Exact and hostile stimuli: {sums}."
    bad = [test for test in tests if outcome(test["status"]) in ("fail", "flaky", "lost")]
    for test in bad[:_LISTED]:
        yield f"- {text(test['id'])}: {text(_with_rate(test, test['error'] or test['status']))}"
    if len(bad) > _LISTED:
        yield f"- {plural(len(bad) - _LISTED, 'more failed test')} in the report"


def _coverage_lines(content: Mapping[str, Any], text: Callable[[str], str]) -> Iterator[str]:
    if content["coverage"]:
        yield ""
    for file in content["coverage"]:
        yield (
            f"Coverage of {text(file['file'])}: {share(file['lines_seen'], file['lines'])} of lines, "
            f"{share(file['branches_seen'], file['branches'])} of branches, "
            f"{file['functions_seen']} of {plural(file['functions'], 'function')}."
        )


def share(part: int, whole: int) -> str:
    """A share in per cent, such as ``93.4 % (183/196)``; rounded down, so that 100 % is all."""
    return f"{1000 * part // whole / 10:.1f} % ({part}/{whole})" if whole else "–"


def _conformance_lines(content: Mapping[str, Any], text: Callable[[str], str]) -> Iterator[str]:
    if "conformance" not in content:
        return
    conformance = content["conformance"]
    shown = sum(deviation["status"] == "seen" for deviation in conformance["deviations"])
    rules = Counter(rule["verdict"] for rule in conformance["rules"])
    counted = ", ".join(f"{rules[verdict]} {word}" for verdict, word in _RULES.items() if rules[verdict])
    yield ""
    yield (
        f"Conformance: {plural(conformance['events_checked'], 'event')} checked, "
        f"{plural(len(conformance['nonconformances']), 'nonconformance')}, "
        f"{plural(shown, 'known deviation')} seen. Of {plural(len(conformance['rules']), 'rule')}: {counted or '–'}."
    )
    requirements = Counter(one["verdict"] for one in conformance.get("requirements", ()))
    if requirements:
        held = ", ".join(f"{requirements[verdict]} {word}" for verdict, word in _RULES.items() if requirements[verdict])
        yield f"Of {plural(requirements.total(), 'requirement')} of the review: {held}."
    if outcomes := conformance.get("outcomes"):
        unseen = [name for name, times in outcomes.items() if not times]
        rest = f"; not: {', '.join(unseen[:_LISTED])}" if unseen else ""
        more = f" and {len(unseen) - _LISTED} more" if len(unseen) > _LISTED else ""
        seen = share(len(outcomes) - len(unseen), len(outcomes))
        yield f"- {seen} of the specification's outcomes had an occasion{rest}{more}"
    if longest := conformance.get("instructions"):
        what = max(longest, key=lambda name: longest[name])
        yield f"- the hypervisor's longest stretch: {longest[what]:,} instructions ({what})"
    for word in ("unexpected", "vanished"):
        if names := content.get("conclusion", {}).get(word):
            yield f"- against the baseline, {word}: {text(', '.join(names))}"
    broken = [rule["id"] for rule in conformance["rules"] if rule["verdict"] == "fail"]
    if broken:
        yield f"- broken: {', '.join(broken)}"
    for deviation in conformance["deviations"]:
        if deviation["status"] == "not seen":
            yield f"- {deviation['id']} had its occasion {deviation['count']} times and did not show"
        else:
            private = f" ({TELL_FIRST})" if deviation["report_privately"] else ""
            yield f"- known deviation {deviation['id']} ({deviation['rule']}){private}"


def escaped(text: str) -> str:
    """Guest text as one line that Markdown shows as it is: CI summaries render this file."""
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    escaped = "".join(f"\\{char}" if char in "\\`*[]|!~" else char for char in plain)
    # A comment between two characters shows nothing, and no renderer sees a name or an address across it: a guest
    # must not notify people, nor put links into a page that belongs to a project.
    return _LIVE.sub(r"\g<0><!-- -->", escaped)


def code(text: str) -> str:
    """A text between backquotes, where nothing else needs escaping."""
    return one_line(text).replace("`", "'")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads xtest's output while it runs: cases, subtests, first error lines, and xtest's own totals.

The form is that of optee_test's ``host/xtest/adbg`` (adbg_run.c, adbg_case.c, adbg_expect.c)::

    * regression_1004 Test User Crypt TA
    o regression_1004.1 AES encrypt
    regression_1000.c:512: res has an unexpected value: 0xffff000f = TEEC_ERROR_SECURITY, expected …
      regression_1004.1 FAILED
      regression_1004 FAILED
    …
    10 subtests of which 1 failed
    1 test case of which 1 failed
    111 test cases were skipped

A line of a test's own may stand before xtest's, without a line end between them. What xtest calls "subtests" in its
totals are checks (every ADBG_EXPECT counts), of which only failures are printed; cases and the failed subcases of the
summary can be counted on both sides and are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from framework.common.safe_text import number
from framework.report.model import Case, Subtest

ID = r"[A-Za-z][A-Za-z0-9]{0,40}_[A-Za-z0-9_]{1,120}(?:\.[0-9]{1,9}){0,40}"
_BEGIN = re.compile(rf"([*o]) ({ID}) (.*)")
_END = re.compile(rf"  ({ID}) (OK|FAILED)\s*")
_GLUED_END = re.compile(rf"  ({ID}) (OK|FAILED)\s{{0,80}}\Z")
"""A test that prints without a line end leaves its text before xtest's own line."""

_ERROR = re.compile(r"(?:^|[\s/:(\[])([A-Za-z0-9_.+-]{1,80}\.[ch]):([0-9]{1,9}): (.+)")
_CHECK = re.compile(r"expect|fail|assert", re.IGNORECASE)
"""Words by which the message of a failed check is recognised."""

_IGNORED = re.compile(r"\bignor(?:e|es|ed|ing) (?:this |the )?(?:sub)?(?:test|case)|- ignored\s{0,80}\Z", re.IGNORECASE)
_SKIP = re.compile(r"\bskip(?:s|ped|ping)?\b(.{0,200})", re.IGNORECASE)
_REASON = re.compile(r"\b(?:in|for|of|during|because|due|since|as|when|if|on)\b|[.:;,(\[-]", re.IGNORECASE)
"""Where in such a line what is skipped ends."""
_WHOLE = re.compile(r"\b(?:it|this|(?:sub)?(?:tests?|cases?|testcases?))\b", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"\bnot supported\b", re.IGNORECASE)
_SUMMARY = re.compile(rf"({ID}) (OK|FAILED)(?: first error at (.{{1,4096}}):([0-9]{{1,9}}))?\s*")
_RULE = re.compile(r"\+-{20,}\s*")
_RESULT = re.compile(r"Result of testsuite .*:\s*")
_SUBTESTS = re.compile(r"([0-9]+) subtests? of which ([0-9]+) failed\s*")
_CASES = re.compile(r"([0-9]+) test cases? of which ([0-9]+) failed\s*")
_SKIPPED = re.compile(r"([0-9]+) test cases? (?:was|were) skipped\s*")
_ABORTED = re.compile(r"Test suite (?:aborted by \S+!|was ABORTED)\s*")
_DONE = "TEE test application done!"
_FATAL = re.compile(r"Failed to open TEE context: (0x[0-9a-fA-F]+)|Unknown test suite: .*|medcheck: .*")

LONGEST_LINE = 8192
"""Bytes of a line that are parsed; xtest's own lines are far shorter, the rest is a test's data."""

MOST_CASES, MOST_PARTS = 10_000, 50_000
"""Cases, and parts of all cases together, that are kept; all suites of one release have some 500 and 5,000."""
_MOST_PROBLEMS = 50
_MOST_SUMMARY = MOST_CASES + MOST_PARTS
_DEEPEST = 32
_TITLE, _TEXT = 200, 400
"""Characters of titles, and of error lines, that are kept."""


@dataclass(frozen=True)
class CaseStarted:
    """A case began."""

    id: str
    title: str


@dataclass(frozen=True)
class SubtestStarted:
    """A part of a case began."""

    id: str
    title: str


@dataclass(frozen=True)
class SubtestDone:
    """A part of a case ended."""

    subtest: Subtest


@dataclass(frozen=True)
class CaseDone:
    """A case ended."""

    case: Case


@dataclass(frozen=True)
class ErrorSeen:
    """A check failed; ``id`` is the innermost open case or subtest, empty outside of any."""

    id: str
    text: str


Event = CaseStarted | SubtestStarted | SubtestDone | CaseDone | ErrorSeen


@dataclass
class Totals:
    """xtest's own totals; None for a line that did not come."""

    checks: int | None = None
    checks_failed: int | None = None
    cases: int | None = None
    cases_failed: int | None = None
    cases_skipped: int | None = None
    aborted: bool = False
    done: bool = False


@dataclass
class _Open:
    id: str
    title: str
    began: float
    slot: int = -1
    error: str | None = None
    skips: bool = False
    parts: int = 0
    parts_skipped: int = 0


@dataclass
class XtestParser:
    """Parser of xtest's lines; never raises, whatever they are. Lines that do not fit are listed in
    :attr:`problems`."""

    cases: list[Case] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    problems: list[str] = field(default_factory=list)
    fatal: str | None = None
    """xtest's own reason why it ran no test at all."""
    last_line: str = ""
    limits: list[str] = field(default_factory=list)
    """Sentences about output that was not parsed because there was too much of it."""
    _parts: int = 0
    _places: dict[str, int] = field(default_factory=dict)
    _stack: list[_Open] = field(default_factory=list)
    _subtests: list[Subtest | None] = field(default_factory=list)
    _summary: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    _in_summary: bool = False

    def feed(self, line: bytes, now: float) -> list[Event]:
        """Take one line (with or without its end) that came at ``now`` (seconds of any steady clock)."""
        text = line[:LONGEST_LINE].decode("utf-8", errors="replace").rstrip("\r\n")
        if text.strip():
            self.last_line = text[:_TEXT]
        if self.limits:
            return []
        if match := _BEGIN.fullmatch(text):
            # A case that begins takes precedence over everything, so that one odd line cannot hide the rest.
            self._in_summary = False
            return self._begin(match[1], match[2], match[3][:_TITLE], now)
        if self._in_summary:
            self._summarise(text)
            return []
        if match := _END.fullmatch(text):
            return self._end(match[1], match[2] == "OK", now)
        if (match := _GLUED_END.search(text)) and match[1] == self.running:
            return self._end(match[1], match[2] == "OK", now)
        if (match := _ERROR.search(text)) and (" " not in text[: match.start(1)] or _CHECK.search(match[3])):
            return [self._error(f"{match[1]}:{match[2]}: {match[3]}"[:_TEXT])]
        return self._other(text, now)

    @property
    def running(self) -> str | None:
        """The innermost case or subtest that has begun and not ended."""
        return self._stack[-1].id if self._stack else None

    def give_up(self, why: str) -> None:
        """Ignore all further lines, because of a limit; ``why`` is a sentence for the reader."""
        self.limits.append(why)

    def finish(self, now: float) -> list[Event]:
        """End the input: what is still open crashed."""
        return list(self._close(0, now)) if self._stack else []

    def disagreements(self) -> list[str]:
        """Return the differences between xtest's own totals and the lines before them; empty if they agree or xtest
        was cut short before it gave any."""
        return list(self._compare())

    # Lines

    def _begin(self, mark: str, name: str, title: str, now: float) -> list[Event]:
        events: list[Event] = []
        if mark == "*":
            if self._stack:
                self._problem(f"{name} began before {self._stack[0].id} ended")
                events += self._close(0, now)
            if len(self.cases) >= MOST_CASES:
                self.give_up(f"more than {MOST_CASES:,} cases began; the rest of the output was not parsed")
                return events
            self._stack.append(_Open(name, title, now))
            self._subtests = []
            return [*events, CaseStarted(name, title)]
        if not self._stack:
            self._problem(f"subtest {name} outside of any case")
            return []
        parent = name.rpartition(".")[0]
        depth = next((i for i, item in enumerate(self._stack) if item.id == parent), None)
        if depth is None:
            self._problem(f"subtest {name} does not belong to {self._stack[-1].id}")
        elif depth + 1 < len(self._stack):
            self._problem(f"{name} began before {self._stack[depth + 1].id} ended")
            events += self._close(depth + 1, now)
        if len(self._stack) >= _DEEPEST:
            self._problem(f"subtest {name} lies too deep")
            return events
        if self._parts >= MOST_PARTS:
            self.give_up(f"more than {MOST_PARTS:,} subtests began; the rest of the output was not parsed")
            return events
        self._parts += 1
        self._stack[-1].parts += 1
        self._stack.append(_Open(name, title, now, len(self._subtests)))
        self._subtests.append(None)
        return [*events, SubtestStarted(name, title)]

    def _end(self, name: str, good: bool, now: float) -> list[Event]:
        depth = next((i for i, item in enumerate(self._stack) if item.id == name), None)
        if depth is None:
            self._problem(f"{name} ended without having begun")
            return []
        events: list[Event] = []
        if depth + 1 < len(self._stack):
            self._problem(f"{name} ended before {self._stack[depth + 1].id}")
            events += self._close(depth + 1, now)
        item = self._stack[-1]
        # Where each part was skipped, nothing ran.
        skipped = item.skips if item.parts == 0 else item.parts_skipped == item.parts
        status = ("skipped" if skipped else "ok") if good else "failed"
        if status == "skipped" and len(self._stack) > 1:
            self._stack[-2].parts_skipped += 1
        return [*events, self._pop(status, now)]

    def _error(self, text: str) -> ErrorSeen:
        for item in self._stack:
            item.error = item.error or text
        return ErrorSeen(self.running or "", text)

    def _other(self, text: str, now: float) -> list[Event]:
        if _RULE.fullmatch(text):
            self._in_summary = True
            if self._stack:
                self._problem(f"the summary came before {self._stack[0].id} ended")
                return list(self._close(0, now))
        elif match := _FATAL.search(text):
            self.fatal = self.fatal or match[0][:_TEXT]
        elif self._stack and _skips(text):
            self._stack[-1].skips = True
        return []

    def _summarise(self, text: str) -> None:
        if match := _SUBTESTS.fullmatch(text):
            self.totals.checks, self.totals.checks_failed = number(match[1]), number(match[2])
        elif match := _CASES.fullmatch(text):
            self.totals.cases, self.totals.cases_failed = number(match[1]), number(match[2])
        elif match := _SKIPPED.fullmatch(text):
            self.totals.cases_skipped = number(match[1])
        elif _ABORTED.fullmatch(text):
            self.totals.aborted = True
        elif text.rstrip() == _DONE:
            self.totals.done = True
        elif match := _SUMMARY.fullmatch(text):
            if len(self._summary) < _MOST_SUMMARY:
                place = f"{match[3].rpartition('/')[2][-_TITLE:]}:{match[4]}" if match[3] else None
                self._summary[match[1]] = (match[2], place)
                if place is not None and match[2] == "FAILED":
                    self._place(match[1].partition(".")[0], place)
        elif text.strip() and not _RULE.fullmatch(text) and not _RESULT.fullmatch(text):
            self._problem(f"a line in the summary that is not xtest's: {text[:120]!r}")

    def _place(self, name: str, place: str) -> None:
        """Take a failure's file and line from the summary where the output showed no failed check."""
        at = self._places.get(name)
        if at is not None and self.cases[at].status == "failed" and self.cases[at].error is None:
            self.cases[at] = replace(self.cases[at], error=f"first error at {place}")

    # State

    def _close(self, depth: int, now: float) -> Iterator[Event]:
        while len(self._stack) > depth:
            yield self._pop("crashed", now)

    def _pop(self, status: str, now: float) -> Event:
        item = self._stack.pop()
        error = item.error
        if status == "crashed" and error is None:
            error = "began and never ended"
        seconds = max(0.0, now - item.began)
        if self._stack:
            subtest = Subtest(item.id, status, error, item.title, seconds)
            self._subtests[item.slot] = subtest
            return SubtestDone(subtest)
        parts = tuple(part for part in self._subtests if part is not None)
        case = Case(item.id, item.title, status, seconds, parts, error)
        self._places[case.id] = len(self.cases)
        self.cases.append(case)
        return CaseDone(case)

    def _problem(self, text: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)
        elif len(self.problems) == _MOST_PROBLEMS:
            self.problems.append("more of the output does not fit; not listed")

    def _compare(self) -> Iterator[str]:
        failed = sum(case.status in ("failed", "crashed") for case in self.cases)
        pairs = (("test cases", self.totals.cases, len(self.cases)),
                 ("failed test cases", self.totals.cases_failed, failed))  # fmt: skip
        for name, theirs, ours in pairs:
            if theirs is not None and theirs != ours:
                yield f"xtest counts {theirs} {name}, its output shows {ours}"
        if self.totals.checks_failed is not None and (self.totals.checks_failed > 0) != (failed > 0):
            yield f"xtest counts {self.totals.checks_failed} failed checks, its output {failed} failed cases"
        if not self._summary:
            return
        seen = {case.id: case.status for case in self.cases}
        parts = {part.id: part.status for case in self.cases for part in case.subtests}
        for name, (word, _) in self._summary.items():
            status = seen.get(name) or parts.get(name)
            if status is None or (status == "failed") != (word == "FAILED"):
                yield f"xtest's summary says {name} {word}, its output says {status or 'nothing'}"
        for name, status in {**seen, **parts}.items():
            if status == "failed" and name not in self._summary:
                yield f"{name} failed, but xtest's summary does not list it"


def _skips(text: str) -> bool:
    """Whether a line says that the whole test does not run. One that skips a step of it names the step: "OpenSSL not
    available, skipping certificate verification"."""
    if _IGNORED.search(text):
        return True
    match = _SKIP.search(text)
    if match is None:
        return _UNSUPPORTED.search(text) is not None
    skipped = _REASON.split(match[1], maxsplit=1)[0].strip()
    return not skipped or _WHOLE.search(skipped) is not None

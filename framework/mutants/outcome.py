# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a mutant, and by which evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from framework.mutants.worker import Run
from mediator_ref.rules import RuleId

_SLOW = re.compile(r"time that this test may take|within [\d.]+ s|timed? ?out|no answer|nothing came|expired", re.I)
_CRASHES = ("GuestCrash",)
ALIVE: frozenset[str] = frozenset({RuleId.LIFE_7})
"""The rules that say no more than that Xen lives."""


class Status(StrEnum):
    """Outcomes. The first four are kills, in the order in which evidence counts."""

    NONCONFORMANCE = "nonconformance"
    CRASH = "crash"
    ASSERTION = "assertion"
    ERROR = "error"
    TIMEOUT = "timeout"
    SURVIVED = "survived"
    NOT_MET = "not met"
    EQUIVALENT = "equivalent"
    DUPLICATE = "duplicate"
    UNDECIDED = "undecided"

    @property
    def kills(self) -> bool:
        """Whether it counts as detected."""
        return self in KILLS


KILLS = (Status.NONCONFORMANCE, Status.CRASH, Status.ASSERTION, Status.ERROR)
WORDS = {
    Status.NONCONFORMANCE: "killed: a rule was broken",
    Status.CRASH: "killed: Xen, or a guest by it, crashed or hung",
    Status.ASSERTION: "killed: an assertion of a test failed",
    Status.ERROR: "killed: the board does not work any more",
    Status.TIMEOUT: "a test did not end, and nothing said why",
    Status.SURVIVED: "survived all tests that reach it",
    Status.NOT_MET: "no test reaches it",
    Status.EQUIVALENT: "equivalent: no test could tell it from the original",
    Status.DUPLICATE: "the same machine code as another mutant",
    Status.UNDECIDED: "not run to its end yet",
}
"""Statuses in words."""


@dataclass(frozen=True)
class Verdict:
    """The status of one mutant; ``test`` and ``evidence`` (rules, or words) say how it came about, ``ran`` lists the
    tests that it had."""

    status: Status
    test: str = ""
    evidence: tuple[str, ...] = ()
    ran: tuple[str, ...] = ()
    seconds: float = 0.0


def judge(run: Run) -> tuple[Status, tuple[str, ...]]:
    """The status that a single test gives its mutant, and the evidence.

    A broken rule counts first. That Xen is dead is a crash, unless other rules were broken as well, or the test passed:
    those of D3 and D4 expect the end of a debug Xen.
    """
    rules = tuple(rule for rule in run.broken if rule not in ALIVE)
    if rules:
        return Status.NONCONFORMANCE, rules
    if run.passed:
        return Status.SURVIVED, ()
    if run.dead or run.broken:
        return Status.CRASH, (_last(run.failures) or "Xen's console shows its end",)
    if run.stuck:
        return Status.CRASH, (f"hung: {run.stuck}",)
    kinds = {name for _, name, _ in run.failures}
    if kinds & set(_CRASHES):
        return Status.CRASH, (_last(run.failures),)
    if "AssertionError" in kinds:
        return Status.ASSERTION, (next(words for _, name, words in run.failures if name == "AssertionError"),)
    if run.expired or any(_SLOW.search(words) for _, _, words in run.failures):
        return Status.TIMEOUT, (_last(run.failures),)
    return Status.ERROR, (_last(run.failures),)


def _last(failures: Sequence[tuple[str, str, str]]) -> str:
    return " ".join(failures[-1][2].split())[:200] if failures else ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest program that still shows a finding, by Hypothesis's shrinker."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import NoSuchExample, Unsatisfiable

from framework.fuzz.program import FuzzProgram
from framework.fuzz.strategies import smaller

_TRIES = 300
_NO_CHECKS = list(HealthCheck)


def shrink(program: FuzzProgram, shows: Callable[[FuzzProgram], bool], seed: int, seconds: float) -> FuzzProgram:
    """The smallest part of a program, which shows something itself, that still does; the smallest known after
    ``seconds``. ``shows`` is asked once for each program."""
    known = {program.text: True}
    best = program
    end = time.monotonic() + seconds

    def asked(candidate: FuzzProgram) -> bool:
        nonlocal best
        text = candidate.text
        if text not in known:
            if time.monotonic() > end:
                return False
            known[text] = bool(candidate.steps or candidate.dies) and shows(candidate)
            if known[text] and size(candidate) < size(best):
                best = candidate
        return known[text]

    chosen = hypothesis.settings(
        max_examples=_TRIES, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=_NO_CHECKS,
    )  # fmt: skip
    try:
        found = hypothesis.find(smaller(program), asked, settings=chosen, random=Random(seed))
    except (NoSuchExample, Unsatisfiable):
        return best
    return min(best, found, key=size)


def size(program: FuzzProgram) -> tuple[int, int]:
    """Steps, then the length of the text: what smaller means."""
    return len(program.steps) + program.dies, len(program.text)

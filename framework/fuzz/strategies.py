# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis strategies over the table of steps: new programs, programs made from known ones, and smaller ones.

Each of Hypothesis's choices takes its time. So a step is drawn as one that goes well and a few fields of it that are
different, and the strategies are made once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from framework.fuzz.program import FuzzProgram
from framework.fuzz.steps import DOMAINS, TABLES, TAGS, Number, OneOf, Several, Step, fields_of, short
from mediator_ref.abi import U64

_USUAL_STEPS = 6
_SPLICED_STEPS = 16
_DEATHS, _DEATH = 400, 137
"""A program that ends with a domain's death costs a second and its board. Hypothesis likes the ends of a range."""
_KEPT = 24
"""One of so many choices makes a program smaller; all others leave a part as it is."""


@cache
def _upto(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


@cache
def _kinds(table: str, kinds: tuple[str, ...]) -> st.SearchStrategy[str]:
    """A kind, each as often as its weight says."""
    return st.sampled_from([kind for kind in kinds for _ in range(TABLES[table][kind].weight)])


@cache
def _names(table: str, kind: str) -> st.SearchStrategy[str] | None:
    """A field that is not a list."""
    fields = fields_of(table, kind)
    names = [name for name, rule in fields.items() if name != "domain" and not isinstance(rule, Several)]
    return st.sampled_from(names) if names else None


@cache
def _values(table: str, kind: str, name: str) -> st.SearchStrategy[Any]:
    rule = fields_of(table, kind)[name]
    assert not isinstance(rule, Several)
    if isinstance(rule, OneOf):
        return st.sampled_from(rule.choices)
    return st.sampled_from(rule.usual) | st.integers(0, U64)


def _one(draw: st.DrawFn, table: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    kind = draw(_kinds(table, kinds))
    found: dict[str, Any] = {TAGS[table]: kind}
    names = _names(table, kind)
    if names is not None:
        for _ in range(draw(_upto(3))):
            name = draw(names)
            found[name] = draw(_values(table, kind, name))
    for name, rule in TABLES[table][kind].fields.items():
        if isinstance(rule, Several):
            count = min(draw(_upto(rule.most)), draw(_upto(rule.most)))
            found[name] = [_one(draw, rule.table, rule.kinds) for _ in range(max(count, rule.most == 1))]
    return found


@cache
def _kinds_on(checkpoint: str) -> tuple[str, ...]:
    return tuple(name for name, kind in TABLES["steps"].items() if not kind.needs or checkpoint in kind.needs)


def _step(draw: st.DrawFn, checkpoint: str) -> Step:
    found = _one(draw, "steps", _kinds_on(checkpoint))
    if DOMAINS[checkpoint] > 1:
        found["domain"] = draw(_upto(DOMAINS[checkpoint] - 1))
    return short(found)


def _from_known(draw: st.DrawFn, checkpoint: str, known: st.SearchStrategy[FuzzProgram]) -> list[Step]:
    """Steps of one or two known programs, some of them left out or changed, with some new ones in between."""
    found: list[Step] = []
    for _ in range(1 + draw(_upto(1))):
        steps = draw(known).steps
        # Where the changes are, not what becomes of each step: a known program has many.
        places = {draw(_upto(len(steps))): draw(_upto(2)) for _ in range(1 + draw(_upto(2)))}
        for number, step in enumerate(steps):
            how = places.get(number)
            if how == 2:
                found.append(_step(draw, checkpoint))
            if how != 0:
                found.append(_changed(draw, step) if how == 1 else step)
        if len(steps) in places:
            found.append(_step(draw, checkpoint))
    return found[:_SPLICED_STEPS]


def _changed(draw: st.DrawFn, step: Step) -> Step:
    """The step with another value in one field."""
    kind = step["do"]
    names = _names("steps", kind)
    if names is None:
        return step
    name = draw(names)
    return short({**step, name: draw(_values("steps", kind, name))})


@st.composite
def programs(draw: st.DrawFn, checkpoint: str, known: st.SearchStrategy[FuzzProgram] | None = None) -> FuzzProgram:
    """Programs for a checkpoint, half of them made from known ones if there are any."""
    found: list[Step] = []
    if known is not None and draw(_upto(1)):
        found = _from_known(draw, checkpoint, known)
    if not found:
        found = [_step(draw, checkpoint) for _ in range(1 + draw(_upto(_USUAL_STEPS - 1)))]
    return FuzzProgram(checkpoint, tuple(found), draw(_upto(_DEATHS)) == _DEATH)


@st.composite
def smaller(draw: st.DrawFn, program: FuzzProgram) -> FuzzProgram:
    """The program, or a part of it: steps and parameters left out, fields set to their simplest value."""

    def kept() -> bool:
        return draw(_upto(_KEPT)) > 0

    def simpler(step: Step, table: str) -> Step:
        found = dict(step)
        for name, rule in fields_of(table, step[TAGS[table]]).items():
            if name not in found:
                continue
            if isinstance(rule, Several):
                found[name] = [simpler(inner, rule.table) for inner in found[name] if kept()]
            elif isinstance(rule, OneOf | Number) and not kept():
                found[name] = rule.simplest
        return short(found, table)

    dies = program.dies and kept()
    return FuzzProgram(program.checkpoint, tuple(simpler(step, "steps") for step in program.steps if kept()), dies)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Explanations for people: an event, a nonconformance with its history, a rule with its examples."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence

from framework.common.disclosure import TELL_FIRST
from framework.common.errors import UsageError
from mediator_ref import DEVIATIONS, RULES, Deviation, Rule, State, Verdict, abi, step
from mediator_ref.describe import describe_arg, describe_call, describe_return
from mediator_ref.events import (
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    End,
    Event,
    FrameReleased,
    Gap,
    GuestCall,
    GuestReturn,
    PageView,
    Start,
)


def _who(domid: int | None, vcpu: int) -> str:
    return "Xen itself" if domid is None else f"d{domid}v{vcpu}"


def _answer(regs: Sequence[int]) -> str:
    text = f"x0={regs[0]:#x} {describe_return(regs[0])}"
    if abi.is_rpc(regs[0] & abi.U32):
        text += f" x1:x2={abi.pair(regs[1], regs[2]):#x} thread={regs[3] & abi.U32}"
    return text


def describe_event(event: Event) -> str:
    """Return one line for an event, in the words of the ABI."""
    match event:
        case GuestCall():
            how = event.conduit if not event.imm else f"{event.conduit} #{event.imm:#x}"
            return f"{_who(event.domid, event.vcpu)} {how}: {describe_call(event.regs)}"
        case El3Call():
            return f"{_who(event.domid, event.vcpu)} Xen -> EL3: {describe_call(event.regs)}"
        case El3Return():
            return f"{_who(event.domid, event.vcpu)} EL3 -> Xen: {_answer(event.regs)}"
        case GuestReturn():
            what = "undefined-instruction exception" if event.undef else _answer(event.regs)
            return f"{_who(event.domid, event.vcpu)} Xen -> guest: {what}"
        case DomainCreated():
            return f"domain {event.domid} exists"
        case DomainDying():
            return f"domain {event.domid} is being destroyed"
        case DomainDestroyed():
            return f"domain {event.domid} is gone"
        case FrameReleased():
            return f"domain {event.domid} lost frame {event.mfn:#x}"
        case Gap():
            return f"events are missing: {event.reason}"
        case Start():
            return "the trace begins in the middle" if event.mid_stream else "the trace begins with the boot"
        case End():
            return "the trace ends"


def _messages(event: Event) -> list[str]:
    """The message an event carries, decoded; nothing for events without one."""
    if isinstance(event, GuestCall) and abi.fid_of(event.regs[0]) == abi.CALL_WITH_ARG:
        return _page("argument", event.mem.get(abi.pair(event.regs[1], event.regs[2])))
    if isinstance(event, El3Call) and abi.fid_of(event.regs[0]) == abi.CALL_WITH_ARG:
        return _page("shadow argument", event.shadow.get(abi.pair(event.regs[1], event.regs[2])))
    if isinstance(event, GuestReturn):
        pages = [view for view in event.mem.values() if view.data is not None]
        return [line for view in pages[:2] for line in _page("the guest finds", view)]
    return []


def _page(name: str, page: PageView | bytes | None) -> list[str]:
    data = page.data if isinstance(page, PageView) else page
    if data is None:
        return []
    first, *rest = describe_arg(data).splitlines()
    return [f"{name}: {first}", *rest]


def expected_observed(verdict: Verdict) -> tuple[str, str]:
    """Return expected and observed values, field by field."""
    if not verdict.differences:
        return RULES[verdict.rule].title, verdict.reason
    return (
        "; ".join(f"{d.field} = {d.expected}" for d in verdict.differences),
        "; ".join(f"{d.field} = {d.observed}" for d in verdict.differences),
    )


def replay_command(source: str, segment: int, record: int) -> str:
    """Return a command line that checks this record again from the trace file; empty without a file."""
    if not source:
        return ""
    run = f" --segment {segment}" if segment > 1 else ""
    return f"medcheck check {shlex.quote(source)} --record {record}{run}"


def explain_verdict(
    verdict: Verdict,
    event: Event,
    cause: Event | None,
    history: Iterable[Event],
    place: Callable[[Event], str],
    replay: str,
) -> str:
    """Explain one nonconformance or deviation in full.

    ``place`` names an event's record, ``history`` are the domain's last events, oldest first, ``replay`` a command.
    """
    rule = RULES[verdict.rule]
    lines = [f"{rule.id} ({rule.severity.value}): {rule.title}", f"  source: {rule.source}"]
    if verdict.deviation is not None:
        lines.append(f"  known deviation {verdict.deviation}: {DEVIATIONS[verdict.deviation].title}")
    lines.append(f"  record {place(event)}: {describe_event(event)}")
    lines += [f"    {line}" for line in _messages(event)]
    if cause is not None and cause is not event:
        lines.append(f"  because of record {place(cause)}: {describe_event(cause)}")
        lines += [f"    {line}" for line in _messages(cause)]
    if verdict.reason:
        lines.append(f"  what is wrong: {verdict.reason}")
    lines += [f"  {d.field}: expected {d.expected}, observed {d.observed}" for d in verdict.differences]
    if verdict.state:
        lines.append(f"  domain {verdict.domid}: {verdict.state}")
    recent = [f"    {place(e)}: {describe_event(e)}" for e in history]
    if recent:
        lines += ["  last events of the domain:", *recent]
    if replay:
        lines.append(f"  replay: {replay}")
    return "\n".join(lines)


# `medcheck explain`


def explain_rule(name: str) -> str:
    """A rule (``STD-6``) with its source and examples, or a known deviation (``D8``).

    Raises :class:`UsageError` for a name that is neither.
    """
    name = name.upper()
    if name in RULES:
        return "\n".join(_rule(RULES[name]))
    if name in DEVIATIONS:
        return "\n".join(_deviation(DEVIATIONS[name]))
    near = difflib.get_close_matches(name, [*RULES, *DEVIATIONS], n=1)
    raise UsageError(
        f"there is no rule or deviation {name}",
        hint=f"did you mean {near[0]}?" if near else "`medcheck explain` lists them",
    )


def list_rules() -> str:
    """One line per rule and per known deviation."""
    lines = [f"{rule.id:<8} {rule.severity.value:<13} {rule.title}" for rule in RULES.values()]
    return "\n".join([*lines, "", *(f"{d.id:<8} {'deviation':<13} {d.title}" for d in DEVIATIONS.values())])


def _rule(rule: Rule) -> list[str]:
    from mediator_ref.examples import EXAMPLES  # made on import, which takes a moment

    lines = [f"{rule.id}: {rule.title}", f"severity: {rule.severity.value}", f"source: {rule.source}"]
    if rule.sections:
        lines.append(f"specification: section {', '.join(rule.sections)}")
    if rule.requirements:
        lines.append(f"review requirements: {', '.join(rule.requirements)}")
    if rule.needs:
        lines.append(f"needs: {rule.needs}; without it the rule is not checked")
    known = [d for d in DEVIATIONS.values() if rule.id in d.rules]
    lines += [f"known deviation {d.id}: {d.title}" for d in known]
    if rule.unobservable:
        return [*lines, f"cannot be checked from outside: {rule.unobservable}"]
    example = EXAMPLES.get(rule.id)
    if example is None:
        return lines
    lines += ["", "good:", *_lines(example.good, _shared(example.good, example.bad))]
    lines += ["", "bad:", *_lines(example.bad, _shared(example.bad, example.good))]
    state = State(limits=example.limits, deviations={})
    for event in example.bad:
        verdicts = step(state, event)
        lines += [f"  -> {verdict}" for verdict in verdicts if verdict.rule == rule.id]
    return lines


def _shared(events: Sequence[Event], other: Sequence[Event]) -> int:
    """Return how many events to skip: those that both traces begin with, but for the last call."""
    same = 0
    while same < min(len(events), len(other)) and events[same] == other[same]:
        same += 1
    starts = [i for i, e in enumerate(events[: same + 1]) if isinstance(e, GuestCall)]
    return max(0, min(starts[-1] if starts else same, len(events) - 4))


def _lines(events: Sequence[Event], skip: int) -> list[str]:
    lines = [f"  ({skip} events before)"] if skip else []
    for event in events[skip:]:
        lines.append(f"  {event.seq}: {describe_event(event)}")
        lines += [f"      {line}" for line in _messages(event)]
    return lines


def _deviation(known: Deviation) -> list[str]:
    lines = [
        f"{known.id}: {known.title}",
        f"severity: {known.severity.value}",
        f"breaks: {', '.join(known.rules)}",
        f"where: Xen {known.where}",
        f"counts only when: {known.condition}",
        f"provoke it: {known.stimulus}",
        f"status: {known.evidence}",
    ]
    if known.disclosure:
        lines.append(TELL_FIRST)
    return lines


__all__ = [
    "describe_event",
    "expected_observed",
    "explain_rule",
    "explain_verdict",
    "list_rules",
    "replay_command",
]

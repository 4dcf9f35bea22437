# SPDX-License-Identifier: GPL-2.0-or-later
"""Checker: turns records of a trace into verdicts; the same code live and from a file."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from framework.common.errors import UsageError
from framework.common.progress import Progress, Silent
from framework.conformance.explain import describe_event, expected_observed, explain_verdict, replay_command
from framework.conformance.observe import Observer
from framework.conformance.result import (
    DEVIATION,
    FAIL,
    KEPT,
    NOT_CHECKED,
    NOT_EXERCISED,
    NOT_SEEN,
    PASS,
    SEEN,
    ConformanceResult,
    DeviationSeen,
    Nonconformance,
    RuleResult,
    counted,
)
from framework.trace.event import Event as Record
from framework.trace.reader import Reader
from mediator_ref import DEVIATIONS, RULES, Deviation, Limits, Outcome, State, Verdict, step
from mediator_ref.compare.outcomes import OUTCOMES
from mediator_ref.events import DomainDestroyed, End, Event, Gap, GuestCall, Start
from mediator_ref.verdict import Tally

HISTORY = 12
"""Events of a domain that an explanation shows."""
_REASONS = 10
_WHOLE_TRACE = frozenset((Start, Gap, End))
_STEP = 256


class Checker:
    """Checks one trace as it comes. :meth:`feed` it every record in order, then ask for the :meth:`result`.

    ``limits``: those of the mediator under test (Xen's by default). ``deviations``: the known ones; with an
    empty mapping each is a nonconformance. ``source``: the trace file, for the replay command; may be set until
    the first nonconformance. Memory is bounded by the domains, calls and buffers that are alive, not by the length of
    the trace.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        deviations: Mapping[str, Deviation] | None = None,
        source: str = "",
        memory_free: bool = False,
    ) -> None:
        self._state = State(
            limits=limits or Limits(),
            deviations=DEVIATIONS if deviations is None else deviations,
            memory_free=memory_free,
        )
        self._observer = Observer()
        self.source = source
        self._history: dict[int | None, deque[Event]] = {}
        self._found: list[Nonconformance] = []
        self._kept: Counter[str] = Counter()
        self._evidence: dict[str, str] = {}
        self._notes: list[str] = []
        self._latest: Event = Start(0)
        self._finished = False

    @property
    def nonconformances(self) -> Sequence[Nonconformance]:
        """Those found so far, the first of each rule up to a limit."""
        return tuple(self._found)

    @property
    def state(self) -> State:
        """What the reference knows, and its tally; to look at, not to change."""
        return self._state

    @property
    def last_record(self) -> int:
        """The number of the latest record in its run of the plugin; 0 before the first."""
        return self._observer.last

    def feed(self, record: Record) -> Sequence[Verdict]:
        """Check one record, whatever it holds; returns the nonconformances and deviations it decided."""
        events = self._observer.observe(record)
        if len(events) == 1:
            return self._step(events[0])
        decided: list[Verdict] = []
        for event in events:
            decided += self._step(event)
        return decided

    def tell(self, event: Event) -> Sequence[Verdict]:
        """Check an event that is not in the trace: a frame released, pages that a dead domain left behind."""
        return self._step(event)

    def gap(self, reason: str) -> None:
        """Note that records are missing here."""
        self._step(self._observer.gap(reason))

    def resume(self) -> None:
        """The board was saved here and restored: the next record follows the last one, in a new run of the plugin.

        What came before is what the board's clones have in common. It is remembered, and its nonconformances stay;
        nothing else of it counts for a clone.
        """
        self._observer.resume()
        self._state.tally = Tally(fails=self._state.tally.fails)
        self._evidence.clear()

    def finish(self, board_alive: bool | None = None) -> None:
        """The trace ends; ``board_alive`` says whether Xen was still running. Further calls do nothing."""
        if not self._finished:
            self._finished = True
            self._step(End(self._latest.seq, board_alive))

    def result(self, damage: Iterable[str] = ()) -> ConformanceResult:
        """Return the result up to here. ``damage``: what is known to be missing or broken in the trace itself."""
        tally = self._state.tally
        broken = (*damage, *counted(tally.unearned))
        return ConformanceResult(
            events_checked=tally.events,
            rules=tuple(self._rule(id_) for id_ in RULES),
            nonconformances=tuple(self._found),
            deviations=tuple(self._deviations()),
            gaps=(*self._observer.gaps, *(self._observer.unburied() if self._finished else ()), *broken),
            notes=tuple(self._notes),
            incomplete=bool(broken),
            outcomes={name: tally.outcomes[name] for name in OUTCOMES},
            instructions=dict(tally.instructions),
        )

    def _step(self, event: Event) -> Sequence[Verdict]:
        self._latest = event
        try:
            self._history[event.domid].append(event)  # type: ignore[union-attr]
        except (KeyError, AttributeError):
            self._history[_domain_of(event)] = deque((event,), maxlen=HISTORY)
        try:
            verdicts = step(self._state, event)
        except Exception as error:
            # The reference promises not to raise. If it does, that is reported, and the rest is still checked.
            self._internal_error(event, error)
            return ()
        if not verdicts and type(event) is not DomainDestroyed:
            return ()
        found = [v for v in verdicts if v.outcome in (Outcome.FAIL, Outcome.DEVIATION)]
        for verdict in found:
            self._take(verdict, event)
        if type(event) is DomainDestroyed:
            self._history.pop(event.domid, None)
        return found

    def _internal_error(self, event: Event, error: Exception) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"the reference failed at record {event.seq} ({type(error).__name__}: {error}, "
            f"{Path(where.filename).name}:{where.lineno}); this is a defect of medcheck"
        )
        self._notes.append(text)
        self._state.out.clear()
        step(self._state, self._observer.gap(text))

    # What is kept of a verdict

    def explain(self, verdict: Verdict) -> str:
        """Explain a verdict of the latest event: rule, event, difference, state, what came before, replay."""
        event = self._latest
        segment, record = self._observer.place(event.seq)
        history = list(self._history.get(_domain_of(event), (event,)))
        cause = next((e for e in history if type(e) is GuestCall and e.seq == verdict.cause), None)
        command = replay_command(self.source, segment, record)
        return explain_verdict(verdict, event, cause, history[:-1], self._place, command)

    def _place(self, event: Event) -> str:
        """The number of an event's record, as the trace file has it."""
        segment, record = self._observer.place(event.seq)
        return str(record) if segment == 1 else f"{record} of run {segment}"

    def _take(self, verdict: Verdict, event: Event) -> None:
        if verdict.outcome is Outcome.DEVIATION and verdict.deviation in self._evidence:
            return
        if verdict.outcome is Outcome.FAIL:
            self._kept[verdict.rule] += 1
            if self._kept[verdict.rule] > KEPT:
                return
        text = self.explain(verdict)
        if verdict.deviation is not None:
            self._evidence[verdict.deviation] = text
            return
        expected, observed = expected_observed(verdict)
        segment, record = self._observer.place(event.seq)
        self._found.append(
            Nonconformance(
                verdict.rule, record, verdict.domid, describe_event(event), expected, observed, text, segment
            )
        )

    # Totals

    def _rule(self, id_: str) -> RuleResult:
        tally, rule = self._state.tally, RULES[id_]
        passed, failed = tally.passes[id_], tally.fails[id_]
        deviations = sum(n for (name, _), n in tally.deviations.items() if name == id_)
        reasons: Counter[str] = Counter()
        for (name, reason), count in tally.not_checked.items():
            if name == id_:
                reasons[reason] += count
        unchecked = sum(reasons.values())
        words = counted(reasons, _REASONS)
        if rule.unobservable:
            words = [rule.unobservable]
        verdict = NOT_EXERCISED
        if failed:
            verdict = FAIL
        elif deviations:
            verdict = DEVIATION
        elif passed:
            verdict = PASS
        elif unchecked or rule.unobservable:
            verdict = NOT_CHECKED
        counts = passed, failed, deviations, unchecked
        return RuleResult(id_, rule.title, rule.severity.value, verdict, *counts, tuple(words), dict(reasons))

    def _deviations(self) -> Iterable[DeviationSeen]:
        tally = self._state.tally
        for known in self._state.deviations.values():
            rules = {rule: n for (rule, name), n in tally.deviations.items() if name == known.id}
            if rules:
                yield DeviationSeen(
                    known.id,
                    ", ".join(rules),
                    SEEN,
                    self._evidence[known.id],
                    sum(rules.values()),
                    known.disclosure,
                )
            elif tally.deviations_not_seen[known.id]:
                yield DeviationSeen(
                    known.id,
                    ", ".join(known.rules),
                    NOT_SEEN,
                    f"listed, but not there any more: it had its occasion ({known.stimulus}) "
                    f"{tally.deviations_not_seen[known.id]} times and the mediator did the right thing",
                    tally.deviations_not_seen[known.id],
                    known.disclosure,
                )


def _domain_of(event: Event) -> int | None:
    return None if type(event) in _WHOLE_TRACE else event.domid  # type: ignore[union-attr]


def check_file(
    path: Path | str,
    progress: Progress | None = None,
    *,
    limits: Limits | None = None,
    deviations: Mapping[str, Deviation] | None = None,
    board_alive: bool | None = None,
    memory_free: bool = False,
) -> ConformanceResult:
    """Check a trace file from beginning to end; damaged parts are skipped and reported as gaps.

    ``memory_free``: the hypervisor is known to have had free memory, so that ENOMEM is no answer.

    Raises :class:`framework.common.errors.TraceError` when the file cannot be read at all.
    """
    checker = Checker(limits=limits, deviations=deviations, source=str(path), memory_free=memory_free)
    reader = Reader(path, recover=True)
    records = _followed(reader, checker)
    with (progress or Silent()).task(f"checking {Path(path).name}", unit="records") as task:
        while count := sum(1 for _ in map(checker.feed, islice(records, _STEP))):
            task.advance(count)
    checker.finish(board_alive)
    return checker.result(_file_gaps(reader))


def replay(
    path: Path | str,
    record: int,
    segment: int = 1,
    *,
    limits: Limits | None = None,
    deviations: Mapping[str, Deviation] | None = None,
) -> tuple[Sequence[Verdict], Sequence[str]]:
    """Check a trace up to one record; return the verdicts decided at it, and their explanations.

    Raises :class:`framework.common.errors.UsageError` when the trace has no such record.
    """
    checker = Checker(limits=limits, deviations=deviations, source=str(path))
    reader = Reader(path, recover=True)
    for event in _followed(reader, checker):
        decided = checker.feed(event)
        if event.seq == record and len(reader.segments) == segment:
            return decided, [checker.explain(verdict) for verdict in decided]
    raise UsageError(f"the trace has no record {record} in run {segment}", where=str(path))


def _followed(reader: Reader, checker: Checker) -> Iterator[Record]:
    """Yield a file's records one by one, and tell the checker before where a restored board's begin."""
    for record in reader.events():
        if record.seq == 1 and len(reader.segments) > 1:
            before, own = reader.segments[-2:]
            # A run that was not closed may have lost what its continuation rests on.
            if own.continues and own.records == 1 and before.complete:
                checker.resume()
        yield record


def _file_gaps(reader: Reader) -> Iterable[str]:
    """Yield the gaps that the file's own counters and damage show."""
    for problem in reader.problems:
        yield f"the file, at byte {problem.offset}: {problem.text}"
    for number, segment in enumerate(reader.segments, start=1):
        if segment.counters is None:
            run = "" if len(reader.segments) == 1 else f" of run {number}"
            yield f"the closing record{run} is missing: whether records are missing at the end is not known"

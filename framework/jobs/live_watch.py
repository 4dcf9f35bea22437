# SPDX-License-Identifier: GPL-2.0-or-later
"""Live check of a running board: the first nonconformance is reported at once, and may end the run."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from framework.common.errors import NonconformanceError
from framework.common.progress import Progress
from framework.conformance.live import LiveCheck
from framework.conformance.result import SAID, ConformanceResult
from framework.target.target import Target
from framework.trace.format import Kind
from framework.trace.live import Held
from framework.trace.reader import Reader
from mediator_ref import RULES, Verdict

HOPELESS = 10_000
"""Nonconformances of one rule after which a run ends by itself: a guest that repeats a call which the mediator answers
wrongly (a driver that tries again and again, say) makes no progress, however long one waits."""

_REST_SECONDS = 60.0
"""Seconds in which the check must catch up with a board that has ended."""


class LiveWatch(AbstractContextManager["LiveWatch"]):
    """A check beside a running board, to which the board's plugin connects at :attr:`socket`.

    It speaks up early, and saves a second check of the trace where :meth:`result` has it. ``fail_fast``: the first
    nonconformance ends every wait for the board.
    """

    def __init__(self, progress: Progress, *, fail_fast: bool = False) -> None:
        # Not in the report's folder: a socket's path is at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="medcheck-")
        self.socket = Path(self._folder.name) / "live"
        self._progress = progress
        self._fail_fast = fail_fast
        self._target: Target | None = None
        self._seen: Counter[str] = Counter()
        self._whole = False
        self._check = LiveCheck(self.socket, on_verdict=self._on_verdict, connect_s=_REST_SECONDS)

    def __enter__(self) -> LiveWatch:
        self._check.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        caught_up = kind is not None or self._check.join(_REST_SECONDS)
        self._check.close()
        why = self._check.error or ("" if caught_up else f"it is more than {_REST_SECONDS:.0f} s behind")
        if kind is None and why:
            self._progress.say(f"the live check is of no use, the trace is checked as a whole: {why}")
        self._whole = kind is None and not why
        self._folder.cleanup()

    def result(self, trace: Path, board_alive: bool | None) -> ConformanceResult | None:
        """Return the result of a board that has ended, or None where only a check of its file ``trace`` gives it: the
        file does not hold what was checked as it came and, after that, the closing record, which is not sent; or
        the result would be incomplete, which what is known of the board by now may change.

        Raises TraceError when the file cannot be read.
        """
        if not self._whole:
            return None
        reader = Reader(trace, recover=True)
        checker = self._check.checker
        closing = [record for record in reader.events() if record.seq > checker.last_record]
        if len(reader.segments) != 1 or reader.problems or not reader.segments[0].complete:
            return None
        if [record.kind for record in closing] != [Kind.COUNTERS]:
            return None
        checker.feed(closing[0])
        result = self._check.result(board_alive)
        return None if result.incomplete else result

    def watch(self, target: Target) -> None:
        """Set the board whose waits end when the run cannot succeed."""
        self._target = target
        self._check.checker.source = str(target.trace or "")
        # This consumer never makes a vCPU wait: a CPU that seems to sleep is not held by it.
        target.board.in_lockstep = False

    def _on_verdict(self, held: Held, verdict: Verdict) -> None:
        """Report a verdict; called in the check's thread."""
        self._seen[verdict.rule] += 1
        count = self._seen[verdict.rule]
        if count == 1:
            where = f"record {held.event.seq}" + ("" if verdict.domid is None else f", domain {verdict.domid}")
            self._progress.say(f"{SAID}{verdict.rule} ({RULES[verdict.rule].title}) at {where}")
        if self._target is not None and (self._fail_fast or count == HOPELESS):
            how = "at the first" if self._fail_fast else f"after {count} of its kind"
            self._target.abort(
                NonconformanceError(
                    f"{verdict.rule} broken: {verdict.reason}; the run ends {how}",
                    where=f"record {held.event.seq}",
                    hint=f"`medcheck explain {verdict.rule}` says what the rule demands",
                )
            )

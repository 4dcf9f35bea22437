# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run says and does about a nonconformance while the board still runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import MedcheckError, NonconformanceError, TraceError
from framework.common.progress import Silent
from framework.conformance.checker import check_file
from framework.conformance.live import LiveCheck
from framework.jobs.live_watch import HOPELESS, LiveWatch
from framework.trace.format import Kind
from framework.trace.reader import Reader
from mediator_ref import Outcome, Verdict
from mediator_ref.rules import RuleId
from testcases.unit.conformance.samples import simple_trace


class Said(Silent):
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def watch(fail_fast: bool = False) -> Iterator[tuple[LiveWatch, Said, list[MedcheckError]]]:
    """A watch of a board that never comes."""
    said, ended = Said(), list[MedcheckError]()
    live = LiveWatch(said, fail_fast=fail_fast)
    target: Any = SimpleNamespace(abort=ended.append, trace=None, board=SimpleNamespace(in_lockstep=True))
    live.watch(target)
    assert not target.board.in_lockstep, "its waits are judged as those of a board that is not held"
    with suppress(ConnectionAbortedError), live:
        yield live, said, ended
        raise ConnectionAbortedError


def decide(live: LiveWatch, rule: str, seq: int = 7) -> None:
    held: Any = SimpleNamespace(event=SimpleNamespace(seq=seq))
    live._on_verdict(held, Verdict(RuleId(rule), Outcome.FAIL, seq, domid=1, reason="the call reached EL3"))


def test_the_first_of_each_rule_is_said_at_once_and_the_run_goes_on() -> None:
    with watch() as (live, said, ended):
        for rule in ("DISP-2", "DISP-2", "STD-5"):
            decide(live, rule)
        assert [line.split(" (")[0] for line in said.lines] == ["nonconformance: DISP-2", "nonconformance: STD-5"]
        assert said.lines[0].endswith("at record 7, domain 1")
        assert ended == []


def test_fail_fast_ends_the_run_at_the_first() -> None:
    with watch(fail_fast=True) as (live, _, ended):
        decide(live, "DISP-2")
        (error,) = ended
        assert isinstance(error, NonconformanceError)
        assert error.exit_code == 1
        assert "DISP-2 broken: the call reached EL3" in error.what


def test_the_same_nonconformance_again_and_again_is_no_progress() -> None:
    with watch() as (live, said, ended):
        for _ in range(HOPELESS - 1):
            decide(live, "FAST-1")
        assert ended == []
        decide(live, "FAST-1")
        decide(live, "FAST-1")
        assert len(ended) == 1
        assert f"after {HOPELESS} of its kind" in ended[0].what
        assert len(said.lines) == 1


@pytest.mark.parametrize(("error", "why"), [
    (TraceError("record 7 is malformed"), "record 7 is malformed"),
    (None, "it is more than 60 s behind"),
])  # fmt: skip
def test_a_live_check_that_does_not_catch_up_or_broke_off_is_said(
    monkeypatch: pytest.MonkeyPatch, error: TraceError | None, why: str
) -> None:
    said = Said()
    live = LiveWatch(said)
    close = live._check.close

    def closed() -> None:
        close()
        live._check.error = error

    monkeypatch.setattr(live._check, "join", lambda _seconds: False)
    monkeypatch.setattr(live._check, "close", closed)
    with live:
        pass
    assert said.lines == [f"the live check is of no use, the trace is checked as a whole: {why}"]


def test_nothing_is_left_behind_by_a_run_that_breaks_off() -> None:
    with watch() as (live, _, _):
        folder = live.socket.parent
        assert live.socket.exists()
    assert not folder.exists()


def ended(trace: Path, records: int | None = None, *, broke_off: bool = False) -> LiveWatch:
    """A watch that saw the first ``records`` of a trace, or all, until its board ended."""

    def see(check: LiveCheck) -> None:
        # The closing record is in the file only.
        for event in islice(Reader(trace).events(), records):
            if event.kind != Kind.COUNTERS:
                check.checker.feed(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveCheck, "_run", see)
        live = LiveWatch(Silent())
        target: Any = SimpleNamespace(trace=trace, board=SimpleNamespace(in_lockstep=True))
        live.watch(target)
        with suppress(ConnectionAbortedError), live:
            if broke_off:
                raise ConnectionAbortedError
    return live


def test_what_was_checked_live_needs_no_second_check(tmp_path: Path) -> None:
    trace = tmp_path / "board.trace"
    count = simple_trace(trace)
    assert ended(trace).result(trace, True) == check_file(trace, board_alive=True)
    assert ended(trace, count - 1).result(trace, True) is None
    assert ended(trace, broke_off=True).result(trace, True) is None


def test_a_file_with_other_records_is_checked_itself(tmp_path: Path) -> None:
    trace = tmp_path / "board.trace"
    simple_trace(trace)
    live = ended(trace)
    data = trace.read_bytes()
    trace.write_bytes(data[:-40])
    assert live.result(trace, True) is None
    assert ended(trace).result(trace, True) is None, "it has no closing record any more"
    trace.write_bytes(data + data)
    assert live.result(trace, True) is None

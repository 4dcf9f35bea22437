# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run says and does about a nonconformance while the board still runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import MedcheckError, NonconformanceError, TraceError
from framework.common.progress import Silent
from framework.jobs.live_watch import HOPELESS, LiveWatch
from mediator_ref import Outcome, Verdict
from mediator_ref.rules import RuleId


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
    target: Any = SimpleNamespace(abort=ended.append, board=SimpleNamespace(in_lockstep=True))
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user sees: explanations, the commands, and the check while the board runs."""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.bench.conformance import check_events_per_s, generate
from framework.bench.workloads import ratios
from framework.cli.check import add_parser
from framework.common.disclosure import TELL_FIRST
from framework.common.errors import ExitCode, MedcheckError, TraceError, UsageError
from framework.common.terminal import Output
from framework.conformance.checker import check_file, replay
from framework.conformance.explain import describe_event, explain_rule, list_rules
from framework.conformance.live import JUDGED, LiveCheck
from framework.conformance.result import PASS
from framework.conformance.synthesize import write_trace
from framework.trace.event import Event as Record
from framework.trace.format import Kind
from framework.trace.live import Held, Message
from mediator_ref import DEVIATIONS, RULES, Verdict
from mediator_ref.events import El3Call, Event, Gap, GuestReturn
from mediator_ref.examples import EXAMPLES
from mediator_ref.examples.mutate import with_register
from testcases.unit.conformance.samples import as_traced, busy_board, failed_rules, records_of, simple_trace

HEADER = struct.Struct("<IHH")


@pytest.fixture
def bad_trace(tmp_path: Path) -> Path:
    path = tmp_path / "bad.trace"
    write_trace(path, as_traced(EXAMPLES["STD-5"].bad))
    return path


def run(arguments: Sequence[str], *, as_json: bool = False) -> int:
    """The command line as `framework.cli.main` runs it: a handler of options and output."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    add_parser(parser.add_subparsers(required=True), [common])
    options = parser.parse_args([*arguments, *(["--json"] if as_json else [])])
    try:
        return int(options.handler(options, Output(quiet=True, json=options.json)))
    except MedcheckError as error:
        return int(error.exit_code)


# Explanations


def test_a_nonconformance_tells_the_whole_story(bad_trace: Path) -> None:
    (found,) = check_file(bad_trace).nonconformances
    assert (found.rule, found.domid, found.expected, found.observed) == ("STD-5", 1, "x3 = 0x1", "x3 = 0x0")
    assert found.event.startswith("d1v0 Xen -> EL3: CALL_WITH_ARG")
    story = found.explanation
    assert RULES["STD-5"].title in story
    assert f"source: {RULES['STD-5'].source}" in story
    assert "because of record" in story
    assert "x3: expected 0x1, observed 0x0" in story
    assert "cmd=INVOKE_COMMAND func=0x7 session=81" in story
    assert "domain 1: 0 calls running" in story
    assert "last events of the domain:" in story
    assert f"replay: medcheck check {bad_trace} --record {found.seq}" in story


def test_the_replay_command_decides_the_same_again(bad_trace: Path) -> None:
    (found,) = check_file(bad_trace).nonconformances
    decided, stories = replay(bad_trace, found.seq, found.segment)
    assert [verdict.rule for verdict in decided] == ["STD-5"]
    assert list(stories) == [found.explanation]
    assert replay(bad_trace, found.seq - 1)[1] == []
    with pytest.raises(UsageError):
        replay(bad_trace, 10_000)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_explained(rule: str) -> None:
    text = explain_rule(rule.lower())
    assert RULES[rule].title in text
    assert RULES[rule].source in text
    if rule in EXAMPLES:
        assert "\ngood:\n" in text
        assert f"{rule} fail: " in text.split("\nbad:\n")[1]
    else:
        assert RULES[rule].unobservable in text


@pytest.mark.parametrize("deviation", sorted(DEVIATIONS))
def test_every_deviation_is_explained(deviation: str) -> None:
    text = explain_rule(deviation)
    assert DEVIATIONS[deviation].condition in text
    assert (TELL_FIRST in text) == DEVIATIONS[deviation].disclosure


def test_rules_are_listed_and_unknown_ones_refused() -> None:
    listed = list_rules()
    assert all(name in listed for name in (*RULES, *DEVIATIONS))
    with pytest.raises(UsageError):
        explain_rule("STD-99")


def test_every_kind_of_event_has_words() -> None:
    events: list[Event] = [
        *EXAMPLES["LIFE-4"].bad,
        *EXAMPLES["MEM-10"].bad,
        *EXAMPLES["LIFE-7"].bad,
        Gap(1, "x"),
    ]
    words = {type(event).__name__: describe_event(event) for event in events}
    assert len(words) == 11
    assert all(words.values())


# Commands


def test_exit_codes_and_output(tmp_path: Path, bad_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.trace"
    simple_trace(good)
    assert run(["check", str(good)]) == ExitCode.GOOD
    assert capsys.readouterr().out.rstrip().endswith("0 nonconformances: pass")
    assert run(["check", str(bad_trace)]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "NONCONFORMANCE STD-5" in out
    assert run(["check", str(tmp_path / "absent")]) == ExitCode.USAGE
    assert run(["explain", "STD-99"]) == ExitCode.USAGE
    assert run(["explain", "STD-5"]) == ExitCode.GOOD
    assert run(["explain"]) == ExitCode.GOOD


def test_json_is_one_document_with_the_contract(bad_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(bad_trace)], as_json=True) == ExitCode.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "fail"
    assert document["events_checked"] > 10
    assert {r["id"]: r["verdict"] for r in document["rules"]}["STD-5"] == "fail"
    assert document["nonconformances"][0]["rule"] == "STD-5"


def test_replay_on_the_command_line(bad_trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = check_file(bad_trace).nonconformances
    assert run(["check", str(bad_trace), "--record", str(found.seq)]) == ExitCode.FAILED
    assert found.explanation in capsys.readouterr().out
    assert run(["check", str(bad_trace), "--record", "1"]) == ExitCode.GOOD


# Live


class Plugin:
    """The plugin's end of the lock-step socket: sends records, and waits where it was told to."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.stopped = False

    def play(self, records: Sequence[Record], *, bye: bool = True) -> None:
        self._put(Message.HELLO, b'{"cpus": 2}')
        _, setup = self._get()
        send, hold, _before = struct.unpack("<3I", setup)
        for record in records:
            if not (send | hold) >> record.kind & 1:
                continue
            waits = bool(hold >> record.kind & 1)
            self._put(Message.EVENT, record.raw, int(waits))
            if waits and self._get()[0] == Message.STOP:
                self.stopped = True
                break
        if bye:
            self._put(Message.BYE)
        self.socket.close()

    def _put(self, kind: Message, payload: bytes = b"", flags: int = 0) -> None:
        self.socket.sendall(HEADER.pack(len(payload), kind, flags) + payload)

    def _get(self) -> tuple[int, bytes]:
        length, kind, _ = HEADER.unpack(self.socket.recv(HEADER.size, socket.MSG_WAITALL))
        return kind, self.socket.recv(length, socket.MSG_WAITALL) if length else b""


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_live_and_offline_give_the_same_result(tmp_path: Path, lockstep: bool, wrong: bool) -> None:
    events = busy_board().events
    if wrong:
        events = with_register(events, GuestReturn, 0, 9)
    path = tmp_path / "t.trace"
    write_trace(path, as_traced(events))
    with LiveCheck(tmp_path / "s", source=path, lockstep=lockstep) as check:
        Plugin(check.socket).play(records_of(events))
        assert check.join(30)
        assert check.error is None
        live = check.result()
    offline = check_file(path)
    assert live.to_json() == offline.to_json()
    assert failed_rules(live) == ({"STD-8"} if wrong else set())


def test_in_lock_step_the_board_can_be_stopped_at_the_wrong_event(tmp_path: Path) -> None:
    bad = records_of(EXAMPLES["STD-5"].bad)
    stopped_at: list[tuple[int, str]] = []

    def stop(held: Held, verdict: Verdict) -> None:
        stopped_at.append((held.event.seq, verdict.rule))
        held.stop()

    with LiveCheck(tmp_path / "s", lockstep=True, on_verdict=stop) as check:
        plugin = Plugin(check.socket)
        plugin.play(bad)
        check.join(30)
    wrong = next(r.seq for r in reversed(bad) if r.kind == Kind.EL3_CALL)
    assert stopped_at == [(wrong, "STD-5")]
    assert plugin.stopped
    assert Kind.EL3_CALL in JUDGED


def test_a_board_that_vanishes_leaves_what_was_checked(tmp_path: Path) -> None:
    records = records_of(busy_board().events)
    with LiveCheck(tmp_path / "s") as check:
        Plugin(check.socket).play(records[:20], bye=False)
        assert check.join(30)
    result = check.result(board_alive=False)
    assert result.events_checked >= 20
    assert failed_rules(result) == {"LIFE-7"}


def test_a_plugin_that_never_connects_is_a_gap(tmp_path: Path) -> None:
    with LiveCheck(tmp_path / "s", connect_s=0.05) as check:
        assert check.join(30)
    assert isinstance(check.error, TraceError)
    assert any("broke off" in gap for gap in check.result().gaps)


def test_two_boards_are_checked_at_once(tmp_path: Path) -> None:
    good, bad = records_of(busy_board().events), records_of(EXAMPLES["STD-5"].bad)
    with LiveCheck(tmp_path / "a") as one, LiveCheck(tmp_path / "b") as two:
        players = [
            threading.Thread(target=Plugin(check.socket).play, args=(records,))
            for check, records in ((one, good), (two, bad))
        ]
        for player in players:
            player.start()
        for player in players:
            player.join()
        assert one.join(30)
        assert two.join(30)
    assert failed_rules(one.result()) == set()
    assert failed_rules(two.result()) == {"STD-5"}


# Measurements


def test_generated_traces_conform_and_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "g.trace"
    records = generate(path, 500)
    result = check_file(path)
    assert result.verdict == PASS
    assert not result.gaps
    assert 500 <= records <= 501
    assert result.events_checked >= 499
    assert all(speed > 0 for speed in check_events_per_s((200, 400)).values())


def test_ratios_compare_the_same_work_in_pairs() -> None:
    took = {"bare": iter((1.0, 2.0)), "watched": iter((1.2, 2.6))}
    order: list[str] = []

    def work(kind: str) -> float:
        order.append(kind)
        return next(took[kind])

    assert ratios(lambda: work("watched"), lambda: work("bare"), pairs=2) == pytest.approx([1.2, 1.3])
    assert order == ["bare", "watched", "watched", "bare"]


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    import tracemalloc

    def peak(records: int) -> int:
        path = tmp_path / str(records)
        generate(path, records)
        tracemalloc.start()
        check_file(path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)
    short, long = peak(1500), peak(6000)
    assert long < short * 1.2


def test_an_el3_call_of_no_guest_is_xens_own() -> None:
    call = El3Call(1, 0, None, (0, 0, 0, 0, 0, 0, 0, 0))
    assert describe_event(call).startswith("Xen itself")

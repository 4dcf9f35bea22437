# SPDX-License-Identifier: GPL-2.0-or-later
"""What a board needs to do the same twice, without a board: its state, the order of threads, scripts, digests."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from framework.board.icount import pin_threads_realtime, require_realtime, unpin_threads
from framework.common.errors import BoardError, InfrastructureError, UsageError
from framework.jobs import replay
from framework.jobs.replay import digest_of, given
from framework.snapshot.icount_state import converted
from framework.trace.format import Kind
from framework.trace.writer import Writer, pack_record
from testcases.unit.snapshot.test_timer_fixup import stream

PMCEID0 = 0x6030_0000_0013_DCE6
PMCEID0_AARCH32 = 0x4020_0000_000F_4E06
SAVED_AT = 25_000_000_123
SUBSECTION = b"\x05\x0ctimer/icount" + struct.pack(">Iqq", 1, SAVED_AT, 0)


def board(**more: int) -> bytes:
    return bytes(stream([{PMCEID0: 0x7E, PMCEID0_AARCH32: 0x7F}] * 2, **{"clock": SAVED_AT, **more}))  # type: ignore[arg-type]


def test_the_count_begins_at_the_time_at_which_the_board_was_saved() -> None:
    before, after = board(), converted(board())
    assert len(after) == len(before) + len(SUBSECTION)
    at = after.index(SUBSECTION)
    assert at == before.index(struct.pack(">q", SAVED_AT)) + 8, "behind the clock's fields"
    assert after[at + len(SUBSECTION)] == 0x7E, "inside its section"


def test_every_cpu_says_that_instructions_are_counted() -> None:
    after = converted(board())
    assert after.count(struct.pack(">QQ", 0x17E, 0x17F)) == 2
    assert converted(board()) == after


def test_a_state_without_clock_is_refused() -> None:
    with pytest.raises(BoardError, match="no clock"):
        converted(bytes(stream([{PMCEID0: 0, PMCEID0_AARCH32: 0}])))


def test_a_state_with_a_count_is_refused() -> None:
    with pytest.raises(BoardError, match="counts instructions already"):
        converted(board(counted=True))


@pytest.mark.parametrize("registers", [{PMCEID0: 0}, {PMCEID0_AARCH32: 0}])
def test_a_cpu_that_cannot_say_so_is_refused(registers: dict[int, int]) -> None:
    with pytest.raises(BoardError, match="a CPU without the register"):
        converted(bytes(stream([registers], clock=1)))


def test_a_clock_of_another_qemu_is_refused() -> None:
    odd = board().replace(b"cpu_clock_offset", b"cpu_clock_offsit")
    with pytest.raises(BoardError, match="without time"):
        converted(odd)


def test_a_user_who_may_not_set_priorities_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    with pytest.raises(InfrastructureError, match="ulimit -r") as caught:
        pin_threads_realtime(os.getpid())
    assert str(os.getpid()) in str(caught.value)


def test_the_same_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(InfrastructureError, match="ulimit -r` must say 3"):
        require_realtime()


def test_the_order_can_be_dropped_again() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        os.sched_setaffinity(other.pid, {max(os.sched_getaffinity(0))})
        os.sched_setscheduler(other.pid, os.SCHED_BATCH, os.sched_param(0))
        unpin_threads(other.pid)
        assert os.sched_getscheduler(other.pid) == os.SCHED_OTHER
        assert os.sched_getaffinity(other.pid) == os.sched_getaffinity(0)
    unpin_threads(other.pid)


def test_a_process_that_executes_no_cpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda _tid, _policy, param: given.append(param.sched_priority))
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        pytest.raises(InfrastructureError, match="0 of QEMU's threads execute CPUs"),
    ):
        pin_threads_realtime(other.pid)
    assert given == [1]


def test_a_host_with_one_core_is_not_given_to_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    with pytest.raises(InfrastructureError, match="no other one"):
        require_realtime()


@pytest.mark.parametrize("stimulus", ["", " \n", "echo \0", "echo \udcff"])
def test_a_stimulus_that_is_none_is_refused(stimulus: str) -> None:
    with pytest.raises(UsageError, match="stimulus"):
        given(stimulus)


def armed_run(tmp_path: Path, stimulus: str) -> tuple[str, str]:
    """Run the prepared script here, with ``xl`` and its like played; returns the console's text and ``xl``'s calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("sleep", ""),
        ("xenstore-list", "echo 0; echo 7"),
        ("xenstore-read", f"echo {tmp_path}/tty"),
        ("xl", f'[ "$1$2" != domidvm9 ] || exit 1; echo "$@" >>{tmp_path}/xl'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "given").write_bytes(given(stimulus))
    script = replay._PREPARED.replace(replay._GIVEN, f"{tmp_path}/given")
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": f"{tools}:{os.environ['PATH']}"}, check=True, timeout=20,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.stdout, (tmp_path / "xl").read_text()


@pytest.mark.parametrize(
    ("stimulus", "code", "said"),
    [
        ("settle 5; exit 3; echo not reached", 3, ""),
        ("kill $$", 143, ""),
        ("exit 4; )", 2, "yntax error"),
        ("cat <<EOF\nleft open", 0, "left open"),
        ("while :; do :; done & exit 5", 5, ""),
        ("in_guest vm9 date; echo not reached", 1, "there is no guest vm9"),
    ],
)
def test_a_script_tells_how_its_stimulus_ended_whatever_that_does(
    tmp_path: Path, stimulus: str, code: int, said: str
) -> None:
    console, calls = armed_run(tmp_path, stimulus)
    assert console.startswith("medcheck: stimulus begins\n")
    assert console.endswith(f"medcheck: stimulus ended {code}\n")
    assert said in console
    assert "not reached" not in console
    assert calls == "destroy 7\n"


def test_a_line_for_a_guest_reaches_its_terminal(tmp_path: Path) -> None:
    armed_run(tmp_path, """in_guest vm1 'echo "100 %" {} $x'""")
    assert (tmp_path / "tty").read_text() == 'echo "100 %" {} $x\n'


def trace(path: Path, time_ns: int = 5, x1: int = 2) -> Path:
    with Writer(path) as writer:
        writer.append(pack_record(Kind.GUEST_CALL, 1, [0x32000004, x1], time_ns=time_ns))
    return path


def test_a_digest_is_of_everything_but_the_host_s_time(tmp_path: Path) -> None:
    first, again = digest_of(trace(tmp_path / "a")), digest_of(trace(tmp_path / "b"))
    assert first == again
    assert first[1] == 1
    assert digest_of(trace(tmp_path / "c", time_ns=6)) != first
    assert digest_of(trace(tmp_path / "d", x1=3)) != first

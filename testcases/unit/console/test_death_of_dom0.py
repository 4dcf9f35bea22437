# SPDX-License-Identifier: GPL-2.0-or-later
"""A death ends every wait on the board and is named; what a domU prints of others' deaths is ignored."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.board.board import Board
from framework.board.spec import BoardSpec
from framework.common.errors import BoardError, GuestCrash
from framework.console.console import Console
from framework.console.reader_thread import ConsoleReader


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board whose consoles are real and whose QEMU is the test."""
    monkeypatch.setattr("framework.console.console.host_factor", lambda: 1.0)
    files: Any = None
    board = Board(BoardSpec.load("default"), files, tmp_path)
    ends = []
    for name in ("xen", "optee", "dom0", "guest0", "guest1"):
        near, far = socket.socketpair()
        ends.append(far)
        board.consoles[name] = Console(name, near, tmp_path / f"{name}.log", lambda: 1.0)
        board.consoles[name].on_signature(board._on_signature)
    yield board
    for console in board.consoles.values():
        console.close(BoardError("the test is over"))
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[    2.6] Kernel panic - not syncing: Attempted to kill init!\r\n",
         "dom0: linux-panic: [    2.6] Kernel panic - not syncing: Attempted to kill init!"),
        (b"(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\r\n",
         "dom0: dom0-crash: (XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds."),
        (b"(XEN) Panic on CPU 0:\r\n(XEN) the reason\r\n(XEN) ****\r\n", "xen-panic: (XEN) Panic on CPU 0: the reason"),
    ],
)  # fmt: skip
def test_a_death_on_xens_console_ends_every_wait(board: Board, text: bytes, words: str) -> None:
    board.consoles["xen"].feed(text)
    for name in board.consoles:
        if name != "xen":
            with pytest.raises(GuestCrash) as caught:
                board.consoles[name].expect(b"never", idle_timeout=30)
            assert caught.value.what == words
            assert (caught.value.where, caught.value.exit_code) == ("console xen", 1)
    assert [problem.console for problem in board.problems] == ["xen"]


@pytest.mark.parametrize("text", [
    b"(XEN) Panic on CPU 0:\r\n(XEN) the reason\r\n(XEN) ****\r\n", b"PANIC at PC : 0x0\r\n",
    b"(XEN) Hardware Dom0 crashed: rebooting\r\n", b"E/TC:0 0 Panic at core/kernel/panic.c:1\r\n",
    b"Kernel panic - not syncing: x\r\n",
])  # fmt: skip
def test_a_domu_declares_nothing_but_itself_dead(board: Board, text: bytes) -> None:
    board.consoles["guest0"].feed(text)
    for name in board.consoles:
        if name != "guest0":
            with pytest.raises(BoardError, match="no byte for"):
                board.consoles[name].expect(b"never", idle_timeout=0.05)
    assert {problem.kind for problem in board.problems} <= {"linux-panic"}


def test_a_board_keeps_few_of_many_problems_and_counts_them(board: Board) -> None:
    told: list[str] = []
    board.on_problem(lambda problem: told.append(problem.kind))
    board.consoles["guest0"].feed(b"kernel BUG at x\n" * 3000)
    assert (len(board.problems), len(told)) == (20, 20)
    assert "2,980 linux-bug on guest0" in board.problem_log.shown()[-1].line


def test_a_panic_after_which_nothing_comes_is_told_by_the_reader(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("framework.console.scanner._REASON_SECONDS", 0.05)
    near, far = socket.socketpair()
    console = Console("xen", near, tmp_path / "more.log", lambda: 1.0)
    console.on_signature(board._on_signature)
    reader = ConsoleReader("test")
    reader.add(console)
    reader.start()
    far.sendall(b"(XEN) Panic on CPU 0:\r\n")
    with pytest.raises(GuestCrash, match=r"xen-panic: \(XEN\) Panic on CPU 0:$"):
        board.consoles["guest0"].expect(b"never", idle_timeout=30)
    far.close()
    reader.stop()
    console.close(BoardError("the test is over"))

"""A test that leaves its board in ruins does not touch the next: each of these finds a whole board, and ruins it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from framework.board.janitor import Janitor
from framework.common.errors import MedcheckError
from framework.target.target import Session

_ruined: list[str] = []
"""Ids of the boards that earlier tests of this process left."""


def killed(live: Session) -> None:
    """QEMU goes at once, without a word."""
    os.kill(live.board.pid, signal.SIGKILL)
    with pytest.raises(MedcheckError, match="SIGKILL"):
        live.dom0.console.expect([b"never said"], idle_timeout=60)
    assert not live.board.alive


def panicked(live: Session) -> None:
    """dom0's kernel panics."""
    live.dom0.console.sendline("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    live.dom0.console.expect([b"end Kernel panic"], idle_timeout=60)
    assert "linux-panic" in {problem.kind for problem in live.board.problems}


def emptied(live: Session) -> None:
    """dom0 has no programs any more and a guest is gone, but the board runs and shows no problem."""
    live.dom0.xl.destroy(live.guests["vm1"].domid)
    live.dom0.ssh.run("rm -rf /usr /bin /sbin /lib /etc")
    with pytest.raises(MedcheckError):
        live.dom0.xl.list()
    assert live.board.alive


def whole(live: Session) -> None:
    """Everything answers: dom0, each guest, and OP-TEE to each guest; and nobody has complained."""
    assert len(live.guests) >= 2
    assert {domain.name for domain in live.dom0.xl.list()} == {"Domain-0", *live.guests}
    for guest in live.guests.values():
        assert guest.ssh.run("xtest -t regression 1004 >/dev/null").check().rc == 0
    assert live.board.problems == []
    # A dead board's processes, memory and entry are gone before the next test gets its board.
    for identity in _ruined:
        assert identity != live.board.id
        assert Janitor().processes_of(identity) == []
        assert identity not in Janitor().boards()


@pytest.mark.parametrize("ruin", [killed, panicked, emptied])
def test_a_test_finds_a_whole_board_and_leaves_ruins(live: Session, ruin: Callable[[Session], None]) -> None:
    whole(live)
    _ruined.append(live.board.id)
    ruin(live)


def test_the_next_test_finds_a_whole_board(live: Session) -> None:
    whole(live)

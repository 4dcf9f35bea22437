# SPDX-License-Identifier: GPL-2.0-or-later
"""A test that breaks its board does not affect the next: each of these gets a working board, and breaks it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from framework.board.janitor import Janitor
from framework.common.errors import MedcheckError
from framework.target.target import Target

_ruined: list[str] = []
"""Ids of the boards that earlier tests of this process left."""


def killed(target: Target) -> None:
    """QEMU goes at once, without a word."""
    os.kill(target.board.pid, signal.SIGKILL)
    with pytest.raises(MedcheckError, match="SIGKILL"):
        target.dom0.console.expect([b"never said"], idle_timeout=60)
    assert not target.board.alive


def panicked(target: Target) -> None:
    """dom0's kernel panics."""
    target.dom0.console.sendline("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    target.dom0.console.expect([b"end Kernel panic"], idle_timeout=60)
    assert "linux-panic" in {problem.kind for problem in target.board.problems}


def emptied(target: Target) -> None:
    """dom0 has no programs any more and a guest is gone, but the board runs and shows no problem."""
    target.dom0.xl.destroy(target.guests["vm1"].domid)
    target.dom0.ssh.run("rm -rf /usr /bin /sbin /lib /etc")
    with pytest.raises(MedcheckError):
        target.dom0.xl.list()
    assert target.board.alive


def whole(target: Target) -> None:
    """Everything answers: dom0, each guest, and OP-TEE to each guest; and no console shows a problem."""
    assert len(target.guests) >= 2
    assert {domain.name for domain in target.dom0.xl.list()} == {"Domain-0", *target.guests}
    for guest in target.guests.values():
        assert guest.ssh.run("xtest -t regression 1004 >/dev/null").check().rc == 0
    assert target.board.problems == []
    # A dead board's processes, memory and entry are gone before the next test gets its board.
    for identity in _ruined:
        assert identity != target.board.id
        assert Janitor().processes_of(identity) == []
        assert identity not in Janitor().boards()


@pytest.mark.parametrize("destroy", [killed, panicked, emptied])
def test_a_test_gets_a_working_board_and_breaks_it(target: Target, destroy: Callable[[Target], None]) -> None:
    whole(target)
    _ruined.append(target.board.id)
    destroy(target)


def test_the_next_test_finds_a_whole_board(target: Target) -> None:
    whole(target)

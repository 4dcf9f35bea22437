# SPDX-License-Identifier: GPL-2.0-or-later
"""Clones of a booted board: private, alive in every timer, with a sane clock and randomness of their own."""

from __future__ import annotations

import os
import shutil
import signal
import time

import psutil
import pytest

from framework.board.janitor import Janitor
from framework.common.content_hash import sha256
from framework.common.errors import BoardError, GuestError
from framework.common.qemu_ids import FIRST_UID, LAST_UID
from framework.snapshot import sparse
from framework.snapshot.restore import clone
from framework.target.checkpoints import READY, snapshot
from framework.target.postmortem import postmortem_folder, resume, save
from framework.trace.format import Kind
from framework.trace.reader import Reader

CLONES = 1000

CLOCK_SECONDS = 30
"""A restored guest's clock may be as wrong as the wake-up took; unset, it is wrong by decades."""


def test_clones_are_private_and_the_snapshot_stays_as_it_was(target_provider, stack, spec, tmp_path):
    with snapshot(target_provider._store, spec, stack, READY) as found:
        before = sparse.digest(found.ram), sha256(found.state)
        with target_provider.clone(tmp_path / "a") as first, target_provider.clone(tmp_path / "b") as second:
            first.dom0.ssh.run("echo mine >/run/mark").check()
            first.guests["vm1"].ssh.run("echo mine >/run/mark").check()
            assert second.dom0.ssh.run("test -e /run/mark").rc == 1
            assert second.guests["vm1"].ssh.run("test -e /run/mark").rc == 1
            draws = [
                client.ssh.run("head -c 16 /dev/urandom | hexdump -C").text
                for session in (first, second)
                for client in (session.dom0, *session.guests.values())
            ]
            assert len(set(draws)) == len(draws)
        assert (sparse.digest(found.ram), sha256(found.state)) == before


def test_clocks_of_all_guests_are_right(dom0, domus):
    for client in (dom0, *domus.values()):
        assert abs(int(client.ssh.run("date +%s").text) - time.time()) < CLOCK_SECONDS


def test_timers_of_every_guest_run(dom0, domus):
    for client in (dom0, *domus.values()):
        assert client.ssh.run("sleep 1; echo woke", idle_timeout=20).text == "woke"


def test_the_consoles_go_on_where_the_snapshot_was_saved(target):
    lines = target.board.consoles["dom0"].log.read_text(errors="replace").splitlines()
    at = next(number for number, line in enumerate(lines) if "---- restored from snapshot" in line)
    assert any("medcheck: dom0 ready" in line for line in lines[:at])
    target.dom0.run_on_console("echo on")
    stamp = float(target.board.consoles["dom0"].tail(1)[0][1:11])
    assert stamp >= float(lines[at][1:11])


@pytest.mark.mc_traced
def test_calls_are_traced_in_a_clone(target, domu):
    assert domu.ssh.run("xtest -t regression 1004").rc == 0
    target.close()
    kinds = {event.kind for event in Reader(target.trace).events()}
    assert {Kind.GUEST_CALL} <= kinds


@pytest.mark.usefixtures("doorbells")
def test_a_board_in_lockstep_runs_as_a_user_like_that_of_any_board(target_provider, target, tmp_path):
    with target_provider.clone(tmp_path / "plain") as plain:
        owners = [psutil.Process(each.board.pid).uids().real for each in (plain, target)]
    if os.geteuid() == 0:
        assert all(FIRST_UID < owner < LAST_UID for owner in owners)
        assert owners[0] != owners[1], "each board has a user of its own"
    else:
        assert owners == [os.geteuid()] * 2


def test_a_killed_clone_is_named_and_its_neighbour_lives(target_provider, target, tmp_path):
    with target_provider.clone(tmp_path / "other") as other:
        os.kill(other.board.pid, signal.SIGKILL)
        with pytest.raises((BoardError, GuestError), match="SIGKILL"):
            other.board.consoles["dom0"].expect(b"never", idle_timeout=30)
    assert target.dom0.ssh.run("echo alive").text == "alive"


def test_a_kept_board_comes_back_as_it_was(target, tmp_path):
    target.dom0.ssh.run("echo mark >/run/mark").check()
    target.guests["vm1"].ssh.run("echo mark >/run/mark").check()
    identity = save(target, "a test")
    target.close()
    try:
        with resume(identity, tmp_path / "back") as back:
            assert back.dom0.ssh.run("cat /run/mark").text == "mark"
            vm1 = back.guests["vm1"].ssh
            assert vm1.run("cat /run/mark && xtest -t regression 1004 >/dev/null").check().text == "mark"
    finally:
        shutil.rmtree(postmortem_folder() / identity)
    Janitor().assert_clean()


@pytest.mark.slow
@pytest.mark.nightly
def test_a_thousand_clones_in_a_row_leave_nothing_behind(target_provider, stack, spec, tmp_path):
    """Processes, threads, open files (a memfd is one), memory on the heap: as after the first few."""
    me = psutil.Process()

    def held() -> tuple[int, int, int]:
        return me.num_fds(), me.num_threads(), len(me.children(recursive=True))

    with snapshot(target_provider._store, spec, stack, READY) as found:
        for number in range(CLONES):
            with clone(found, spec, stack, tmp_path / str(number)) as board:
                board.consoles["dom0"].sendline('echo ans""wer')
                board.consoles["dom0"].expect([rb"answer\r?\n"], idle_timeout=30)
            shutil.rmtree(tmp_path / str(number))
            if number == 10:
                before, heap = held(), me.memory_info().rss
        assert held() == before
    assert me.memory_info().rss - heap < 64 << 20
    assert board.id not in Janitor().boards()

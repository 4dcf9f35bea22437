# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole stack, booted once: guests answer, domains are managed, xtest runs in two guests at once."""

from __future__ import annotations

import threading

import pytest

from framework.guests.xtest import run_xtest_in_all


def test_dom0_runs_commands_and_tells_their_exit_code(dom0):
    done = dom0.ssh.run("echo out; echo err >&2; exit 7")
    assert (done.rc, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_every_domu_is_listed_and_reachable(dom0, domus):
    listed = {domain.name: domain.domid for domain in dom0.xl.list()}
    for name, guest in domus.items():
        assert listed[name] == guest.domid
        assert guest.ssh.run("hostname").stdout.decode().strip() == name


def test_domus_use_op_tee_through_the_mediator(domus):
    for guest in domus.values():
        log = guest.ssh.run("dmesg").stdout
        assert b"optee: initialized driver" in log
        assert guest.ssh.run("test -c /dev/teepriv0").rc == 0


def test_pause_stops_a_guest_and_unpause_lets_it_go_on(dom0, domu):
    dom0.xl.pause(domu.domid)
    try:
        state = next(d.state for d in dom0.xl.list() if d.domid == domu.domid)
        assert "p" in state
    finally:
        dom0.xl.unpause(domu.domid)
    assert domu.ssh.run("echo back").stdout == b"back\n"


def test_xtest_passes_in_all_domus_at_the_same_time(target, domus):
    running: set[str] = set()
    together = threading.Event()

    def seen(guest: str, _case: object) -> None:
        running.add(guest)
        if len(running) == len(domus):
            together.set()

    results = run_xtest_in_all(list(domus.values()), ["1001", "1004"], on_case=seen, alive=target.check_alive)
    assert together.is_set()
    for name, result in results.items():
        assert [case.id for case in result.cases] == ["regression_1001", "regression_1004"], name
        assert {case.status for case in result.cases} == {"ok"}, name
        assert result.exit_code == 0
        assert result.totals.agree
        assert result.totals.subtests_failed == 0
        assert all(case.seconds > 0 for case in result.cases)


def test_every_console_has_its_own_log_with_time_stamps(board):
    logs = {name: console.log.read_bytes() for name, console in board.consoles.items()}
    assert b"(XEN)" in logs["xen"]
    assert b"medcheck: dom0 ready" in logs["dom0"]
    assert b"(XEN)" not in logs["dom0"]
    assert b"medcheck: domu ready" in logs["guest0"]
    for line in logs["guest0"].splitlines()[:20]:
        assert line[:1] == b"["
        float(line[1:11])


@pytest.mark.parametrize("command", ["true", "head -c 1000000 /dev/zero"])
def test_output_of_any_size_comes_back_whole(domu, command):
    done = domu.ssh.run(command)
    assert done.rc == 0
    assert len(done.stdout) == (1_000_000 if "head" in command else 0)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of a make-believe xtest in make-believe guests, through real SSH connections."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from framework.common.errors import BoardError, GuestCrash, GuestError, UsageError
from framework.diagnosis.crash import Watch
from framework.guests import xtest
from framework.guests.ssh import SshClient
from framework.guests.xtest import case_ids, run_xtest, run_xtest_in_all
from testcases.unit.guests.loopback import LoopbackServer

pytestmark = pytest.mark.usefixtures("brisk")

GOOD = """\
* regression_1001 Core self tests
o regression_1001.1 part
  regression_1001.1 OK
  regression_1001 OK
+-----------------------------------------------------
Result of testsuite regression:
regression_1001 OK
+-----------------------------------------------------
3 subtests of which 0 failed
1 test case of which 0 failed
111 test cases were skipped
TEE test application done!
"""
BAD = """\
* regression_1001 Core self tests
o regression_1001.1 part
x.c:5: res has an unexpected value: 0xffff000f = S
  regression_1001.1 FAILED
  regression_1001 FAILED
+-----------------------------------------------------
Result of testsuite regression:
regression_1001.1 FAILED first error at x.c:5
regression_1001 FAILED
+-----------------------------------------------------
3 subtests of which 1 failed
1 test case of which 1 failed
111 test cases were skipped
TEE test application done!
"""


@dataclass
class _Problem:
    kind: str
    console: str
    line: str


@dataclass
class _Console:
    name: str
    log: Path

    def tail(self, lines):
        return self.log.read_text().splitlines()[-lines:]


@dataclass
class _Board:
    consoles: dict[str, _Console]
    problems: list[_Problem] = field(default_factory=list)
    alive: bool = True

    def death(self):
        return BoardError("the board died")


class _Guest:
    """A guest with a real connection and a board made of lists."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.server = LoopbackServer(folder)
        self.name = name
        log = folder / "console.log"
        log.write_text("optee: revision 4.10\nlast line of the console\n")
        self.board = _Board({f"c-{name}": _Console(f"c-{name}", log)})
        self.watch = Watch(self.board, name, f"c-{name}", 7)
        key, host_key = self.server.client_key_file, self.server.host_line
        self.ssh = SshClient("127.0.0.1", self.server.port, key, host_key=host_key, name=name)
        self.gone = False

    def program(self, script: str) -> None:
        path = self.folder / "xtest"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

        pidof = self.folder / "pidof"
        pidof.write_text('#!/bin/sh\ntest -e "${0%/*}/supplicant"\n')
        pidof.chmod(0o755)
        (self.folder / "supplicant").touch()

    def prints(self, text: str, code: int = 0, then: str = "") -> None:
        (self.folder / "text").write_text(text)
        self.program(f'echo "$@" >{self.folder}/args; cat {self.folder}/text; {then}\nexit {code}')

    def check_alive(self):
        self.watch.check()

    def check_domain(self):
        if self.gone:
            raise self.watch.crash("domain 7 is gone")

    def diagnose(self, what):
        self.watch.check()
        self.check_domain()
        return self.watch.hang(what)

    def logs(self):
        return [self.board.consoles[f"c-{self.name}"].log.read_bytes()]

    def close(self):
        self.ssh.close()
        self.server.close()


@pytest.fixture
def make(tmp_path):
    guests = []

    def new(name="vm1"):
        guests.append(_Guest(name, tmp_path / name))
        return guests[-1]

    yield new
    for guest in guests:
        guest.close()


def test_a_good_run_is_good_and_was_asked_for_exactly(make):
    guest = make()
    guest.prints(GOOD)
    result = run_xtest(guest, ["1001"])
    assert result.good
    assert result.reason is None
    assert [(case.id, case.status) for case in result.cases] == [("regression_1001", "ok")]
    assert asdict(result.totals) == {
        "subtests": 3, "subtests_failed": 0, "cases": 1, "cases_failed": 0, "skipped": 111, "agree": True,
    }  # fmt: skip
    assert (guest.folder / "args").read_text() == "-l 0 -t regression regression_1001\n"


def test_a_failure_names_the_first_error_and_the_exit_code_agrees(make):
    guest = make()
    guest.prints(BAD, code=1)
    result = run_xtest(guest, ["1001"])
    assert not result.good
    assert result.exit_code == 1
    assert result.totals.agree, result.problems
    assert "x.c:5: res has an unexpected value" in result.reason


def test_trusted_applications_of_another_release_are_explained(make):
    guest = make()
    guest.prints(BAD, code=1)
    reason = run_xtest(guest).reason
    assert "OP-TEE 4.10 refuses xtest's trusted applications" in reason
    assert "0xffff000f" in reason
    assert "same release" in reason


def output(*cases: tuple[str, str]) -> str:
    """What xtest prints for cases, each with the error of a failed check or none."""
    lines = []
    for name, error in cases:
        lines += [f"* {name} A", *([error] if error else []), f"  {name} {'FAILED' if error else 'OK'}"]
    failed = sum(bool(error) for _, error in cases)
    lines += [
        "+-----------------------------------------------------",
        f"{len(cases)} subtests of which {failed} failed",
        f"{len(cases)} test case{'s' if len(cases) > 1 else ''} of which {failed} failed",
        "TEE test application done!",
    ]
    return "\n".join(lines) + "\n"


UNEXPECTED = "a.c:1: res has an unexpected value: 0xffff0000 = X, expected 0xffff000f = Y"
REFUSED = "a.c:1: {} has an unexpected value: 0xffff000f = TEEC_ERROR_SECURITY, expected 0x0 = TEEC_SUCCESS"


@pytest.mark.parametrize(
    "cases",
    [
        # What a check expected is not what it got.
        [("regression_1008", UNEXPECTED)],
        # A TA of the same release was loaded.
        [("regression_1004", ""), ("regression_1034", REFUSED.format("res"))],
        # Another call that says the same.
        [("regression_6001", REFUSED.format("fs_open(&sess, file_00, 3)"))],
    ],
)
def test_a_cause_is_claimed_only_from_the_statement_that_failed(make, cases):
    guest = make()
    guest.prints(output(*cases), code=1)
    result = run_xtest(guest)
    name, error = cases[-1]
    assert result.reason == f"1 of {len(cases)} cases failed, first {name}: {error}"


def test_a_session_that_op_tee_refuses_is_a_matter_of_keys(make):
    guest = make()
    guest.prints(output(("regression_1004", REFUSED.format("xtest_teec_open_session(&s, &crypt_uuid)"))), code=1)
    assert "refuses xtest's trusted applications" in run_xtest(guest).reason


def test_output_without_end_is_given_up_and_the_result_says_so(make, monkeypatch):
    monkeypatch.setattr(xtest, "MOST_OUTPUT", 100_000)
    guest = make()
    guest.program("echo '* regression_1001 A'; yes")
    result = run_xtest(guest)
    assert not result.good
    assert not result.totals.agree
    assert result.crash is None
    assert "xtest was given up" in result.reason
    assert "prints more than 100000 bytes" in result.reason
    assert [case.status for case in result.cases] == ["crashed"]


def test_a_run_that_prints_for_ever_is_given_up(make, monkeypatch):
    monkeypatch.setattr(xtest, "LONGEST", 1.0)
    guest = make()
    guest.program("while sleep 0.05; do echo .; done")
    result = run_xtest(guest)
    assert not result.good
    assert "not done after 1 s, which is all it was given" in result.reason


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (GOOD, 1, "exit code is 1"),
        (GOOD.replace("1 test case of", "2 test cases of"), 0, "counts 2 test cases"),
        (GOOD.partition("3 subtests")[0], 0, "before it gave its totals"),
        (GOOD.partition("+--")[0], 139, "signal 11"),
        (GOOD.replace("1001", "1002"), 0, "no case regression_1001"),
        ("Failed to open TEE context: 0xffff0008\n", 255, "/dev/tee0"),
        ("", 127, "exit code 127"),
    ],
)
def test_what_does_not_fit_together_is_not_good(make, text, code, words):
    guest = make()
    guest.prints(text, code=code)
    result = run_xtest(guest, ["1001"])
    assert not result.good
    assert words in result.reason


def test_a_guest_without_supplicant_is_told_instead_of_hanging(make):
    guest = make()
    guest.prints(GOOD)
    (guest.folder / "supplicant").unlink()
    result = run_xtest(guest, ["1001"])
    assert not result.good
    assert "tee-supplicant does not run" in result.reason
    assert not (guest.folder / "args").exists()


def test_an_exit_code_counts_failed_cases_modulo_256(make):
    guest = make()
    guest.prints(BAD.replace("1 test case of which 1", "1 test case of which 257"), code=1)
    problems = run_xtest(guest).problems
    assert not any("exit code" in problem for problem in problems)


def test_a_panic_in_the_middle_is_named_with_its_console_and_keeps_what_came_before(make):
    guest = make()
    guest.prints(GOOD.partition("+--")[0] + "* regression_1002 PTA\n", then="sleep 60")

    def on_event(event):
        if getattr(event, "id", "") == "regression_1002":
            guest.board.problems.append(_Problem("linux-panic", "c-vm1", "Kernel panic - not syncing: test"))

    result = run_xtest(guest, on_event=on_event)
    assert [(case.id, case.status) for case in result.cases] == [
        ("regression_1001", "ok"),
        ("regression_1002", "crashed"),
    ]
    assert isinstance(result.crash, GuestCrash)
    for words in ("in regression_1002", "linux-panic", "not syncing: test", "last line of the console"):
        assert words in str(result.crash)
    assert result.crash.where == "console c-vm1"
    assert (result.good, result.exit_code, result.totals.agree) == (False, None, False)


def test_a_domain_that_vanishes_is_noticed_in_the_silence(make, monkeypatch):
    monkeypatch.setattr(xtest, "_FIRST_CHECK", 0.2)
    guest = make()
    guest.prints("* regression_1002 PTA\n", then="sleep 60")
    guest.gone = True
    result = run_xtest(guest)
    assert "domain 7 is gone" in result.reason


def test_a_hang_is_named_with_the_stall_that_the_kernel_told_of(make):
    guest = make()
    guest.prints("* regression_1002 PTA\n", then="sleep 60")
    result = run_xtest(guest, idle_timeout=0.5)
    assert "in regression_1002: vm1: hangs" in result.reason
    assert result.cases[0].status == "hang"


class _Idle:
    """A hang detector of a board that has been idle for ``seconds``."""

    def __init__(self, seconds):
        self.seconds = seconds

    def sample(self):
        return "seen"

    def hopeless(self):
        return False

    def idle(self):
        return self.seconds

    def explain(self, before):
        return f"idle: {before}"


def test_a_case_on_an_idle_board_hangs_long_before_its_output_is_overdue(make, monkeypatch):
    monkeypatch.setattr(xtest, "hang_after", lambda _name: 0.2)
    guest = make()
    guest.prints("* regression_2001 Sockets\no regression_2001.4 UDP\n", then="exec sleep 60")
    guest.ssh.on_silence = _Idle(1000.0)
    result = run_xtest(guest)
    assert [case.status for case in result.cases] == ["hang"]
    assert result.crash.hang
    assert result.reason.startswith("in regression_2001.4: vm1: hangs: no SMC and no work for a CPU")
    assert "idle: seen" in result.reason


def test_a_case_that_is_quiet_on_a_board_with_work_does_not_hang(make, monkeypatch):
    monkeypatch.setattr(xtest, "hang_after", lambda _name: 0.2)
    guest = make()
    guest.program(f"sed -n 1p {guest.folder}/text; sleep 2.5; sed -n '2,$p' {guest.folder}/text")
    (guest.folder / "text").write_text(GOOD)
    guest.ssh.on_silence = _Idle(0.1)
    assert run_xtest(guest).good


def test_the_limit_of_a_case_follows_from_its_longest_silence(monkeypatch):
    monkeypatch.setitem(xtest.LONGEST_SILENCE, "regression_1009", 7.0)
    assert xtest.hang_after("regression_1009.2") == xtest.MANY_TIMES * 7.0
    assert xtest.hang_after("regression_1001") == xtest.MANY_TIMES * xtest._SHORT_SILENCE


def test_a_dead_connection_of_a_living_guest_is_a_crash_with_a_reason(make):
    guest = make()
    guest.prints("* regression_1002 PTA\n", then="sleep 60")
    # At its first event, a case that began.
    assert "connection broke" in run_xtest(guest, on_event=lambda _event: guest.server.drop()).reason


def test_a_dead_board_is_no_test_result(make):
    guest = make()
    guest.prints("", then="sleep 60")
    guest.board.alive = False
    with pytest.raises(BoardError, match="the board died"):
        run_xtest(guest)


def test_several_guests_run_at_the_same_time(make):
    first, second = make("vm1"), make("vm2")
    for guest, other in ((first, second), (second, first)):
        # Each run ends only when the other one has begun.
        mine, theirs = guest.folder / "begun", other.folder / "begun"
        guest.prints(GOOD, then=f"touch {mine}; while [ ! -e {theirs} ]; do sleep 0.05; done")
    seen = []
    both = [first, second]
    results = run_xtest_in_all(both, ["1001"], on_case=lambda name, case: seen.append((name, case.id)))
    assert list(results) == ["vm1", "vm2"]
    assert all(result.good for result in results.values())
    assert sorted(seen) == [("vm1", "regression_1001"), ("vm2", "regression_1001")]


def test_a_guest_that_is_ready_does_not_wait_for_the_other_one(make):
    first, second = make("vm1"), make("vm2")
    first.prints(GOOD)
    second.prints(GOOD)
    first_is_done = threading.Event()

    def make_ready(guest):
        if guest is second:
            assert first_is_done.wait(30)

    results = run_xtest_in_all(
        [first, second], ["1001"], make_ready=make_ready, on_case=lambda _name, _case: first_is_done.set()
    )
    assert [result.good for result in results.values()] == [True, True]


def test_a_guest_that_never_becomes_ready_ends_the_run(make):
    first, second = make("vm1"), make("vm2")
    first.prints("", then="sleep 60")

    def make_ready(guest):
        if guest is second:
            raise GuestError("came up without OP-TEE", where="vm2")

    with pytest.raises(GuestError, match="came up without OP-TEE"):
        run_xtest_in_all([first, second], ["1001"], make_ready=make_ready)


def test_a_guest_that_crashes_does_not_stop_the_other_one(make):
    first, second = make("vm1"), make("vm2")
    first.prints("* regression_1001 x\n", then="sleep 60")
    first.board.problems.append(_Problem("linux-panic", "c-vm1", "Kernel panic - not syncing: x"))
    crashed = second.folder / "the-other-has-crashed"
    second.prints(GOOD, then=f"while [ ! -e {crashed} ]; do sleep 0.05; done")

    def on_case(name, case):
        if (name, case.status) == ("vm1", "crashed"):
            crashed.touch()

    results = run_xtest_in_all([first, second], ["1001"], on_case=on_case)
    assert (results["vm1"].good, results["vm2"].good) == (False, True)
    assert "linux-panic" in results["vm1"].reason


def test_an_infrastructure_failure_in_one_guest_stops_all_and_is_raised(make):
    first, second = make("vm1"), make("vm2")
    first.prints("", then="sleep 60")
    second.prints("", then="sleep 60")
    first.board.alive = False
    with pytest.raises(BoardError, match="the board died"):
        run_xtest_in_all([first, second])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xtest-")]


def test_case_names_become_full_ids_once():
    assert case_ids(["1004", "regression_1004", "4006_rsa"]) == ["regression_1004", "regression_4006_rsa"]
    assert case_ids(["pkcs11_1001"], "regression+pkcs11") == ["pkcs11_1001"]
    assert case_ids(["regression_nxp_001"]) == ["regression_nxp_001"]
    assert case_ids(None) == []


@pytest.mark.parametrize(
    ("cases", "suite"),
    [
        (["-x"], "regression"), (["1; reboot"], "regression"), ([""], "regression"), (["abc"], "regression"),
        (["nxp_001"], "regression"), (["regression"], "regression"), (["regression_abc"], "regression"),
        (["pkcs11_1001"], "regression"), (["benchmark_2001"], "regression+pkcs11"), (["1004"], "regression+pkcs11"),
        (None, "a b"), (None, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_a_case_is_refused_before_anything_runs(cases, suite):
    with pytest.raises(UsageError):
        case_ids(cases, suite)


def _board(tmp_path):
    log = tmp_path / "log"
    log.write_text("end of console\n")
    return _Board({name: _Console(name, log) for name in ("xen", "optee", "dom0", "guest0", "guest1")})


@pytest.mark.parametrize(
    ("kind", "console", "line", "dies"),
    [
        ("linux-panic", "guest0", "Kernel panic - not syncing", True),
        ("linux-panic", "guest1", "Kernel panic - not syncing", False),
        ("linux-oops", "guest0", "Internal error: Oops", True),
        ("linux-stall", "guest0", "rcu: INFO: rcu_sched self-detected stall on CPU", False),
        ("xen-panic", "xen", "(XEN) Panic on CPU 0:", True),
        ("xen-assertion", "xen", "(XEN) Assertion 'x' failed at optee.c:3", True),
        ("xen-warning", "xen", "(XEN) Xen WARN at x", False),
        ("xen-domain-crash", "xen", "(XEN) Domain 3 (vcpu#0) crashed on cpu#1:", True),
        ("xen-domain-crash", "xen", "(XEN) Domain 4 (vcpu#0) crashed on cpu#1:", False),
        ("xen-domain-crash", "xen", "(XEN) Domain 3 reported crashed by domain 0 on cpu#0:", True),
        ("optee-panic", "optee", "E/TC:1 0 Panic at core/x.c", True),
        ("linux-panic", "dom0", "Kernel panic - not syncing", True),
        ("linux-panic", "xen", "[    2.6] Kernel panic - not syncing: x", True),
        ("dom0-crash", "xen", "(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.", True),
        ("xen-domain-crash", "xen", f"(XEN) Domain {'9' * 5000} (vcpu#0) crashed on cpu#1:", False),
        ("linux-oom", "guest0", "Out of memory: Killed process 99 (tee-supplicant)", False),
        ("linux-oom", "dom0", "Out of memory: Killed process 99 (xenconsoled)", False),
        ("linux-oom", "guest1", "Out of memory: Killed process 99 (tee-supplicant)", False),
    ],
)
def test_only_what_concerns_a_guest_kills_it(tmp_path, kind, console, line, dies):
    board = _board(tmp_path)
    watch = Watch(board, "vm1", "guest0", 3)
    board.problems.append(_Problem(kind, console, line))
    if not dies:
        watch.check()
        assert (watch.stall is not None) == (kind in ("linux-stall", "linux-oom") and console != "guest1")
        return
    for _ in range(2):
        with pytest.raises(GuestCrash) as caught:
            watch.check()
        assert kind in caught.value.what
        assert line in caught.value.what
        assert "end of console" in caught.value.what
        assert caught.value.where == f"console {console}"


def test_what_broke_before_a_guest_came_is_not_its_death(tmp_path):
    board = _board(tmp_path)
    board.problems.append(_Problem("linux-panic", "guest0", "an older guest on the same console"))
    Watch(board, "vm1", "guest0", 3).check()

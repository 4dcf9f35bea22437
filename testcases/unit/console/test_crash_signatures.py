# SPDX-License-Identifier: GPL-2.0-or-later
"""What the problem watch recognises, in the words of Xen, OP-TEE and Linux, who may say it, and what it must not."""

from __future__ import annotations

import pytest

from framework.console.crash_signatures import CRASH_SIGNATURES, ROLES
from framework.console.problems import MOST_OF_A_KIND, Problem, ProblemLog
from framework.console.scanner import Scanner

BAD = [
    ("xen", "xen-assertion", "(XEN) Assertion 'spin_is_locked(&ctx->lock)' failed at arch/arm/tee/optee.c:412"),
    ("xen", "xen-bug", "(XEN) Xen BUG at arch/arm/tee/optee.c:900"),
    ("xen", "xen-warning", "(XEN) Xen WARN at common/sched/core.c:17"),
    ("xen", "xen-domain-crash", "(XEN) Domain 2 (vcpu#0) crashed on cpu#1:"),
    ("xen", "xen-domain-crash", "(XEN) domain_crash called from arch/arm/traps.c:2004"),
    ("xen", "xen-domain-crash", "(XEN) Domain 3 reported crashed by domain 0 on cpu#0:"),
    ("xen", "xen-bug", "(XEN) [    12.345678] Xen BUG at arch/arm/tee/optee.c:900"),
    ("xen", "xen-bug", "[    1.2] dom0 was interru(XEN) Xen BUG at arch/arm/tee/optee.c:900"),
    ("xen", "dom0-crash", "(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds."),
    ("xen", "linux-panic", "[    2.6] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200"),
    ("xen", "linux-panic", "(d0) [    2.6] Kernel panic - not syncing: x"),
    ("xen", "linux-oops", "[    2.6] Internal error: Oops: 0000000096000004 [#1] SMP"),
    ("xen", "firmware-panic", "PANIC at PC : 0x000000000e0a4a4c"),
    ("optee", "firmware-panic", "PANIC at PC : 0x000000000e0a4a4c"),
    ("optee", "firmware-panic", "Unhandled Exception in EL3."),
    ("optee", "optee-panic", "E/TC:0 0   Panic at core/kernel/assert.c:28 <_assert_break>"),
    ("optee", "optee-panic", "*E/TC:0 0   Panic at core/kernel/assert.c:28 <_assert_break>"),
    ("optee", "optee-panic", "E/TC:1 2 Panic 'no memory' at core/mm/tee_mm.c:31 <x>"),
    ("optee", "optee-panic", "E/TC:0   Panic"),
    ("optee", "optee-assertion", "E/TC:0 0   assertion 'user_va_idx != -1' failed at core/mmu.c:954 <set>"),
    ("guest0", "linux-panic", "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs"),
    ("dom0", "linux-panic", "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs"),
    ("guest1", "linux-oops", "[    9.1] Internal error: Oops: 0000000096000004 [#1] SMP"),
    ("guest1", "linux-bug", "[    9.1] kernel BUG at mm/slub.c:435!"),
    ("guest1", "linux-stall", "[  80.0] rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("guest1", "linux-stall", "[  80.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    ("guest1", "linux-stall", "[  80.0] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-... }"),
    ("guest1", "linux-stall", "[   80.0] INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    ("guest1", "linux-stall", "[   80.0] INFO: rcu_sched self-detected stall on CPU { 0}  (t=15000 jiffies)"),
    ("guest1", "linux-lockup", "[  99.9] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [xtest:112]"),
    ("guest1", "linux-lockup", "[  99.9] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 43s!"),
    ("guest1", "linux-lockup", "[  99.9] Watchdog detected hard LOCKUP on cpu 1"),
    ("guest1", "linux-lockup", "[  99.9] NMI watchdog: Watchdog detected hard LOCKUP on cpu 1"),
    ("guest1", "linux-hang", "[ 300.0] INFO: task xtest:99 blocked for more than 120 seconds."),
    ("guest1", "linux-hang", "[ 300.0] INFO: task a b:99 blocked in I/O wait for more than 120 seconds."),
    ("guest1", "linux-oom", "[  10.0] Out of memory: Killed process 99 (tee-supplicant) total-vm:2244kB"),
    ("guest1", "linux-oom", "[  10.0] Out of memory: Kill process 99 (tee-supplicant) score 5 or sacrifice child"),
    ("guest1", "linux-oom", "[  10.0] Memory cgroup out of memory: Killed process 99 (xtest)"),
]

GOOD = [
    "E/TC:? 0 TA panicked with code 0xdeadbeef",
    "* regression_1001 Core self tests",
    "Kernel command line: panic=-1",
    "rcu: Hierarchical RCU implementation.",
    "o regression_1006.1 Panic in TA",
    "D/TC:0 0 assertion level 3",
    "install -m 755 stall",
    "(XEN) Watchdog timer enabled",
    "[    1.0] Out of memory handling",
]

FORGED = [
    *(("guest0", line) for console, _, line in BAD if console in ("xen", "optee")),
    *(("dom0", line) for console, kind, line in BAD if console in ("xen", "optee") and not kind.startswith("linux")),
    *(("optee", line) for console, kind, line in BAD if console in ("xen", "guest1") and "firmware" not in kind),
    *(("xen", f"(XEN) d1v0 {line}") for _, _, line in BAD),
    *(("xen", f"(XEN) d1: {line}") for _, _, line in BAD),
    *(("xen", f"(d1) {line}") for _, _, line in BAD),
    ("xen", "(XEN) d1v0 Panic on CPU 0:"),
    ("xen", "(XEN) d12v3 (XEN) Panic on CPU 0:"),
    ("optee", "M/TA: E/TC:0 0 Panic at core/kernel/panic.c:1"),
    ("optee", "E/TA:  main:12 PANIC at PC : 0x0"),
]


def scanned(console: str, text: str) -> list[tuple[str, str]]:
    scanner = Scanner(console)
    found = [*scanner.feed(text.encode()), *scanner.settle(now=True)]
    return [(signature.kind, line.decode()) for signature, line in found]


@pytest.mark.parametrize(("console", "kind", "line"), BAD)
def test_bad_line_is_recognised_and_quoted_whole(console: str, kind: str, line: str) -> None:
    assert scanned(console, f"before\r\n{line}\r\nafter\r\n") == [(kind, line)]


@pytest.mark.parametrize("console", ["xen", "optee", "dom0", "guest0"])
@pytest.mark.parametrize("line", GOOD)
def test_good_line_is_left_alone(console: str, line: str) -> None:
    if not (console == "optee" and line.startswith("E/TC") and "Panic at" in line):
        assert scanned(console, f"{line}\n") == []


@pytest.mark.parametrize(("console", "line"), FORGED)
def test_nobody_speaks_for_another(console: str, line: str) -> None:
    assert not [kind for kind, _ in scanned(console, f"{line}\r\n") if not kind.startswith("linux") or console == "xen"]


def test_problems_come_in_the_order_of_their_lines() -> None:
    mine = [(kind, line) for console, kind, line in reversed(BAD) if console == "guest1"]
    assert scanned("guest1", "".join(f"{line}\n" for _, line in mine)) == mine


def test_every_signature_has_an_example() -> None:
    shown = {kind for _, kind, _ in BAD} | {"xen-panic"}
    assert {signature.kind for signatures in CRASH_SIGNATURES.values() for signature in signatures} == shown
    assert set(CRASH_SIGNATURES) == set(ROLES)


STARS = "(XEN) ****************************************\r\n"
PANIC = f"{STARS}(XEN) Panic on CPU 0:\r\n"
WITH_REASON = ("xen-panic", "(XEN) Panic on CPU 0: Couldn't configure correctly all the IOMMUs.")


def test_xens_panic_brings_the_reason_from_the_lines_after_it() -> None:
    reason = "(XEN) Couldn't configure correctly all the IOMMUs.\r\n"
    rest = f"{STARS}(XEN) \r\n(XEN) Reboot in five seconds...\r\n"
    assert scanned("xen", PANIC + reason + rest) == [WITH_REASON]
    assert scanned("xen", PANIC + "(XEN) \r\n" + reason + rest) == [WITH_REASON]


def test_the_reason_is_kept_however_the_lines_come() -> None:
    scanner = Scanner("xen")
    assert scanner.feed(PANIC.encode()) == []
    assert scanner.waits
    assert scanner.settle() == []
    assert scanner.feed(b"(XEN) Couldn't configure correctly all the IOMMUs.\r\n") == []
    (found,) = scanner.feed(STARS.encode())
    assert (found[0].kind, found[1].decode()) == WITH_REASON
    assert not scanner.waits


def test_a_panic_without_a_reason_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner("xen")
    scanner.feed(PANIC.encode())
    monkeypatch.setattr("framework.console.scanner._REASON_SECONDS", -1.0)
    assert [line for _, line in scanner.settle()] == [b"(XEN) Panic on CPU 0:"]
    assert scanned("xen", PANIC + PANIC) == [("xen-panic", "(XEN) Panic on CPU 0:")] * 2
    assert scanned("xen", PANIC + "dom0 goes on\n") == [("xen-panic", "(XEN) Panic on CPU 0:")]


def test_the_reason_has_an_end() -> None:
    endless = PANIC + "(XEN) more and more\r\n" * 1000 + "(XEN)\r\n" * 1000
    ((kind, line),) = scanned("xen", endless)
    assert (kind, line.count("more and more")) == ("xen-panic", 4)


def test_a_fatal_line_on_xens_console_is_not_fatal_on_a_guests() -> None:
    fatal = {
        (role, signature.kind)
        for role, signatures in CRASH_SIGNATURES.items()
        for signature in signatures
        if signature.fatal
    }
    assert fatal == {
        ("xen", "xen-panic"), ("xen", "dom0-crash"), ("xen", "linux-panic"), ("xen", "firmware-panic"),
        ("optee", "optee-panic"), ("optee", "firmware-panic"),
    }  # fmt: skip


def add(log: ProblemLog, console: str, line: str) -> list[tuple[Problem, bool]]:
    return [log.add(console, signature, text, 1.0) for signature, text in Scanner(console).feed(line.encode() + b"\n")]


def test_a_guest_can_neither_fill_the_list_nor_hide_another_ones_death() -> None:
    log = ProblemLog()
    for _ in range(5000):
        add(log, "guest0", "Kernel panic - not syncing: again")
    ((problem, kept),) = add(log, "guest1", "Kernel panic - not syncing: mine")
    assert (problem.console, kept) == ("guest1", True)
    assert problem in log.kept
    assert len(log.kept) == MOST_OF_A_KIND + 1
    assert log.not_kept == 5000 - MOST_OF_A_KIND
    *shown, last = log.shown()
    assert shown == log.kept
    assert "4,980 more lines" in last.line
    assert "4,980 linux-panic on guest0" in last.line


def test_a_list_that_is_whole_says_nothing_of_a_rest() -> None:
    log = ProblemLog()
    add(log, "guest0", "Kernel panic - not syncing: once")
    assert log.shown() == log.kept
    assert log.not_kept == 0


def test_dom0s_death_on_xens_console_is_called_by_its_name() -> None:
    log = ProblemLog()
    ((problem, _),) = add(log, "xen", "Kernel panic - not syncing: Attempted to kill init!")
    error = problem.crash()
    assert "dom0: linux-panic: Kernel panic - not syncing: Attempted to kill init!" in error.what
    assert (error.where, error.exit_code) == ("console xen", 1)
    ((problem, _),) = add(log, "guest0", "Kernel panic - not syncing: x")
    assert "dom0" not in str(problem.crash())

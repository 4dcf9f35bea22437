"""What the problem watch recognises, in the words of Xen, OP-TEE and Linux, and what it must not."""

from __future__ import annotations

import pytest

from framework.console import crash_signatures as problems

BAD = [
    ("xen-panic", "(XEN) Panic on CPU 1:"),
    ("xen-assertion", "(XEN) Assertion 'spin_is_locked(&ctx->lock)' failed at arch/arm/tee/optee.c:412"),
    ("xen-bug", "(XEN) Xen BUG at arch/arm/tee/optee.c:900"),
    ("xen-warning", "(XEN) Xen WARN at common/sched/core.c:17"),
    ("xen-domain-crash", "(XEN) Domain 2 (vcpu#0) crashed on cpu#1:"),
    ("xen-domain-crash", "(XEN) domain_crash called from arch/arm/traps.c:2004"),
    ("optee-panic", "E/TC:0 0   Panic at core/kernel/assert.c:28 <_assert_break>"),
    ("optee-panic", "E/TC:1 2 Panic 'no memory' at core/mm/tee_mm.c:31 <x>"),
    ("optee-panic", "E/TC:0   Panic"),
    ("optee-assertion", "E/TC:0 0   assertion 'user_va_idx != -1' failed at core/mmu.c:954 <set>"),
    ("linux-panic", "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs"),
    ("linux-oops", "[    9.1] Internal error: Oops: 0000000096000004 [#1] SMP"),
    ("linux-bug", "[    9.1] kernel BUG at mm/slub.c:435!"),
    ("linux-stall", "[  80.0] rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("linux-stall", "[  80.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    ("linux-stall", "[  80.0] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-... }"),
    ("linux-lockup", "[  99.9] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [xtest:112]"),
    ("linux-hang", "[ 300.0] INFO: task xtest:99 blocked for more than 120 seconds."),
    ("firmware-panic", "PANIC at PC : 0x000000000e0a4a4c"),
]

GOOD = [
    "E/TC:? 0 TA panicked with code 0xdeadbeef",
    "* regression_1001 Core self tests",
    "Kernel command line: panic=-1",
    "rcu: Hierarchical RCU implementation.",
    "o regression_1006.1 Panic in TA",
    "D/TC:0 0 assertion level 3",
    "install -m 755 stall",
]


@pytest.mark.parametrize(("kind", "line"), BAD)
def test_bad_line_is_recognised_and_quoted_whole(kind: str, line: str) -> None:
    block = f"before\r\n{line}\r\nafter\r\n".encode()
    assert [(sign.kind, found.decode()) for sign, found in problems.scan(block)] == [(kind, line)]


@pytest.mark.parametrize("line", GOOD)
def test_good_line_is_left_alone(line: str) -> None:
    assert problems.scan(line.encode() + b"\n") == []


def test_problems_come_in_the_order_of_their_lines() -> None:
    block = "".join(line + "\n" for _, line in reversed(BAD)).encode()
    assert [sign.kind for sign, _ in problems.scan(block)] == [kind for kind, _ in reversed(BAD)]


def test_every_sign_has_an_example() -> None:
    assert {sign.kind for sign in problems.CRASH_SIGNATURES} == {kind for kind, _ in BAD}

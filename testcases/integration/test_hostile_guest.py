# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest, and dom0 with it, that print what hurts most, as fast as they can: the host stays well, and so does the
neighbour.

Long lines in the shape of crashes (expensive to look at), forged deaths of everything, forged answers, terminal
sequences. What a guest says of itself is believed; what it says of others is not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from framework.common.errors import BoardError
from framework.console.console import Console
from framework.guests.ssh import SshClient
from framework.guests.xtest import run_xtest
from framework.target.target import Target

CASES = ("1001", "1004")
MOST_RSS = 300 << 20
MOST_GROWTH = 20 << 20
MOST_PROBLEMS = 5000
INTERRUPT_SECONDS = 2.0
_LINE = 32 * 1024
"""An emulated console prints some 100 KB a second, and each kind of line must come by several times."""
_ESCAPES = b"\x1b]0;owned\x07\x1b[2J\x1b\x1b[0m[2Jc\x1bc\xc2\x9b2J\xff\xfe\r"


def _long(begin: bytes, piece: bytes) -> bytes:
    return begin + piece * ((_LINE - len(begin)) // len(piece)) + b"\n"


FLOOD = b"".join(
    [
        b"(XEN) Panic on CPU 0:\n" * 20,
        b"(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n",
        b"(XEN) Domain " + b"9" * 5000 + b" (vcpu#0) crashed on cpu#0:\n",
        b"E/TC:0 0 Panic 'forged' at core/kernel/panic.c:1 <nowhere>\n" * 20,
        b"PANIC at PC : 0x000000000e0a1b2c\n" * 20,
        b"medcheck: dom0 ready\nmedcheck-1-begin\nmedcheck-1-end 0\n",
        b"Xen WARN at forged.c:1\n" * 500,
        _long(b"", b"Xen WARN at "),
        _long(b"(XEN) ", b"Assertion '"),
        _long(b"E/TC:0 0 ", b"assertion ("),
        _long(b"(XEN) ", b"crashed domain_crash called fro "),
        _long(b"INFO: task ", b"blocked for more than "),
        _long(b"", _ESCAPES),
    ]
)
"""No death of the speaker itself: that would be believed, and rightly so."""


def flood(ssh: SshClient, console: str) -> None:
    """Have a guest print it again and again."""
    ssh.put(FLOOD, "/run/flood")
    ssh.run(f"setsid sh -c 'while :; do cat /run/flood; done' >{console} 2>/dev/null </dev/null &").check()


class Memory:
    """The most memory that this process has, by second, while a block lasts."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.5):
            self.seen.append(me.memory_info().rss)


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """As in a terminal: a shell's background job ignores SIGINT, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def seconds_to_interrupt(work: Callable[[], object]) -> float:
    """How long after Ctrl-C a wait ends."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(3.0, send)
    timer.start()
    with interrupts_heard(), pytest.raises(KeyboardInterrupt):
        work()
    return time.monotonic() - sent[0]


def wait_in_vain(console: Console, seconds: float) -> None:
    """A wait on a console that never falls silent ends by its deadline, not by what is forged on it."""
    with pytest.raises(BoardError, match="which is all it was given"):
        console.expect([rb"this is never said"], idle_timeout=600, deadline=seconds)


def check(target: Target, seconds: float) -> None:
    """The host and the neighbour, while two guests flood their consoles for so long."""
    hostile, neighbour = target.guests["vm1"], target.guests["vm2"]
    consoles = [target.board.consoles[name] for name in ("dom0", hostile.console.name)]
    # What is taken once for good (connections, threads) is no growth.
    assert run_xtest(neighbour, CASES, alive=target.check_alive).good
    flood(hostile.ssh, "/dev/hvc0")
    flood(target.dom0.ssh, "/dev/hvc1")
    before = [console.bytes_seen for console in consoles]
    end = time.monotonic() + seconds
    with Memory() as memory:
        while True:
            result = run_xtest(neighbour, CASES, alive=target.check_alive)
            assert result.good, result.reason
            assert [case.status for case in result.cases] == ["ok"] * len(CASES)
            for console in consoles:
                wait_in_vain(console, 2.0)
            if time.monotonic() > end:
                break
        waits = [seconds_to_interrupt(lambda each=each: wait_in_vain(each, 600.0)) for each in consoles]  # type: ignore[misc]
    printed = [console.bytes_seen - begin for console, begin in zip(consoles, before, strict=True)]
    quarter = max(1, len(memory.seen) // 4)
    first, last = max(memory.seen[:quarter]), max(memory.seen[-quarter:])
    print(
        f"printed {[count >> 20 for count in printed]} MiB; memory {first >> 20} -> {last >> 20} MiB; "
        f"Ctrl-C after {[round(wait, 2) for wait in waits]} s; {len(target.board.problems)} problems"
    )
    assert min(printed) > len(FLOOD), "both were loud"
    assert max(memory.seen) <= MOST_RSS
    assert last <= first + MOST_GROWTH
    assert max(waits) < INTERRUPT_SECONDS
    assert len(target.board.problems) <= MOST_PROBLEMS
    forged = [problem for problem in target.board.problems if problem.kind.startswith(("xen", "optee", "firmware"))]
    assert forged == []
    target.check_alive()


@pytest.mark.slow
def test_guests_that_flood_their_consoles_hurt_nobody(target: Target) -> None:
    check(target, 10.0)


@pytest.mark.nightly
def test_guests_that_flood_their_consoles_for_ten_minutes_hurt_nobody(target: Target) -> None:
    check(target, 600.0)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a guest prints, the host's time and memory are bounded."""

from __future__ import annotations

import random
import re
import threading
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.common.errors import BoardError
from framework.console import expect_buffer
from framework.console.crash_signatures import CRASH_SIGNATURES, ROLES
from framework.console.problems import ProblemLog
from framework.console.scanner import LINE_BYTES, Scanner, first_matches
from testcases.unit.console.test_console import Wire, wire

__all__ = ["wire"]

KIB = 1024
BLOCK = 256 * KIB


def spent(block: bytes, console: str) -> float:
    """CPU seconds that a scan of a block takes this thread."""
    scanner, log = Scanner(console), ProblemLog()
    begin = time.thread_time()
    for signature, line in [*scanner.feed(block), *scanner.settle(now=True)]:
        log.add(console, signature, line, 0.0)
    return time.thread_time() - begin


ATTACKS = {
    "xen": [b"(XEN) Assertion '", b"(XEN) crash", b"(XEN) Panic on CPU", b"(XEN)", b"crash", b"anic", b"(d0) ",
            b"(XEN) Domain 1 crash", b"(XEN) [", b"INFO: task x blocked "],
    "optee": [b"E/TC:assertion ", b"E/TC: Panic '", b"E/TC:", b"assertion (", b"Panic ", b"M/TA:"],
    "guest0": [b"INFO: task ", b"INFO: task blocked for more than ", b"Xen WARN at ", b"Kernel panic - not syncing",
               b"BUG: soft lockup", b"INFO: rcu_a", b" blocked "],
}  # fmt: skip


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize(("console", "piece"), [(c, piece) for c, pieces in ATTACKS.items() for piece in pieces])
def test_no_line_takes_long(console: str, piece: bytes, end: bytes) -> None:
    # With line ends, every line is as long as what is looked at.
    width = max(1, (LINE_BYTES - 1) // len(piece)) if end else BLOCK // len(piece)
    line = piece * width + end
    block = (line * (BLOCK // len(line) + 1))[:BLOCK] + b"\n"
    assert spent(block, console) < 1.0


def test_no_line_is_kept_whole_or_many_times() -> None:
    block = b"Xen WARN at (XEN) Xen WARN at " * 10_000 + b"\n" + b"Kernel panic - not syncing" * 10_000 + b"\n"
    for console in ROLES:
        found = Scanner(console).feed(block)
        assert len(found) <= 2
        assert all(len(line) <= LINE_BYTES for _, line in found)


def test_many_short_lines_cost_no_memory() -> None:
    log, scanner = ProblemLog(), Scanner("guest0")
    block = b"kernel BUG at x\n" * 8192
    tracemalloc.start()
    try:
        for signature, line in scanner.feed(block):
            log.add("guest0", signature, line, 0.0)
        assert tracemalloc.get_traced_memory()[0] < 1 << 19
    finally:
        tracemalloc.stop()
    assert log.not_kept > 8000


def test_what_lies_deep_in_a_line_is_not_its_beginning() -> None:
    block = b"x" * 5000 + b"Kernel panic - not syncing: forged\n"
    assert Scanner("guest0").feed(block) == []
    ((_, line),) = Scanner("guest0").feed(b"y\n" * 300 + b"x" * 300 + b"Kernel panic - not syncing: true\n")
    assert line.endswith(b"true")


def test_a_line_that_comes_in_pieces_keeps_its_beginning(wire: Wire) -> None:
    found: list[bytes] = []
    wire.console.on_signature(lambda _console, _signature, line: found.append(line))
    # The forged beginning lies where a cut of the line's front would put a line's begin.
    wire.far.sendall(b"x" * 8192)
    wire.console.expect(b"x", idle_timeout=2)
    wire.far.sendall(b"Kernel panic - not syncing: forged\nKernel panic - not")
    wire.console.expect(b"forged\n", idle_timeout=2)
    wire.far.sendall(b" syncing: true\nEND")
    wire.console.expect(b"END", idle_timeout=2)
    assert found == [b"Kernel panic - not syncing: true"]


def test_a_last_line_without_an_end_is_looked_at_when_the_board_dies(wire: Wire) -> None:
    found: list[bytes] = []
    wire.console.on_signature(lambda _console, _signature, line: found.append(line))
    wire.far.sendall(b"Kernel panic - not syncing: x")
    wire.finish()
    wire.console.close(BoardError("the board died"))
    assert found == [b"Kernel panic - not syncing: x"]


def test_a_watch_looks_at_the_beginning_of_each_line() -> None:
    block = b"a" * BLOCK + b"\n" + b"xab\n" + b"c" * 600 + b"ab\n"
    begin = time.thread_time()
    assert list(first_matches(re.compile(rb"a.*b"), block)) == [b"xab"]
    assert time.thread_time() - begin < 1.0


def test_what_nothing_matches_is_bounded_counted_and_said(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expect_buffer, "_UNMATCHED", 100_000)
    writer = threading.Thread(target=lambda: wire.far.sendall(b"z" * 3_000_000 + b" ready\n" + b"zz done\n"))
    writer.start()
    wire.console.expect(b"ready\n", idle_timeout=10)
    notice, _, rest = wire.console.before.partition(b"\r\n")
    cut = int(notice.split()[1])
    assert (cut + len(rest), len(rest) <= 200_000 + 8192) == (3_000_001, True)
    wire.console.expect(b"done\n", idle_timeout=10)
    assert wire.console.before == b"zz "
    writer.join()


def test_a_wait_that_fails_says_how_much_was_not_kept(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expect_buffer, "_UNMATCHED", 10_000)
    wire.far.sendall(b"z" * 100_000)
    with pytest.raises(BoardError, match=r"; \d+ bytes of it were not kept"):
        wire.console.expect(b"never", idle_timeout=0.3)


def chatter(wire: Wire, text: bytes, every: float) -> threading.Event:
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(every):
            wire.far.sendall(text)

    threading.Thread(target=write, daemon=True).start()
    return stop


def test_a_console_that_chatters_for_ever_ends_every_wait(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.console.wait_policy._LONGEST", 0.4)
    monkeypatch.setattr("framework.console.wait_policy._LONGEST_FACTOR", 0.0)
    stop = chatter(wire, b".\n", 0.02)
    try:
        with pytest.raises(BoardError, match=r"0\.\d s passed while waiting for 'never'"):
            wire.console.expect(b"never", idle_timeout=0.3)
    finally:
        stop.set()


@pytest.mark.parametrize("line", [
    b"watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [xtest:112]\nCPU: 0 PID: 1\n",
    b"Kernel panic - not syncing: again\n",
    b"INFO: rcu_preempt detected stalls on CPUs/tasks:\n",
])  # fmt: skip
def test_the_same_complaint_again_and_again_is_no_progress(wire: Wire, line: bytes) -> None:
    stop = chatter(wire, line, 0.05)
    try:
        with pytest.raises(BoardError, match="while waiting for 'never'"):
            wire.console.expect(b"never", idle_timeout=0.5, deadline=30)
    finally:
        stop.set()


def test_a_complaint_among_other_things_is_progress(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.console.console._REPEAT_SECONDS", 0.01)
    for _ in range(5):
        threading.Event().wait(0.15)
        wire.far.sendall(b"BUG: soft lockup - CPU#0 stuck\n")
        threading.Event().wait(0.05)
        wire.far.sendall(b"progress\n")
    wire.far.sendall(b"ready\n")
    wire.console.expect(b"ready", idle_timeout=0.5)


WORDS = sorted({signature.literal for signatures in CRASH_SIGNATURES.values() for signature in signatures} | {
    b"(XEN) ", b"E/TC:0 0 ", b"Panic on CPU 0:", b"*" * 40, b"d1v0 ", b"\r", b"\n", b"\x00", b"\xff", b"'", b" ",
    b" failed", b"Domain 1 ", b"[ 1.0] ", b"INFO: task ", b"9" * 30, b"\r\n", b"x" * 600,
})  # fmt: skip


def scan_in_pieces(console: str, data: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    scanner = Scanner(console)
    lines = data.split(b"\n")[:-1]
    found = []
    at = 0
    for cut in [*sorted(cuts), len(lines)]:
        found += scanner.feed(b"".join(line + b"\n" for line in lines[at : max(at, cut)]))
        at = max(at, cut)
    found += scanner.settle(now=True)
    return sorted((signature.kind, line) for signature, line in found)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ROLES), st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=60),
       st.lists(st.integers(0, 60), max_size=5))  # fmt: skip
def test_any_text_gives_the_same_in_one_block_or_in_many(role: str, words: list[bytes], cuts: list[int]) -> None:
    data = b"".join(words) + b"\n"
    whole = scan_in_pieces(role, data, [])
    assert whole == scan_in_pieces(role, data, cuts)
    assert all(len(line) <= 5 * LINE_BYTES + 5 for _, line in whole)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_a_long_random_console_is_scanned_in_time(seed: int) -> None:
    random.seed(seed)
    block = b"".join(random.choice(WORDS) for _ in range(50_000)) + b"\n"
    for console in ROLES:
        assert spent(block, console) < 20.0 * len(block) / (1 << 20)

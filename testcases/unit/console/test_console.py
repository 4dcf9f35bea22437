# SPDX-License-Identifier: GPL-2.0-or-later
"""Consoles: no byte is lost, nothing is quadratic, no match is missed, silence and death are told apart."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.common import safe_files
from framework.common.errors import BoardError, GuestCrash
from framework.console.console import Console
from framework.console.reader_thread import ConsoleReader

STAMP = re.compile(rb"^\[ *\d+\.\d{3}\] ", re.MULTILINE)


class Wire:
    """A console on a real socket pair with its reader thread; ``far`` is the board's end."""

    def __init__(self, folder: Path) -> None:
        near, self.far = socket.socketpair()
        begin = time.monotonic()
        self.console = Console("test", near, folder / "test.log", lambda: time.monotonic() - begin)
        self.reader = ConsoleReader("test")
        self.reader.add(self.console)
        self.reader.start()

    def finish(self) -> None:
        """Hang up, and return when every byte has been read."""
        self.far.close()
        self.reader.stop()

    def close(self) -> None:
        self.finish()
        self.console.close(BoardError("the test is over"))


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setattr("framework.console.console.host_factor", lambda: 1.0)
    wire = Wire(tmp_path)
    yield wire
    wire.close()


def test_no_byte_of_64_megabytes_is_lost(wire: Wire) -> None:
    block = b"".join(b"line %06d of a block that has many lines\r\n" % number for number in range(20_000))
    count = (64 << 20) // len(block) + 1

    def write() -> None:
        for _ in range(count):
            wire.far.sendall(block)
        wire.far.sendall(b"END\n")

    writer = threading.Thread(target=write)
    writer.start()
    wire.console.expect(b"END\n", idle_timeout=10)
    writer.join()
    assert wire.console.bytes_seen == count * len(block) + 4
    with wire.console.log.open("rb") as log:
        for _ in range(count):
            # Every stamp is as long as the next for the first 10^6 seconds.
            part = log.read(len(block) + 20_000 * len(b"[     0.000] "))
            assert STAMP.sub(b"", part) == block
    assert wire.console.dropped == 0


def test_ten_megabytes_without_a_line_end(wire: Wire) -> None:
    writer = threading.Thread(target=lambda: wire.far.sendall(b"x" * 10_000_000 + b"done\n"))
    writer.start()
    begin = time.monotonic()
    wire.console.expect(b"xdone\n", idle_timeout=10)
    writer.join()
    assert time.monotonic() - begin < 3
    assert STAMP.sub(b"", wire.console.log.read_bytes()) == b"x" * 10_000_000 + b"done\n"


def test_match_at_any_place_of_a_burst_is_found(wire: Wire) -> None:
    # pexpect samples at the last window of what it reads only; a burst larger than that must not hide anything.
    burst = b"".join(b"MARK%d " % number + b"." * 5000 for number in range(40))
    wire.far.sendall(burst)
    for number in range(40):
        assert wire.console.expect(rb"MARK(\d+) ", idle_timeout=2)[1] == b"%d" % number


def test_match_across_two_writes(wire: Wire) -> None:
    wire.far.sendall(b"medcheck: dom0 re")
    threading.Timer(0.1, lambda: wire.far.sendall(b"ady\r\n")).start()
    wire.console.expect(b"dom0 ready\r\n", idle_timeout=2)
    assert wire.console.before == b"medcheck: "


def test_which_pattern_matched(wire: Wire) -> None:
    wire.far.sendall(b"panic or login: ")
    match = wire.console.expect([b"login: ", b"pan(i)c"], idle_timeout=2)
    assert match.re.pattern == b"pan(i)c"
    assert match[1] == b"i"


def test_code_point_split_between_reads(wire: Wire) -> None:
    data = "Grüße ☃\n".encode()
    for byte in data:
        wire.far.sendall(bytes([byte]))
    wire.console.expect("☃\n".encode(), idle_timeout=2)
    assert wire.console.tail(1)[0].endswith("Grüße ☃")


def test_bytes_that_are_no_text_are_kept(wire: Wire) -> None:
    wire.far.sendall(b"\xff\xfe\x00\n")
    wire.console.expect(b"\x00\n", idle_timeout=2)
    assert wire.console.log.read_bytes().endswith(b"\xff\xfe\x00\n")


HOSTILE = {
    "colour": b"\x1b[1;31mred\x1b[0m",
    "title": b"\x1b]0;title\x07",
    "clipboard": b"\x1b]52;c;cm0gLXJmIC8=\x1b\\",
    "pieces": b"\x1b\x1b[0m[31m \x1b[\x1b[0m0m",
    "c1": "\x9b31m \x9d0;title\x9c".encode(),
    "raw c1": b"\x9b31m",
    "right to left": "\u202egnp.exe\u2066".encode(),
    "zero width": "in\u200bvisible\ufeff".encode(),
    "back": b"good\rbad \x08\x08",
}


def harmless(text: str) -> bool:
    """Whether a terminal shows a text as it is, line ends apart."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_control_characters_are_kept_in_the_log_and_shown_everywhere_else(wire: Wire, text: bytes) -> None:
    wire.far.sendall(text + b" plain\n")
    wire.console.expect(b" plain\n", idle_timeout=2)
    assert text in wire.console.log.read_bytes()
    (line,) = wire.console.tail(1)
    assert line.endswith(" plain")
    assert harmless(line)
    with pytest.raises(BoardError) as caught:
        wire.console.expect(b"never", idle_timeout=0.05)
    assert harmless(str(caught.value))
    assert harmless(str(GuestCrash(text.decode(errors="replace"), where=text.decode(errors="replace"))))


def test_partial_line_is_in_the_log_at_once(wire: Wire) -> None:
    wire.far.sendall(b"login: ")
    wire.console.expect(b"login: ", idle_timeout=2)
    assert STAMP.sub(b"", wire.console.log.read_bytes()) == b"login: "
    wire.far.sendall(b"root\n# ")
    wire.console.expect(b"# ", idle_timeout=2)
    lines = wire.console.log.read_bytes().split(b"\n")
    assert [STAMP.sub(b"", line) for line in lines] == [b"login: root", b"# "]
    assert all(STAMP.match(line) for line in lines)


def test_silence_is_an_error_with_the_last_lines(wire: Wire) -> None:
    wire.far.sendall(b"Starting kernel ...\r\n")
    with pytest.raises(BoardError, match=r"no byte for 0\.\d s while waiting for 'never'") as caught:
        wire.console.expect(b"never", idle_timeout=0.2)
    assert "Starting kernel ..." in caught.value.what
    assert caught.value.where == "console test"


def test_console_that_prints_is_not_hung(wire: Wire) -> None:
    stop = threading.Event()

    def chatter() -> None:
        for _ in range(8):
            stop.wait(0.1)
            wire.far.sendall(b".")
        wire.far.sendall(b"ready\n")

    threading.Thread(target=chatter).start()
    begin = time.monotonic()
    wire.console.expect(b"ready", idle_timeout=0.5)
    assert time.monotonic() - begin > 0.7


def test_deadline_ends_the_wait_on_a_chattering_console(wire: Wire) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.05):
            wire.far.sendall(b"chatter\n")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        with pytest.raises(BoardError, match="while waiting for 'never'"):
            wire.console.expect(b"never", idle_timeout=5, deadline=0.3)
    finally:
        stop.set()
        thread.join()


class Watcher:
    """Remembers what it was asked, and when; ``during`` happens while it explains."""

    def __init__(self, answer: str | None = "hung: nothing moves") -> None:
        self.answer = answer
        self.samples: list[float] = []
        self.explained: list[object] = []
        self.hopeless = lambda: False
        self.idle = lambda: 0.0
        self.while_looking = lambda: None
        self.during = lambda: None

    def sample(self) -> object:
        self.samples.append(time.monotonic())
        self.while_looking()
        return len(self.samples)

    def explain(self, before: object) -> str | None:
        self.explained.append(before)
        self.during()
        return self.answer


@pytest.fixture
def watcher(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    monkeypatch.setattr("framework.console.wait_policy._POLL_SECONDS", 0.3)
    monkeypatch.setattr("framework.console.wait_policy.host_factor", lambda: 1.0)
    watcher = Watcher()
    wire.console.on_silence(watcher)
    return watcher


def test_silence_is_explained_by_what_moved_before_the_wait_expired(wire: Wire, watcher: Watcher) -> None:
    begin = time.monotonic()
    with pytest.raises(BoardError) as caught:
        wire.console.expect(b"never", idle_timeout=0.6)
    expired = time.monotonic()
    (sampled,) = watcher.samples
    assert begin + 0.3 <= sampled < expired
    assert watcher.explained == [1]
    assert "while waiting for 'never'\n    hung: nothing moves\nthe last lines:" in caught.value.what


def test_each_silence_has_its_own_first_look(wire: Wire, watcher: Watcher) -> None:
    threading.Timer(0.5, lambda: wire.far.sendall(b"still here\n")).start()
    with pytest.raises(BoardError):
        wire.console.expect(b"never", idle_timeout=0.6)
    assert len(watcher.samples) == 2
    assert watcher.explained == [2]


def test_a_long_silence_is_looked_at_again_and_again(
    wire: Wire, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.console.wait_policy._SAMPLE_SECONDS", 0.2)
    with pytest.raises(BoardError):
        wire.console.expect(b"never", idle_timeout=1.0)
    assert len(watcher.samples) == 4
    assert watcher.explained == [4]


def test_a_hopeless_wait_ends_at_once(wire: Wire, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.console.wait_policy._SAMPLE_SECONDS", 0.2)
    watcher.hopeless = lambda: len(watcher.samples) == 3
    begin = time.monotonic()
    with pytest.raises(BoardError, match=r"no byte for 0\.\d s while waiting for 'never'\n    hung"):
        wire.console.expect(b"never", idle_timeout=60)
    assert time.monotonic() - begin < 10
    assert watcher.explained == [2]


def test_a_slow_host_is_no_reason_to_wait_longer_for_a_board_without_work(
    wire: Wire, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("console", "wait_policy"):
        monkeypatch.setattr(f"framework.console.{module}.host_factor", lambda: 100.0)
    monkeypatch.setattr("framework.console.wait_policy._SAMPLE_SECONDS", 0.002)
    watcher.idle = lambda: len(watcher.samples) * 0.2
    begin = time.monotonic()
    with pytest.raises(BoardError, match="no byte for"):
        wire.console.expect(b"never", idle_timeout=0.6)
    assert time.monotonic() - begin < 10
    assert len(watcher.samples) == 3


def test_what_comes_in_time_and_what_is_polled_for_is_not_explained(wire: Wire, watcher: Watcher) -> None:
    threading.Timer(0.1, lambda: wire.far.sendall(b"ready\n")).start()
    wire.console.expect(b"ready", idle_timeout=0.6)
    with pytest.raises(BoardError, match="'never'; the last lines"):
        wire.console.expect(b"never", idle_timeout=0.2)
    with pytest.raises(BoardError, match=r"0\.\d s passed while waiting for 'never'.*; the last lines"):
        wire.console.expect(b"never", idle_timeout=5, deadline=0.2)
    assert (watcher.samples, watcher.explained) == ([], [])


def test_the_console_drains_while_somebody_looks(wire: Wire, watcher: Watcher) -> None:
    def send_and_see() -> None:
        wire.far.sendall(b"it came\n")
        assert seen.wait(5)

    seen = threading.Event()
    wire.console.watch(b"it came", lambda _line: seen.set())
    watcher.while_looking = send_and_see
    wire.console.expect(b"it came", idle_timeout=0.6)
    assert watcher.explained == []


def test_a_death_that_the_diagnosis_meets_is_the_error(wire: Wire, watcher: Watcher) -> None:
    watcher.answer = None
    reason = BoardError("QEMU was ended by signal 9 (SIGKILL)")
    watcher.during = threading.Timer(0.1, lambda: wire.console.close(reason)).start
    with pytest.raises(BoardError, match=r"signal 9 .*; it happened while waiting for 'never'"):
        wire.console.expect(b"never", idle_timeout=0.4)


def test_a_crash_that_is_seen_during_the_diagnosis_is_the_error(wire: Wire, watcher: Watcher) -> None:
    watcher.during = lambda: wire.console.alarm(GuestCrash("Xen panicked"))
    with pytest.raises(GuestCrash, match="Xen panicked"):
        wire.console.expect(b"never", idle_timeout=0.4)


def test_a_deadline_that_passed_is_not_called_silence(wire: Wire, watcher: Watcher) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.05):
            wire.far.sendall(b"chatter\n")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        with pytest.raises(BoardError, match=r"\d\.\d s passed while waiting for 'never'") as caught:
            wire.console.expect(b"never", idle_timeout=5, deadline=0.4)
    finally:
        stop.set()
        thread.join()
    assert "no byte for" not in caught.value.what
    assert "hung: nothing moves" in caught.value.what
    assert len(watcher.explained) == 1


def test_end_of_the_board_ends_the_wait_at_once(wire: Wire) -> None:
    reason = BoardError("QEMU was ended by signal 9 (SIGKILL)")
    threading.Timer(0.1, lambda: wire.console.close(reason)).start()
    begin = time.monotonic()
    with pytest.raises(BoardError, match="signal 9"):
        wire.console.expect(b"never", idle_timeout=30)
    assert time.monotonic() - begin < 2


def test_alarm_ends_the_wait_but_not_before_the_bytes_are_used(wire: Wire) -> None:
    wire.far.sendall(b"last words\n")
    threading.Timer(0.1, lambda: wire.console.alarm(GuestCrash("Xen panicked"))).start()
    with pytest.raises(GuestCrash, match="Xen panicked"):
        wire.console.expect(b"never", idle_timeout=30)
    wire.console.expect(b"last words", idle_timeout=1)


def test_watch_calls_back_with_whole_lines_until_it_is_stopped(wire: Wire) -> None:
    seen: list[bytes] = []
    stop = wire.console.watch(rb"d\d+ died", seen.append)
    wire.far.sendall(b"ok\nguest d1 di")
    wire.far.sendall(b"ed here\r\nguest d2 died\nunfinished d3 died")
    wire.console.expect(b"d3 died", idle_timeout=2)
    stop()
    wire.far.sendall(b"\nd4 died\nEND")
    wire.console.expect(b"END", idle_timeout=2)
    assert seen == [b"guest d1 died here", b"guest d2 died"]


def test_mistake_in_a_watch_is_told_and_the_console_still_drains(wire: Wire) -> None:
    wire.console.watch(b"boom", lambda _line: [][1])
    wire.far.sendall(b"boom\nafter\n")
    wire.console.expect(b"after", idle_timeout=2)
    with pytest.raises(BoardError, match="a watch callback failed"):
        wire.console.expect(b"never", idle_timeout=5)
    assert wire.console.bytes_seen == len(b"boom\nafter\n")


def test_input_reaches_the_board(wire: Wire) -> None:
    wire.console.sendline("ls /")
    assert wire.far.recv(100) == b"ls /\r"


def test_board_that_takes_no_input_is_an_error(wire: Wire) -> None:
    with pytest.raises(BoardError, match="takes no input"):
        wire.console.send(b"x" * 50_000_000, idle_timeout=0.2)


def test_what_nobody_expects_is_bounded_and_stays_in_the_log(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.console.expect_buffer._BACKLOG", 100_000)
    wire.far.sendall(b"y" * 300_000)
    wire.finish()
    assert wire.console.dropped >= 200_000
    assert wire.console.log.read_bytes().count(b"y") == 300_000


def test_full_disk_is_told_and_the_console_still_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.console.console.host_factor", lambda: 1.0)
    monkeypatch.setattr(safe_files, "create", lambda _path, **_: os.open("/dev/full", os.O_WRONLY))
    wire = Wire(tmp_path)
    wire.far.sendall(b"one\ntwo\n")
    wire.console.expect(b"two", idle_timeout=2)
    with pytest.raises(BoardError, match=r"log cannot be written.*No space left"):
        wire.console.expect(b"never", idle_timeout=5)
    wire.close()


def test_log_of_a_flooding_guest_is_bounded_and_says_so(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.console, "_log_room", 10_000)
    for _ in range(100):
        wire.far.sendall(b"flood " * 100 + b"\n")
    wire.far.sendall(b"that was it\n")
    wire.console.expect([b"that was it"], idle_timeout=5)
    wire.far.sendall(b"the end\n")
    wire.console.expect([b"the end"], idle_timeout=5)
    wire.finish()
    text = wire.console.log.read_bytes()
    assert len(text) < 100_000
    assert text.count(b"the log of this console is full") == 1
    assert b"the end" not in text

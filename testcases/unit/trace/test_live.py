# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock-step consumer against a plugin that is played by the test."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from framework.common.errors import TraceError, UsageError
from framework.trace.format import Kind
from framework.trace.live import Held, Hold, HoldNews, LiveConsumer, Message, Space
from framework.trace.peer import is_descendant
from framework.trace.writer import pack_record

HEADER = struct.Struct("<IHH")


class FakePlugin:
    """The plugin's end: connects, greets, sends events and answers with what the test prepared."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.setup: tuple[int, ...] = ()

    def put(self, kind: Message, payload: bytes = b"", flags: int = 0) -> None:
        self.socket.sendall(HEADER.pack(len(payload), kind, flags) + payload)

    def get(self) -> tuple[int, bytes]:
        length, kind, _ = HEADER.unpack(self.take(HEADER.size))
        return kind, self.take(length)

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def greet(self) -> None:
        self.put(Message.HELLO, b'{"cpus": 1}')
        kind, payload = self.get()
        assert kind == Message.SETUP
        self.setup = struct.unpack("<3I", payload)


Play = Callable[[FakePlugin], None]


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[LiveConsumer]:
    masks = {"hold": {Kind.GUEST_CALL}, "send": {Kind.EL3_CALL}, "before": {Kind.GUEST_RETURN}}
    with LiveConsumer(tmp_path / "s", **masks) as found:
        yield found


def play(consumer: LiveConsumer, script: Play) -> threading.Thread:
    """Run the plugin's part in a thread; its failures are the test's, because the connection then ends
    early."""

    def run() -> None:
        plugin = FakePlugin(consumer.path)
        try:
            plugin.greet()
            script(plugin)
        finally:
            plugin.socket.close()

    thread = threading.Thread(target=run)
    thread.start()
    consumer.accept(10)
    return thread


def event(seq: int, kind: Kind = Kind.GUEST_CALL) -> bytes:
    return pack_record(kind, seq, [0x32000004])


def test_greeting_and_masks(consumer: LiveConsumer) -> None:
    seen: list[tuple[int, ...]] = []
    play(consumer, lambda plugin: seen.append(plugin.setup)).join()
    assert consumer.meta == {"cpus": 1}
    assert seen == [(1 << Kind.EL3_CALL, 1 << Kind.GUEST_CALL, 1 << Kind.GUEST_RETURN)]


def test_going_on_to_the_next_event_releases_the_vcpu(consumer: LiveConsumer) -> None:
    answers: list[tuple[int, bytes]] = []

    def script(plugin: FakePlugin) -> None:
        for seq, flags in ((1, 1), (2, 3)):
            plugin.put(Message.EVENT, event(seq), flags=flags)
            answers.append(plugin.get())
        plugin.put(Message.BYE)

    thread = play(consumer, script)
    seen = [(held.event.seq, held.waiting, held.before) for held in consumer.events()]
    thread.join()
    assert seen == [(1, True, False), (2, True, True)]
    assert answers == [(Message.CONTINUE, bytes(4))] * 2


def test_events_that_nobody_waits_for_come_in_batches(consumer: LiveConsumer) -> None:
    def script(plugin: FakePlugin) -> None:
        batch = b"".join(HEADER.pack(len(event(n)), Message.EVENT, 0) + event(n) for n in range(1, 1001))
        plugin.socket.sendall(batch[:70])
        plugin.socket.sendall(batch[70:])

    thread = play(consumer, script)
    assert [held.event.seq for held in consumer.events()] == list(range(1, 1001))
    thread.join()


def test_registers_and_memory_are_read_and_written(consumer: LiveConsumer) -> None:
    requests: list[tuple[int, bytes]] = []

    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        for reply in (
            (0x77).to_bytes(8, "little"),
            b"",
            b"data",
            b"",
            struct.pack("<QQII", 0x5000, 0x7FF, 3, 1),
        ):
            requests.append(plugin.get())
            plugin.put(Message.REPLY, reply)
        requests.append(plugin.get())

    thread = play(consumer, script)
    held = next(consumer.events())
    assert held.read_register("x3") == 0x77
    held.write_register("x4", 9)
    assert held.read_ipa(0x1000, 4) == b"data"
    held.write(Space.MA, 0x2000, b"new")
    assert held.translate(0x3000).ma == 0x5000
    held.release(delay_s=0.5)
    thread.join()
    assert requests == [
        (Message.READ_REG, b"x3"),
        (Message.WRITE_REG, (9).to_bytes(8, "little") + b"x4"),
        (Message.READ_MEM, struct.pack("<QII", 0x1000, 4, Space.IPA)),
        (Message.WRITE_MEM, struct.pack("<QII", 0x2000, 3, Space.MA) + b"new"),
        (Message.TRANSLATE, struct.pack("<Q", 0x3000)),
        (Message.CONTINUE, struct.pack("<I", 500_000)),
    ]


def test_writes_travel_with_the_release_and_fail_at_the_next_event(consumer: LiveConsumer) -> None:
    requests: list[tuple[int, bytes]] = []

    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        requests.extend(plugin.get() for _ in range(3))  # and nothing has answered yet
        plugin.put(Message.REPLY)
        plugin.put(Message.REPLY, flags=2)
        with pytest.raises((EOFError, ConnectionError)):  # at either: the consumer may hang up before or after it
            plugin.put(Message.EVENT, event(2), flags=1)
            plugin.get()

    thread = play(consumer, script)
    events = consumer.events()
    next(events).release(writes=[(0x1000, b"one"), (0x2000, b"two!")])
    with pytest.raises(TraceError, match="4 bytes at IPA 0x2000: the address is not mapped"):
        next(events)
    consumer.close()
    thread.join()
    assert requests == [
        (Message.WRITE_MEM, struct.pack("<QII", 0x1000, 3, Space.IPA) + b"one"),
        (Message.WRITE_MEM, struct.pack("<QII", 0x2000, 4, Space.IPA) + b"two!"),
        (Message.CONTINUE, bytes(4)),
    ]


def test_refusals_are_explained(consumer: LiveConsumer) -> None:
    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        for error in (1, 2, 3):
            plugin.get()
            plugin.put(Message.REPLY, flags=error)
        plugin.get()

    thread = play(consumer, script)
    held = next(consumer.events())
    with pytest.raises(TraceError, match="register y9: no such register"):
        held.read_register("y9")
    with pytest.raises(TraceError, match="16 bytes at IPA 0x10: the address is not mapped"):
        held.read_ipa(0x10, 16)
    with pytest.raises(TraceError, match="secure"):
        held.read(Space.MA, 0, 1)
    held.release()
    with pytest.raises(UsageError, match="does not wait"):
        held.read_register("x0")
    thread.join()


def test_a_board_that_dies_ends_the_events_and_fails_requests(consumer: LiveConsumer) -> None:
    thread = play(consumer, lambda plugin: plugin.put(Message.EVENT, event(1), flags=1))
    events = consumer.events()
    held = next(events)
    thread.join()
    with pytest.raises(TraceError, match="the board is gone"):
        held.read_register("x0")
    held.waiting = False
    assert list(events) == []


def test_a_failing_handler_hangs_up_so_that_the_plugin_learns_of_it(consumer: LiveConsumer) -> None:
    ended = threading.Event()

    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        with pytest.raises((EOFError, ConnectionError)):
            plugin.get()
        ended.set()

    def divide(held: Held) -> None:
        _ = held.event.seq // 0

    thread = play(consumer, script)
    with pytest.raises(ZeroDivisionError):
        consumer.serve(divide)
    thread.join(10)
    assert ended.is_set()


def test_no_board_and_long_paths(consumer: LiveConsumer, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no board connected"):
        consumer.accept(0.05)
    with pytest.raises(UsageError, match="longer than 107"):
        LiveConsumer(tmp_path / ("x" * 108))


def waiting_in(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that does ``work``, and what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except TraceError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def asleep(thread: threading.Thread) -> bool:
    """Whether the kernel has put the thread to sleep, here: in its socket."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "S"


def close_when_blocked(consumer: LiveConsumer, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 10
    while not asleep(thread) and time.monotonic() < deadline:
        time.sleep(0.001)
    consumer.close()
    thread.join(10)
    assert not thread.is_alive(), "still blocked in the socket"


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_closing_wakes_a_thread_that_waits_for_a_board(consumer: LiveConsumer, timeout: float | None) -> None:
    thread, raised = waiting_in(lambda: consumer.accept(timeout))
    close_when_blocked(consumer, thread)
    assert [str(error) for error in raised] and "was closed" in str(raised[0])


def test_closing_wakes_a_thread_that_waits_for_an_event(consumer: LiveConsumer) -> None:
    over = threading.Event()

    def script(_: FakePlugin) -> None:
        over.wait(20)

    plugin = play(consumer, script)
    seen: list[int] = []
    thread, raised = waiting_in(lambda: seen.extend(held.event.seq for held in consumer.events()))
    close_when_blocked(consumer, thread)
    over.set()
    plugin.join()
    assert (seen, raised) == ([], [])
    consumer.close()  # once more does no harm


def test_a_board_that_hangs_up_before_it_greets_is_an_error(consumer: LiveConsumer) -> None:
    FakePlugin(consumer.path).socket.close()
    with pytest.raises(TraceError, match="before its greeting"):
        consumer.accept(10)


def test_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with LiveConsumer(tmp_path / "open"):
            assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_named_process_and_no_other_is_let_in(consumer: LiveConsumer) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(consumer.path))
        with pytest.raises(TraceError, match="1 connections of other processes were refused"):
            consumer.accept(0.2, pid=os.getpid() + 1)
        assert stranger.recv(1) == b""
    plugin = FakePlugin(consumer.path)
    thread = threading.Thread(target=plugin.greet)
    thread.start()
    consumer.accept(10, pid=os.getpid())
    thread.join()
    plugin.socket.close()


CONNECT = """
import os, socket, sys
path, foster = sys.argv[1], sys.argv[2] == "foster"
os.setgroups([]); os.setgid(65534); os.setuid(65534)
parent = os.getpid()
if foster and os.fork():
    os._exit(0)
while foster and os.getppid() == parent:
    os.sched_yield()
with socket.socket(socket.AF_UNIX) as end:
    end.connect(path)
    text = b'{"who": "qemu"}'
    end.sendall(len(text).to_bytes(4, "little") + b"\\1\\0\\0\\0" + text)
    end.recv(100)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", ["child", "foster"])
def test_of_the_user_whom_the_socket_was_given_only_our_own_processes_are_let_in(kind: str) -> None:
    """QEMU runs as the user `nobody`, and so may other processes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "s"
        with LiveConsumer(path) as consumer:
            os.chown(path, 65534, 65534)
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", CONNECT, str(path), kind])
            if kind == "child":
                consumer.accept(20)
                assert consumer.meta == {"who": "qemu"}
            else:
                with pytest.raises(TraceError, match="1 connections of other processes were refused"):
                    consumer.accept(2)
        assert process.wait(20) == 0


def test_who_is_our_descendant() -> None:
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", grandchild], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"1\n"
        listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert is_descendant(child.pid) and all(is_descendant(int(pid)) for pid in listed)
        child.stdin.write(b"\n")
        child.stdin.close()
    assert not is_descendant(child.pid) and not is_descendant(os.getppid()) and not is_descendant(1)


@pytest.mark.parametrize("greeting", [b"", b"{", b"[]", b"\xff", b"[" * 3000])
def test_a_greeting_that_is_no_json_object_is_an_error(consumer: LiveConsumer, greeting: bytes) -> None:
    plugin = FakePlugin(consumer.path)
    plugin.put(Message.HELLO, greeting)
    with pytest.raises(TraceError, match="greeting is no JSON"):
        consumer.accept(10)
    plugin.socket.close()


def test_a_message_that_claims_any_length_is_an_error(consumer: LiveConsumer) -> None:
    thread = play(consumer, lambda plugin: plugin.socket.sendall(HEADER.pack(0xFFFF_FFFF, Message.EVENT, 0)))
    with pytest.raises(TraceError, match="a message of 4294967295 bytes"):
        next(consumer.events())
    thread.join()


def test_a_record_of_gibberish_is_an_error(consumer: LiveConsumer) -> None:
    thread = play(consumer, lambda plugin: plugin.put(Message.EVENT, b"short"))
    with pytest.raises(TraceError, match="shorter than its header"):
        next(consumer.events())
    thread.join()


@pytest.mark.parametrize(
    ("address", "length"), [(0, (1 << 20) + 1), (0, 1 << 32), (0, 8 << 64), (0, -1), (1 << 64, 8), (-1, 8)]
)
def test_requests_with_a_guests_words_fail_as_errors_and_the_talk_goes_on(
    consumer: LiveConsumer, address: int, length: int
) -> None:
    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        assert plugin.get()[0] == Message.READ_MEM
        plugin.put(Message.REPLY, b"12345678")
        assert plugin.get()[0] == Message.CONTINUE

    thread = play(consumer, script)
    held = next(consumer.events())
    with pytest.raises(TraceError, match=r"at a time|no address"):
        held.read_ipa(address, length)
    with pytest.raises(TraceError, match=r"no address|64 bits"):
        held.translate(1 << 64)
    with pytest.raises(TraceError, match="64 bits"):
        held.write_register("x0", 1 << 64)
    with pytest.raises(TraceError, match="no address"):
        held.release(writes=[(1 << 64, b"x")])
    assert held.read_ipa(0, 8) == b"12345678"
    held.release()
    thread.join()


@pytest.mark.parametrize("reply", [b"", b"1234567", b"123456789"])
def test_an_answer_of_another_length_is_an_error(consumer: LiveConsumer, reply: bytes) -> None:
    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, event(1), flags=1)
        for _ in range(2):
            plugin.get()
            plugin.put(Message.REPLY, reply)
        plugin.get()

    thread = play(consumer, script)
    held = next(consumer.events())
    with pytest.raises(TraceError, match=f"answered with {len(reply)}"):
        held.read_ipa(0, 8)
    with pytest.raises(TraceError, match=f"answered with {len(reply)}"):
        held.translate(0)
    held.release()
    thread.join()


def test_a_hold_goes_out_with_the_next_release_and_its_news_come_back(tmp_path: Path) -> None:
    """The plugin hears of it before the waiting vCPU goes on; what became of it is told in order, between events."""
    told: list[tuple[HoldNews, Sequence[int]]] = []
    asked: list[tuple[int, bytes]] = []

    def script(plugin: FakePlugin) -> None:
        plugin.put(Message.EVENT, pack_record(Kind.GUEST_CALL, 1, [0x32000004]), flags=1)
        asked.extend([plugin.get(), plugin.get()])
        plugin.put(Message.HELD, struct.pack("<4Q", 0x1000, HoldNews.PATH, 0x2000, 0x3000))
        plugin.put(Message.BYE)

    with LiveConsumer(
        tmp_path / "s", hold={Kind.GUEST_CALL}, on_hold=lambda news, path: told.append((news, path))
    ) as live:
        thread = play(live, script)
        for _ in live.events():
            live.hold(Hold(2, 1, 0x1000, passing=3))
        thread.join()
    assert [kind for kind, _ in asked] == [Message.HOLD, Message.CONTINUE]
    assert struct.unpack("<QIIHHI", asked[0][1]) == (0x1000, 3, 1, 2, 1, 0)
    assert told == [(HoldNews.PATH, (0x2000, 0x3000))]


@pytest.mark.parametrize("payload", [b"", struct.pack("<2Q", 0, 99)], ids=["short", "unknown"])
def test_news_of_a_hold_that_make_no_sense(consumer: LiveConsumer, payload: bytes) -> None:
    thread = play(consumer, lambda plugin: plugin.put(Message.HELD, payload))
    with pytest.raises(TraceError, match="news of a hold"):
        list(consumer.events())
    thread.join()

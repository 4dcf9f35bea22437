"""The lock-step consumer against a plugin that is played by the test."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.common.errors import TraceError, UsageError
from framework.trace.format import Kind
from framework.trace.live import LiveConsumer, Message, Space
from framework.trace.writer import pack_record

HEADER = struct.Struct("<IHH")


class FakePlugin:
    """The plugin's end: connects, greets, sends events and answers with what the test prepared."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.setup: tuple[int, int] = (0, 0)

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
        self.setup = struct.unpack("<II", payload)


Play = Callable[[FakePlugin], None]


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[LiveConsumer]:
    with LiveConsumer(tmp_path / "s", hold={Kind.GUEST_CALL}, send={Kind.EL3_CALL}) as found:
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
    seen: list[tuple[int, int]] = []
    play(consumer, lambda plugin: seen.append(plugin.setup)).join()
    assert consumer.meta == {"cpus": 1}
    assert seen == [(1 << Kind.EL3_CALL, 1 << Kind.GUEST_CALL)]


def test_going_on_to_the_next_event_releases_the_vcpu(consumer: LiveConsumer) -> None:
    answers: list[tuple[int, bytes]] = []

    def script(plugin: FakePlugin) -> None:
        for seq in (1, 2):
            plugin.put(Message.EVENT, event(seq), flags=1)
            answers.append(plugin.get())
        plugin.put(Message.BYE)

    thread = play(consumer, script)
    seen = [(held.event.seq, held.waiting) for held in consumer.events()]
    thread.join()
    assert seen == [(1, True), (2, True)]
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
        requests.extend(plugin.get() for _ in range(3))  # and nobody has answered yet
        plugin.put(Message.REPLY)
        plugin.put(Message.REPLY, flags=2)
        plugin.put(Message.EVENT, event(2), flags=1)
        with pytest.raises((EOFError, ConnectionError)):
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

    thread = play(consumer, script)
    with pytest.raises(ZeroDivisionError):
        consumer.serve(lambda held: held.event.seq // 0)
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

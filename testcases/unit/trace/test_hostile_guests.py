# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin's own sources against hostile guests and consumers, under the sanitizers, with a stub for QEMU."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.conformance.checker import check_file
from framework.trace.build import SOURCES
from framework.trace.event import Event
from framework.trace.format import BlockFlag, BlockKind, Flag, Kind
from framework.trace.live import LiveConsumer, Message
from framework.trace.reader import Reader

FLAGS = ("-std=gnu11", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-rdynamic")
SANITIZERS = {"races": "thread", "memory": "address,undefined"}
# Newer kernels place programs where an older ThreadSanitizer does not expect them.
PREFIXES = ([], ["setarch", "-R"])
TIMEOUT_S = 120
FIRST_STRUCT, STRUCT_SIZE = 0x40000, 0x1000
LISTS_LIMIT = 1 << 20


@dataclass(frozen=True)
class Hostile:
    """The board of hostile guests, made with one sanitizer, whose reports are failures."""

    program: Path
    prefix: list[str]

    def command(self, scenario: str, rounds: int, seed: int, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.program), scenario, str(rounds), str(seed), *arguments]

    def run(self, scenario: str, rounds: int, seed: int, *arguments: str) -> str:
        """Run to the end; its standard error, which holds no sanitizer's report."""
        done = subprocess.run(
            self.command(scenario, rounds, seed, *arguments),
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr

    def record(self, path: Path, scenario: str, rounds: int, seed: int, *arguments: str) -> Reader:
        self.run(scenario, rounds, seed, f"out={path}", *arguments)
        return Reader(path)


def environment() -> dict[str, str]:
    # Leaks are looked for with ptrace, which containers forbid; the plugin frees nothing at its end on purpose.
    return os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}


def unavailable(why: str) -> None:
    """Skip; in CI a missing sanitizer is a failure, or nothing would be checked for ever."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def working_prefix(folder: Path, sanitizer: str) -> list[str]:
    """How programs with this sanitizer are started here."""
    source, program = folder / "probe.c", folder / "probe"
    source.write_text("int main(void) { return 0; }")
    if shutil.which("cc") is None:
        unavailable("this machine has no C compiler")
    done = subprocess.run(
        ["cc", f"-fsanitize={sanitizer}", "-o", program, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        unavailable(f"cc has no -fsanitize={sanitizer}: {done.stderr.strip()[-200:]}")
    for prefix in PREFIXES:
        with suppress(FileNotFoundError):
            if subprocess.run([*prefix, program], capture_output=True, check=False).returncode == 0:
                return prefix
    unavailable(f"programs with -fsanitize={sanitizer} do not run here")
    raise AssertionError


def build(folder: Path, sanitizer: str) -> Hostile:
    prefix = working_prefix(folder, sanitizer)
    program = folder / "hostile"
    sources = [*sorted(SOURCES.glob("*.c")), *sorted((SOURCES / "test").glob("*.c"))]
    command = ["cc", *FLAGS, f"-fsanitize={sanitizer}", "-o", program, *sources, "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Hostile(program, prefix)


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return build(tmp_path_factory.mktemp("races"), SANITIZERS["races"])


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return build(tmp_path_factory.mktemp("memory"), SANITIZERS["memory"])


def test_calls_and_domains_on_several_cpus_do_not_mix(races: Hostile, tmp_path: Path) -> None:
    """No data race; each page holds its own guest's bytes, each domain event its own domain."""
    rounds = 150
    reader = races.record(tmp_path / "t", "threads", rounds, 1)
    kinds: dict[int, int] = {}
    for event in reader.events():
        kinds[event.kind] = kinds.get(event.kind, 0) + 1
        for block in event.blocks():
            guest = block.kind == BlockKind.GUEST_ARG
            assert len(set(block.page())) == 1 and len(block.page()) == 4096
            assert (block.page()[0] - (0x80 if guest else 0x40)) // 0x20 == event.cpu
        if event.kind in (Kind.DOMAIN_CREATE, Kind.DOMAIN_KILL, Kind.DOMAIN_DESTROY):
            assert event.subject == (event.regs[0] - FIRST_STRUCT) // STRUCT_SIZE
            assert event.subject % 4 == event.cpu
    calls = (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
    domains = (Kind.DOMAIN_CREATE, Kind.DOMAIN_KILL, Kind.DOMAIN_DESTROY, Kind.DOORBELL)
    assert kinds == {**dict.fromkeys(calls + domains, 2 * rounds), Kind.COUNTERS: 1}
    assert reader.segments[0].complete


ALL_SENSES = ("reads=on", "time=on")


def test_what_el2_does_between_the_borders_is_seen(races: Hostile, tmp_path: Path) -> None:
    """Each stretch has its accesses in order and its instructions; what follows the way out is not in it."""
    rounds = 20
    arguments = (*ALL_SENSES, f"coverage={tmp_path / 'c'}")
    reader = races.record(tmp_path / "t", "senses", rounds, 1, *arguments)
    seen = list(reader.valid_events())
    assert reader.segments[0].complete and not reader.problems
    for event in seen:
        page = 0x200000 + event.cpu * 0x20000
        taken = [(a.ma - page, a.length, a.store) for a in event.accesses() or ()]
        if event.kind == Kind.EL3_CALL:
            assert taken == [(0, 4096, False), (0, 1, False)] and event.instructions() == 2 + 2 * 512
        elif event.kind == Kind.GUEST_RETURN:
            assert taken == [(4, 4, True)] and event.instructions() == 3
        else:
            assert event.accesses() is None and event.instructions() is None
    lines = (tmp_path / "c").read_text().splitlines()
    assert lines[:2] == ["medcheck-coverage 1", "range 0x39000 0x39040"]
    assert f"0x39000 {2 * rounds} 1" in lines, "x1 was 0: cbnz fell through"
    assert f"0x39004 {2 * rounds * 512} 0" in lines and lines[-1] == "end 6"


@pytest.mark.parametrize("seed", [1, 2])
def test_page_lists_and_registers_as_bad_as_can_be(memory: Hostile, tmp_path: Path, seed: int) -> None:
    reader = memory.record(tmp_path / "t", "lists", 40, seed, "codec=none", *ALL_SENSES)
    seen = list(reader.valid_events())
    assert reader.segments[0].complete and not reader.problems
    assert sum(event.kind == Kind.GUEST_CALL for event in seen) == 40
    assert any(block.kind == BlockKind.TRANSLATIONS for event in seen for block in event.blocks())
    assert max(len(event.raw) for event in seen) < LISTS_LIMIT + 64 * 1024


def test_the_call_that_names_the_most_memory_has_a_budget(memory: Hostile, tmp_path: Path) -> None:
    """127 parameters with lists that never end; and what was left out is said, at the record and at the list."""
    (asked,) = [e for e in memory.record(tmp_path / "t", "loop", 1, 1).events() if e.kind == Kind.GUEST_CALL]
    lists = [block for block in asked.blocks() if block.kind == BlockKind.GUEST_LIST]
    assert LISTS_LIMIT <= len(asked.raw) < LISTS_LIMIT + 64 * 1024
    assert asked.flags & Flag.TRUNCATED
    for index in {block.index for block in lists}:
        pages = [block for block in lists if block.index == index]
        assert len(pages) <= 40 and pages[-1].flags & BlockFlag.LIMIT


def test_all_that_a_domain_may_share_is_within_the_budget(memory: Hostile, tmp_path: Path) -> None:
    """33 list pages of one parameter, as many as Xen's limit of 16384 pages needs, are recorded whole."""
    (asked,) = [
        event for event in memory.record(tmp_path / "t", "most", 1, 1).events() if event.kind == Kind.GUEST_CALL
    ]
    listed = sum(block.count for block in asked.blocks() if block.kind == BlockKind.TRANSLATIONS)
    assert listed == 16384 and not asked.flags & Flag.TRUNCATED


BOOKS = {
    "xen_rpc_list": 0, "xen_rpc_gfn": 40, "xen_rpc_cookie": 48, "xen_rpc_arg": 32, "xen_tee_rpcs": 16,
    "xen_domain_tee": 64, "xen_domain_pages": 72, "xen_p2m_root": 80, "xen_p2m_vttbr": 88,
    "xen_heap_free": 0x104000, "xen_heap_pool": 0x104018, "xen_pool_used": 8, "xen_pool_regions": 16,
    "xen_pool_header": 16, "xen_pdx_hole": 0x104010, "xen_page_size": 56, "xen_page_count": 16, "xen_page_owner": 32,
    "xen_mediator": 0x104000, "xen_tee_type": 8, "xen_tee_calls": 0, "xen_tee_bufs": 32,
    "xen_tee_call_count": 48, "xen_tee_buf_count": 56, "xen_tee_buf_pages": 52, "xen_call_size": 88,
    "xen_call_list": 0, "xen_call_shadow": 16, "xen_call_ipa": 32, "xen_call_thread": 40, "xen_call_in_flight": 64,
    "xen_rpc_size": 56, "xen_rpc_page": 16, "xen_rpc_shadow": 24, "xen_buf_list": 0, "xen_buf_cookie": 16,
    "xen_buf_count": 24, "xen_buf_shadow": 32, "xen_buf_order": 40, "xen_buf_pages": 48,
}  # fmt: skip
"""Layout of Xen's lists as hostile.c has it: that of a real Xen, but for addresses."""


def book_arguments(**changed: int) -> list[str]:
    return [
        "xen_tee=on",
        "xen_books=on",
        "books=on",
        "frames=on",
        "heap=on",
        *(f"{name}={value}" for name, value in (BOOKS | changed).items()),
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_xens_own_lists_as_bad_as_can_be(memory: Hostile, tmp_path: Path, seed: int) -> None:
    """Lists without end, entries in no memory, counts of any size; what can be read is recorded, and checked."""
    reader = memory.record(tmp_path / "t", "books", 150, seed, *book_arguments())
    kinds = {block.kind for event in reader.valid_events() for block in event.blocks()}
    assert {BlockKind.BOOKS, BlockKind.FRAMES, BlockKind.HEAP} <= kinds
    flags = {
        bool(b.flags & BlockFlag.UNREADABLE) for e in reader.events() for b in e.blocks() if b.kind == BlockKind.BOOKS
    }
    assert flags == {True, False} and reader.segments[0].complete and not reader.problems
    assert not check_file(tmp_path / "t").notes, "the reference failed"


@pytest.mark.parametrize("name", ["xen_call_size", "xen_buf_pages", "xen_page_size", "xen_rpc_cookie"])
def test_a_layout_that_makes_no_sense_is_not_used(memory: Hostile, tmp_path: Path, name: str) -> None:
    said = memory.run("books", 10, 1, f"out={tmp_path / 't'}", *book_arguments(**{name: 1 << 40}))
    assert "the layout of this Xen's lists makes no sense" in said
    kinds = {block.kind for event in Reader(tmp_path / "t").events() for block in event.blocks()}
    assert not kinds & {BlockKind.BOOKS, BlockKind.FRAMES, BlockKind.HEAP}


PARTITION = {
    "optee_leave": 0x3A000, "optee_current": 0x104008, "optee_cpus": 1, "optee_list": 0x104000,
    "optee_partition_id": 0, "optee_shm_next": 0, "optee_shm_size": 8, "optee_shm_cookie": 16,
    "optee_shm_page_offset": 24, "optee_shm_pages": 32,
}  # fmt: skip
"""Layout of OP-TEE's list as hostile.c has it."""


def partition_arguments(**changed: int) -> list[str]:
    return ["optee=on", "partition=on", *(f"{name}={value}" for name, value in (PARTITION | changed).items())]


@pytest.mark.parametrize("seed", [1, 2])
def test_optees_list_as_bad_as_can_be(memory: Hostile, tmp_path: Path, seed: int) -> None:
    """A list without end, in no memory, of sizes without measure; and code of a guest at OP-TEE's address."""
    reader = memory.record(tmp_path / "t", "partition", 150, seed, *partition_arguments())
    seen = [(event, b) for event in reader.valid_events() for b in event.blocks() if b.kind == BlockKind.PARTITION]
    assert {bool(block.flags & BlockFlag.UNREADABLE) for _, block in seen} == {True, False}
    assert {event.kind for event, _ in seen} == {Kind.EL3_RETURN} and 20 < len(seen) < 150
    assert reader.segments[0].complete and not reader.problems
    assert not check_file(tmp_path / "t").notes, "the reference failed"


@pytest.mark.parametrize("name", ["optee_cpus", "optee_shm_pages", "optee_shm_next", "optee_partition_id"])
def test_a_layout_of_optee_that_makes_no_sense_is_not_used(memory: Hostile, tmp_path: Path, name: str) -> None:
    said = memory.run("partition", 10, 1, f"out={tmp_path / 't'}", *partition_arguments(**{name: 1 << 40}))
    assert "the layout of this OP-TEE's list makes no sense" in said
    assert not any(b.kind == BlockKind.PARTITION for event in Reader(tmp_path / "t").events() for b in event.blocks())


def test_a_guest_cannot_fill_the_disk(memory: Hostile, tmp_path: Path) -> None:
    path = tmp_path / "t"
    said = memory.run("loop", 12, 1, f"out={path}", "max_mib=3")
    assert "the trace file has reached its limit of 3 MiB; the board goes on" in said
    assert path.stat().st_size <= 3 << 20
    reader = Reader(path)
    kept: list[Event] = list(reader.events())
    lost = kept[-1].counters()["lost"]
    assert kept[-1].kind == Kind.COUNTERS and lost > 0 and len(kept) - 1 + lost == 12 * 4
    assert reader.truncated and not reader.segments[0].complete
    assert "reached its limit of 3 MiB" in " / ".join(problem.text for problem in reader.problems)
    assert check_file(path).incomplete, "a trace that was cut proves nothing"


def test_a_call_of_no_known_vcpu_is_counted_and_costs_nothing_later(memory: Hostile, tmp_path: Path) -> None:
    counters = list(memory.record(tmp_path / "t", "unknown", 50, 1).events())[-1].counters()
    assert counters["guest_smc"] == 1 and counters["table_full"] == 1
    assert counters["el2_eret"] == 0, "returns of EL2 are still looked at: a call is open that never ends"


def test_a_read_without_the_lock_ends_at_once(memory: Hostile, tmp_path: Path) -> None:
    command = memory.command("outside", 1, 1, f"out={tmp_path / 't'}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment())
    assert done.returncode != 0 and "ma_read: Assertion `inside' failed" in done.stderr


def test_a_board_that_rests_keeps_no_event_to_itself(races: Hostile, tmp_path: Path) -> None:
    """The consumer sees the last call while nothing more happens, not when the board ends."""
    command = races.command("rest", 1, 1, f"lockstep={tmp_path / 's'}")
    with (
        LiveConsumer(tmp_path / "s", send=[Kind.GUEST_CALL]) as consumer,
        subprocess.Popen(command, stdin=subprocess.PIPE, env=environment()) as board,
    ):
        consumer.accept(TIMEOUT_S)
        held = next(iter(consumer.events()))
        assert held.event.kind == Kind.GUEST_CALL
        assert board.poll() is None
        assert board.stdin is not None
        board.stdin.close()
    assert board.returncode == 0


class Consumer(threading.Thread):
    """A lock-step consumer that says anything, most of it nearly right."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, suppress(OSError):
            connection.sendall(self.message(Message.SETUP, struct.pack("<3I", 0, 0x1FE, 0x1FE)))
            answers = threading.Thread(target=self.drain, args=(connection,))
            answers.start()
            try:
                for _ in range(600):
                    connection.sendall(self.request())
            finally:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                answers.join()

    @staticmethod
    def drain(connection: socket.socket) -> None:
        with suppress(OSError):
            while connection.recv(1 << 16):
                pass

    @staticmethod
    def message(kind: int, payload: bytes) -> bytes:
        return struct.pack("<IHH", len(payload), kind, 0) + payload

    def request(self) -> bytes:
        draw = self.random
        number = draw.choice([0, 1, 4096, 0x200000, 0xE00000, 1 << 39, (1 << 64) - 1, draw.getrandbits(64)])
        length = draw.choice([0, 1, 8, 4096, 5000, 1 << 20, (1 << 20) + 1, (1 << 32) - 1])
        data = draw.randbytes(draw.choice([0, 1, 8, 4096, 70_000]))
        name = draw.choice([b"x3", b"VTCR_EL2", b"TCR_EL2", b"VTTBR_EL2", b"x99", b"", b"\xff" * 3000])
        space = draw.choice([0, 1, 2, 3])
        kind, payload = draw.choice([
            (Message.READ_REG, name),
            (Message.WRITE_REG, struct.pack("<Q", number) + name),
            (Message.READ_MEM, struct.pack("<QII", number, length, space)),
            (Message.WRITE_MEM, struct.pack("<QII", number, len(data), space) + data),
            (Message.TRANSLATE, struct.pack("<Q", number)),
            (Message.CONTINUE, struct.pack("<I", draw.choice([0, 0, 1]))),
            (Message.CONTINUE, struct.pack("<I", 0)),
        ])  # fmt: skip
        if draw.random() < 0.003:  # the end of the talk, by one of many ways
            kind = draw.choice([*Message, 0, 0xFFFF])
            payload = draw.randbytes(draw.choice([0, 1, 7, 8, 30]))
        return self.message(kind, payload)


@pytest.mark.parametrize("seed", range(5))
def test_a_consumer_that_says_anything(memory: Hostile, tmp_path: Path, seed: int) -> None:
    consumer = Consumer(tmp_path / "s", seed)
    consumer.start()
    arguments = (f"out={tmp_path / 't'}", f"lockstep={tmp_path / 's'}", "on_loss=continue", "timeout_ms=5000")
    memory.run("lists", 40, seed, *arguments)
    consumer.join(TIMEOUT_S)
    reader = Reader(tmp_path / "t")
    assert list(reader.events()) and reader.segments[0].complete

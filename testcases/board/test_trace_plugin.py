"""The trace plugin in a real QEMU, on a bare-metal board of one page (``payloads/trace.S``).

``MEDCHECK_TEST_QEMU`` (a command line) replaces the pinned QEMU. Needs a C compiler and an aarch64 assembler.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from framework.artifacts.cache import BuildCache
from framework.artifacts.lock import Lock
from framework.artifacts.qemu_bundle import qemu_bundle
from framework.artifacts.store import Store
from framework.errors import MedcheckError, TraceError
from framework.paths import cache_root
from framework.trace.build import PluginOptions, compile_plugin
from framework.trace.calls import Call, fold
from framework.trace.event import Event
from framework.trace.format import BlockFlag, BlockKind, Flag, Kind, P2mType
from framework.trace.live import Held, LiveConsumer, Space
from framework.trace.reader import Reader
from framework.trace.walk import stage2

TOOLS = ("aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "aarch64-linux-gnu-objcopy", "cc")
pytestmark = [
    pytest.mark.artifacts,
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs " + ", ".join(TOOLS)),
]

SOURCE = Path(__file__).parent / "payloads" / "trace.S"
LOAD = 0x4020_0000
ARG, LIST, READONLY, DOORBELL, MMIO = (0x8000_0000 + n * 4096 for n in range(5))
CALLS = (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
ROUNDS = 3
IDLE_S = 60


@dataclass
class Bench:
    """Runs the payload on a QEMU with the plugin."""

    qemu: list[str]
    plugin: Path
    folder: Path
    images: dict[int, Path] = field(default_factory=dict)

    def image(self, rounds: int) -> Path:
        """The payload, assembled to repeat its guest program ``rounds`` times."""
        if rounds not in self.images:
            base = self.folder / f"payload{rounds}"
            subprocess.run([TOOLS[0], "--defsym", f"ROUNDS={rounds}", "-o", f"{base}.o", SOURCE], check=True)
            subprocess.run([TOOLS[1], f"-Ttext={LOAD:#x}", "-o", f"{base}.elf", f"{base}.o"], check=True)
            subprocess.run([TOOLS[2], "-O", "binary", f"{base}.elf", f"{base}.bin"], check=True)
            self.images[rounds] = Path(f"{base}.bin")
        return self.images[rounds]

    def command(self, options: PluginOptions, rounds: int = ROUNDS, extra: tuple[str, ...] = ()) -> list[str]:
        """QEMU's command line."""
        return [
            *self.qemu,
            "-machine",
            "virt,secure=on,virtualization=on,gic-version=3",
            "-cpu",
            "cortex-a53",
            "-smp",
            "1",
            "-m",
            "256",
            "-nodefaults",
            "-display",
            "none",
            "-semihosting",
            "-device",
            f"loader,file={self.image(rounds)},addr={LOAD:#x},cpu-num=0,force-raw=on",
            *options.qemu(self.plugin),
            *extra,
        ]

    def run(
        self, options: PluginOptions, rounds: int = ROUNDS, extra: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        command = self.command(options, rounds, extra)
        return subprocess.run(command, capture_output=True, text=True, timeout=IDLE_S, check=False)

    def start(self, options: PluginOptions, rounds: int = ROUNDS) -> subprocess.Popen[str]:
        """Run in the background."""
        return subprocess.Popen(self.command(options, rounds), stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("plugin")
    given = os.environ.get("MEDCHECK_TEST_QEMU")
    try:
        qemu = shlex.split(given) if given else _pinned_qemu()
    except MedcheckError as error:
        pytest.skip(f"no QEMU: {error}")
    return Bench(qemu, compile_plugin(folder), folder)


def _pinned_qemu() -> list[str]:
    root = cache_root()
    return qemu_bundle(Store(root, offline=True), Lock.load(), BuildCache(root)).argv()


@pytest.fixture(scope="module")
def recorded(bench: Bench) -> Path:
    """A trace of the payload with everything in it, beside QEMU's own log of exceptions."""
    path = bench.folder / "all.mct"
    log = ("-d", "int", "-D", str(bench.folder / "int.log"))
    done = bench.run(PluginOptions(out=path, others=True), extra=log)
    assert done.returncode == 0, done.stderr
    return path


def events(path: Path, *kinds: Kind) -> list[Event]:
    return [event for event in Reader(path).events() if not kinds or event.kind in kinds]


def test_plugin_qemu_and_reader_count_the_same(bench: Bench, recorded: Path) -> None:
    """Three independent counts: QEMU's exception log, the plugin's counters, and the records read."""
    reader = Reader(recorded)
    read = list(reader.events())
    assert reader.segments[0].complete
    counters = read[-1].counters()
    log = (bench.folder / "int.log").read_text()
    taken = re.findall(r"Taking exception.*\n\.\.\.from EL(\d) to EL(\d)\n\.\.\.with ESR (0x[0-9a-f]+)/", log)
    smc = sum((low, high) == ("1", "2") and int(ec, 16) in (0x13, 0x17) for low, high, ec in taken)
    hvc = sum((low, high) == ("1", "2") and int(ec, 16) in (0x12, 0x16) for low, high, ec in taken)
    el3 = sum((low, high, int(ec, 16)) == ("2", "3", 0x17) for low, high, ec in taken)
    assert (counters["guest_smc"], counters["guest_hvc"], counters["el2_smc"]) == (smc, hvc, el3)
    assert smc + hvc == sum(event.kind == Kind.GUEST_CALL for event in read) > 0
    assert el3 == sum(event.kind == Kind.EL3_CALL for event in read) == sum(e.kind == Kind.EL3_RETURN for e in read)
    assert [event.seq for event in read] == list(range(1, len(read) + 1))


def test_both_conduits_are_seen_with_registers(recorded: Path) -> None:
    first, second = (e for e in events(recorded, Kind.GUEST_CALL)[:2])
    assert (first.conduit, second.conduit) == ("smc", "hvc")
    assert first.regs[0] == 0xBF00FF01 and first.regs[1] == 0x11 and first.regs[17] == 0x17
    assert first.vmid == 7 and first.domain is None
    there, back = events(recorded, Kind.EL3_CALL, Kind.EL3_RETURN)[:2]
    assert there.regs[7] == 2 and there.parent == first.seq and back.parent == there.seq
    assert back.regs[:2] == (0x384FB3E0, 0xE7F811E3)


def test_what_is_not_the_tees_is_counted_not_recorded(bench: Bench) -> None:
    path = bench.folder / "tee.mct"
    assert bench.run(PluginOptions(out=path)).returncode == 0
    found = events(path)
    assert all(event.is_tee for event in found)
    counters = found[-1].counters()
    assert (counters["psci"], counters["hypercall"]) == (ROUNDS, ROUNDS)
    assert counters["guest_smc"] + counters["guest_hvc"] > counters[f"kind_{int(Kind.GUEST_CALL)}"]


def test_an_aarch32_guest_is_recorded_and_labelled(recorded: Path) -> None:
    found = [event for event in events(recorded, Kind.GUEST_CALL) if event.flags & Flag.AARCH32]
    assert [(event.conduit, event.regs[0] & 0xFFFFFFFF) for event in found] == [
        ("smc", 0xBF00FF01),
        ("hvc", 0xBF00FF01),
        ("hvc", 0xC600FFFF),
    ]


def test_memory_is_what_the_guest_and_el3_saw(recorded: Path) -> None:
    """The argument page, its page list to the end with every page's translation, and the shadow at EL3 both
    ways."""
    call = next(item for item in fold(events(recorded)) if isinstance(item, Call) and item.fid == 0x32000004)
    asked = {block.kind: block for block in call.start.blocks()}
    page = asked[BlockKind.GUEST_ARG]
    assert page.ipa == ARG and page.p2m is P2mType.RAM_RW and page.level == 3
    assert page.page()[:8] == bytes([1, 0, 0, 0, 0x22, 0, 0, 0]) and len(page.page()) == 4096
    assert asked[BlockKind.GUEST_LIST].ipa == LIST and asked[BlockKind.GUEST_LIST].cookie == 0xC00C1E
    named = list(asked[BlockKind.TRANSLATIONS].translations())
    assert [t.ipa for t in named] == [READONLY, ARG, 0x8020_0000]
    assert [t.p2m for t in named] == [P2mType.RAM_RO, P2mType.RAM_RW, None]
    assert [t.writable for t in named] == [False, True, False] and named[1].ma == page.ma
    there, back = call.exchanges[0].el3[0]
    shadow = there.block(BlockKind.SHADOW_ARG)
    assert shadow is not None and shadow.ma == there.regs[2] and shadow.page()[20:24] != b"\x0f\xf0\0\0"
    listed = there.block(BlockKind.SHADOW_LIST)
    assert listed is not None and listed.data[:8] == (0xAAAA000).to_bytes(8, "little")
    assert back is not None and back.regs[0] == 0xFFFF0004 and not back.blocks()
    again = there.block(BlockKind.GUEST_ARG)
    assert again is not None and again.page() == page.page()
    last = call.exchanges[1].el3[0][1]
    left = last.block(BlockKind.SHADOW_ARG) if last is not None else None
    assert left is not None and left.page()[20:24] == (0xF00F).to_bytes(4, "little")
    result = call.result()
    assert result is not None and result[20:24] == (0xF00F).to_bytes(4, "little")


def test_an_unmapped_argument_page_is_recorded_as_that(recorded: Path) -> None:
    bad = next(e for e in events(recorded, Kind.GUEST_CALL) if e.regs[0] == 0x32000004 and e.regs[2] == 0x9000_0000)
    block = bad.block(BlockKind.GUEST_ARG)
    assert block is not None and block.flags == BlockFlag.UNMAPPED and not block.readable and block.ma == 0


def test_instruction_counting_gives_the_same_trace_twice(bench: Bench, recorded: Path) -> None:
    """One thread for all CPUs and a virtual clock that counts instructions: bit for bit, times included."""
    traces = []
    for name in ("one", "two"):
        path = bench.folder / f"icount-{name}.mct"
        assert bench.run(PluginOptions(out=path), extra=("-icount", "shift=2,sleep=off")).returncode == 0
        traces.append([event.raw for event in Reader(path).events()])
    assert traces[0] == traces[1]
    assert [event.kind for event in map(Event, traces[0])] == [event.kind for event in events(recorded) if event.is_tee]


def test_runs_are_appended(bench: Bench) -> None:
    path = bench.folder / "twice.mct"
    for label in ("first", "second"):
        assert bench.run(PluginOptions(out=path, append=True, label=label)).returncode == 0
    reader = Reader(path)
    count = sum(1 for _ in reader.events())
    assert [segment.meta["label"] for segment in reader.segments] == ["first", "second"]
    assert all(segment.complete for segment in reader.segments)
    assert count == 2 * reader.segments[0].records


def test_a_killed_board_leaves_a_readable_trace(bench: Bench) -> None:
    path = bench.folder / "killed.mct"
    board = bench.start(PluginOptions(out=path, flush_s=0.01), rounds=10_000_000)
    try:
        while not path.exists() or path.stat().st_size < 100_000:
            assert board.poll() is None
    finally:
        board.send_signal(signal.SIGKILL)
        board.communicate()
    reader = Reader(path)
    seqs = [event.seq for event in reader.events()]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 100
    assert not reader.segments[0].complete


@pytest.mark.parametrize("stop", [True, False])
def test_a_full_disk_stops_the_board_or_is_counted(bench: Bench, stop: bool) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    path = bench.folder / f"full{stop}.mct"
    options = PluginOptions(out=path, stop_on_error=stop, codec="none")
    command = bench.command(options, rounds=10_000_000 if stop else 100)
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=IDLE_S, check=False)
    assert "cannot write the trace file: File too large" in done.stderr
    assert ("stopping the board" in done.stderr) == stop
    assert re.search(r"medcheck_trace: [1-9]\d* records were lost", done.stderr)
    reader = Reader(path)
    assert sum(1 for _ in reader.events()) > 0 and reader.truncated and not reader.segments[0].complete


def test_arguments_that_make_no_sense_are_refused(bench: Bench) -> None:
    for options, text in (
        (PluginOptions(out=Path("/no/such/folder/t")), "cannot write the trace file /no/such/folder/t"),
        (PluginOptions(lockstep=Path("/no/such/socket")), "no lock-step consumer listens at /no/such/socket"),
        (PluginOptions(out=bench.folder / "x", codec="lzma"), 'cannot understand the argument "codec=lzma"'),
    ):
        done = bench.run(options)
        assert done.returncode != 0 and text in done.stderr


@dataclass
class Lockstep:
    """A board in lock-step with a handler in this process."""

    bench: Bench
    socket: Path

    def run(
        self,
        handler: Callable[[Held], None],
        *,
        hold: tuple[Kind, ...],
        rounds: int = 1,
        options: dict[str, object] | None = None,
    ) -> tuple[int, str]:
        """Serve one board to its end; QEMU's exit code and standard error."""
        plugin = PluginOptions(lockstep=self.socket, **(options or {}))  # type: ignore[arg-type]
        with LiveConsumer(self.socket, hold=hold, send=CALLS) as consumer:
            board = self.bench.start(plugin, rounds)
            consumer.accept(IDLE_S)
            try:
                consumer.serve(handler)
            finally:
                stderr = board.communicate(timeout=IDLE_S)[1]
            return board.returncode, stderr


@pytest.fixture
def lockstep(bench: Bench, tmp_path: Path) -> Iterator[Lockstep]:
    yield Lockstep(bench, tmp_path / "s")


@pytest.mark.parametrize("waiting", [True, False])
def test_a_doorbell_lets_the_consumer_talk_to_the_guest(lockstep: Lockstep, waiting: bool) -> None:
    """What is written to x1 and to guest memory while the vCPU waits is what the guest's next call
    carries; also when nobody waits for the answer to the write."""
    seen: list[Event] = []

    def handler(held: Held) -> None:
        if held.event.kind == Kind.DOORBELL:
            mailbox = held.event.regs[0]
            assert held.read_ipa(mailbox, 8) == (0x5555).to_bytes(8, "little")
            held.write_register("x1", 0xBEEF)
            assert held.read_register("x1") == 0xBEEF
            word = (0xFEED).to_bytes(8, "little")
            if waiting:
                held.write_ipa(mailbox, word)
            else:
                held.release(writes=[(mailbox, word)])
        seen.append(held.event)

    code, stderr = lockstep.run(handler, hold=(Kind.DOORBELL,))
    assert code == 0, stderr
    at = next(i for i, event in enumerate(seen) if event.kind == Kind.DOORBELL)
    assert seen[at].regs[0] == DOORBELL
    assert seen[at + 1].kind == Kind.GUEST_CALL and seen[at + 1].regs[1:3] == (0xBEEF, 0xFEED)


def test_a_return_from_el3_can_be_changed(lockstep: Lockstep) -> None:
    """Fault injection: what the consumer writes at EL3's return is what the guest gets."""
    answers: list[tuple[int, int]] = []

    def handler(held: Held) -> None:
        if held.event.kind == Kind.EL3_RETURN and held.event.regs[0] == 0x384FB3E0:
            held.write_register("x0", 0xABAD1DEA)
        if held.event.kind == Kind.GUEST_RETURN:
            answers.append((held.event.parent, held.event.regs[0]))

    code, stderr = lockstep.run(handler, hold=(Kind.EL3_RETURN,))
    assert code == 0, stderr
    assert answers[0][1] == 0xABAD1DEA and 0x384FB3E0 not in [x0 for _, x0 in answers]


def test_a_released_vcpu_can_be_delayed(lockstep: Lockstep) -> None:
    times: list[int] = []

    def handler(held: Held) -> None:
        times.append(held.event.time_ns)
        held.release(0.2 if len(times) == 1 else 0.0)

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert times[1] - times[0] >= 200_000_000 > times[2] - times[1]


def test_the_plugins_walk_is_the_walk_of_the_architecture(lockstep: Lockstep) -> None:
    checked = 0

    def handler(held: Held) -> None:
        nonlocal checked
        if held.event.kind != Kind.GUEST_CALL or checked:
            return
        vttbr, vtcr = held.read_register("VTTBR_EL2"), held.read_register("VTCR_EL2")
        for ipa in (ARG, LIST + 8, READONLY, MMIO, 0x4000_1234, 0, 0x8020_0000, 0x8000_5000, 1 << 39):
            mine = stage2(lambda at: int.from_bytes(held.read(Space.MA, at, 8), "little"), vttbr, vtcr, ipa)
            plugin = held.translate(ipa)
            assert (plugin.ma, plugin.pte) == (mine.ma, mine.pte)
            checked += 1

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert checked == 9


def test_requests_that_cannot_be_met_say_why_and_hurt_nobody(lockstep: Lockstep) -> None:
    refused: list[str] = []

    def handler(held: Held) -> None:
        if refused:
            return
        for request in (
            lambda: held.read_register("x99"),
            lambda: held.read_ipa(0x8020_0000, 8),
            lambda: held.read_ipa(MMIO, 8),  # device memory: reading has side effects
            lambda: held.read(Space.MA, 0x0E10_0000, 8),  # secure RAM
            lambda: held.read(Space.MA, ARG, 2 << 20),
        ):
            with pytest.raises(TraceError) as caught:
                request()
            refused.append(caught.value.what)

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert [text.split(": ")[1][:20] for text in refused] == [
        "no such register, or",
        "the address is not m",
        "the address is not m",
        "the memory there can",
        "the plugin does not ",
    ]


@pytest.mark.parametrize(("stop", "text"), [(True, "stopping the board"), (False, "the board goes on without it")])
def test_a_consumer_that_dies_never_hangs_the_board(lockstep: Lockstep, stop: bool, text: str) -> None:
    path = lockstep.bench.folder / f"died{stop}.mct"

    def handler(held: Held) -> None:
        if held.event.seq > 20:
            raise ZeroDivisionError

    errors: list[str] = []
    with LiveConsumer(lockstep.socket, hold=CALLS) as consumer:
        options = PluginOptions(out=path, lockstep=lockstep.socket, stop_on_loss=stop)
        board = lockstep.bench.start(options, rounds=10_000_000 if stop else 50)
        consumer.accept(IDLE_S)
        with pytest.raises(ZeroDivisionError):
            consumer.serve(handler)
        errors.append(board.communicate(timeout=IDLE_S)[1])
    assert "the lock-step consumer is gone: it closed its socket" in errors[0] and text in errors[0]
    reader = Reader(path)
    assert sum(1 for _ in reader.events()) > 21 and reader.segments[0].complete  # recording went on to the end


def test_a_silent_consumer_is_given_up(lockstep: Lockstep) -> None:
    with LiveConsumer(lockstep.socket, hold=CALLS) as consumer:
        options = PluginOptions(lockstep=lockstep.socket, timeout_s=0.3)
        board = lockstep.bench.start(options, rounds=10_000_000)
        consumer.accept(IDLE_S)
        next(consumer.events())
        stderr = board.communicate(timeout=IDLE_S)[1]
    assert "the lock-step consumer is gone: no answer in time; stopping the board" in stderr


def test_a_consumer_may_leave_or_stop_the_board(lockstep: Lockstep) -> None:
    code, stderr = lockstep.run(lambda held: held.detach(), hold=CALLS, rounds=20)
    assert code == 0 and "gone" not in stderr
    stopped = threading.Event()

    def stop(held: Held) -> None:
        if held.waiting and not stopped.is_set():
            stopped.set()
            held.stop()

    stderr = lockstep.run(stop, hold=CALLS, rounds=10_000_000)[1]
    assert "the lock-step consumer asked for it; stopping the board" in stderr


def test_another_qemu_is_refused_with_the_reason(bench: Bench) -> None:
    """The plugin's own check, called the way a QEMU with plugin API 4 would."""
    script = """
import ctypes, sys
class System(ctypes.Structure): _fields_ = [("smp", ctypes.c_int), ("max", ctypes.c_int)]
class Info(ctypes.Structure):
    _fields_ = [("target", ctypes.c_char_p), ("min", ctypes.c_int), ("cur", ctypes.c_int), ("system",
    ctypes.c_bool),
                ("cpus", System)]
plugin = ctypes.CDLL(sys.argv[1], mode=1)  # RTLD_LAZY: QEMU's functions are not here
info = Info(b"aarch64", 2, 4, True, System(1, 1))
sys.exit(10 + plugin.qemu_plugin_install(ctypes.c_uint64(1), ctypes.byref(info), 0, None))
"""
    command = ["python3", "-c", script, str(bench.plugin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert "made for QEMU plugin API 7, this QEMU offers 2 to 4" in done.stderr

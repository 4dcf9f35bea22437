# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU without Xen: a few instructions in the secure flash print a line, and then things go wrong.

``MEDCHECK_TEST_QEMU`` (a command line) replaces the pinned QEMU.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from framework.board.board import Board
from framework.board.janitor import Janitor
from framework.board.qemu import Bundle, Ram
from framework.board.spec import BoardSpec
from framework.common.errors import BoardError, GuestCrash
from framework.common.host_speed import host_factor
from framework.diagnosis.hang import watch
from testcases.unit.board.processes import gone

pytestmark = pytest.mark.artifacts

# One CPU: without firmware that parks the others, each would print.
SPEC = replace(BoardSpec.load("default"), smp=1)
HELLO = b"hello from the board\r\n"
PANIC = b"(XEN) Panic on CPU 0:\r\n(XEN) of a test\r\n"


@dataclass(frozen=True)
class Files:
    """A stack of next to nothing."""

    qemu: Bundle
    flash: Path
    xen: Path
    kernel: Path
    dom0_ramdisk: Path


class GivenQemu:
    """A QEMU that the user names."""

    def __init__(self, command: str) -> None:
        self._command = command

    def argv(self, program: str = "qemu-system-aarch64") -> list[str]:
        """Return the command line."""
        assert program == "qemu-system-aarch64"
        return shlex.split(self._command)


def payload(text: bytes) -> bytes:
    """Code for the secure flash: print ``text`` on the first UART, then wait for ever."""
    code = [
        0xD2A12000,  # movz x0, #0x900, lsl #16   the first pl011
        0x100000E1,  # adr  x1, text
        0x38401422,  # ldrb w2, [x1], #1
        0x34000062,  # cbz  w2, done
        0xB9000002,  # str  w2, [x0]
        0x17FFFFFD,  # b    ldrb
        0xD503207F,  # wfi                        done
        0x17FFFFFF,  # b    wfi
    ]
    return struct.pack(f"<{len(code)}I", *code) + text + b"\0"


@pytest.fixture(scope="session")
def emulator() -> Bundle:
    given = os.environ.get("MEDCHECK_TEST_QEMU")
    if given:
        return GivenQemu(given)
    from framework.artifacts.cache import BuildCache
    from framework.artifacts.lock import Lock
    from framework.artifacts.qemu_bundle import qemu_bundle
    from framework.common.paths import cache_root
    from framework.target.stack import open_store

    store = open_store(offline=os.environ.get("MEDCHECK_OFFLINE") == "1")
    return qemu_bundle(store, Lock.load(), BuildCache(cache_root()))


@pytest.fixture
def make(emulator: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Board]]:
    """Make boards with a text to print; whatever is left of them is ended, and then nothing may be left."""
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    boards: list[Board] = []

    def make_board(text: bytes = HELLO, **options: object) -> Board:
        folder = tmp_path / f"board{len(boards)}"
        folder.mkdir()
        files = Files(emulator, *(folder / name for name in ("flash", "xen", "kernel", "ramdisk")))
        for path in (files.xen, files.kernel, files.dom0_ramdisk):
            path.write_bytes(b"nothing")
        files.flash.write_bytes(payload(text))
        os.truncate(files.flash, 64 << 20)
        board = watch(Board(SPEC, files, folder / "run", **options))  # type: ignore[arg-type]
        boards.append(board)
        return board

    yield make_board
    for board in boards:
        board.kill()
    ids = {board.id for board in boards}
    assert [str(item) for item in Janitor().orphans() if item.board_id in ids] == []
    assert Janitor().boards() == []


Make = Callable[..., Board]


def test_first_byte_after_power_on_is_not_lost(make: Make) -> None:
    with make() as board:
        board.consoles["xen"].expect(rb"\n", idle_timeout=10)
        assert board.consoles["xen"].before + b"\n" == HELLO
        log = board.consoles["xen"].log.read_bytes()
    assert re.fullmatch(rb"\[ +\d\.\d{3}\] hello from the board\r\n", log)
    assert sorted(board.consoles) == ["dom0", "guest0", "guest1", "guest2", "optee", "xen"]


def test_monitor_and_forwarded_port(make: Make) -> None:
    with make() as board:
        assert board.qmp.execute("query-status")["status"] == "running"
        assert 1024 <= board.ssh_port <= 65535
        with pytest.raises(BoardError, match="QEMU refused no-such-command"):
            board.qmp.execute("no-such-command")


def test_stop_is_orderly_and_may_be_repeated(make: Make) -> None:
    board = make().start()
    pid, supervisor = board.pid, board.supervisor_pid
    board.stop()
    board.stop()
    assert board.exit_code == 0
    assert not board.alive
    assert gone(pid, 0) and gone(supervisor, 0)
    with pytest.raises(BoardError, match="the board was stopped"):
        board.consoles["xen"].expect(b"never", idle_timeout=60)


def test_qemu_killed_from_outside_is_told_at_once_and_by_its_signal(make: Make) -> None:
    board = make().start()
    board.consoles["xen"].expect(HELLO[:5], idle_timeout=10)
    os.kill(board.pid, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(BoardError, match=r"the board died: QEMU was ended by signal 9 \(SIGKILL\)"):
        board.consoles["dom0"].expect(b"never", idle_timeout=600)
    assert time.monotonic() - begin < 5
    with pytest.raises(BoardError):
        board.qmp.execute("query-status")
    assert board.exit_code == -9


def test_end_of_its_own_accord_is_told_with_the_reason(make: Make) -> None:
    board = make().start()
    board.qmp.execute("system_reset")
    with pytest.raises(BoardError, match=r"QEMU ended with exit status 0 \(host-qmp-system-reset\)"):
        board.consoles["dom0"].expect(b"never", idle_timeout=600)


def test_supervisor_killed_takes_qemu_with_it(make: Make) -> None:
    board = make().start()
    pid = board.pid
    os.kill(board.supervisor_pid, signal.SIGKILL)
    assert gone(pid)
    with pytest.raises(BoardError, match="supervisor ended without a word"):
        board.consoles["xen"].expect(b"never", idle_timeout=600)
    board.kill()
    # The supervisor could not remove the entry; the owner is this process, so it is not the janitor's either.
    entry = Path(os.environ["MEDCHECK_CACHE"]) / "boards" / f"{board.id}.json"
    assert not entry.exists()


def test_owner_killed_takes_qemu_with_it(make: Make, tmp_path: Path) -> None:
    board = make()
    script = f"""
import sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from framework.board.board import Board
from testcases.integration.test_board_process import SPEC, Files, GivenQemu
folder = Path({str(tmp_path / "board0")!r})
parts = (folder / name for name in ("flash", "xen", "kernel", "ramdisk"))
files = Files(GivenQemu({shlex.join(board.stack.qemu.argv())!r}), *parts)
board = Board(SPEC, files, folder / "run").start()
print(board.pid, board.supervisor_pid, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    processes = [int(word) for word in owner.stdout.readline().split()]
    assert len(processes) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert all(gone(pid) for pid in processes)


def test_command_line_that_qemu_refuses_is_quoted(make: Make) -> None:
    board = make(extra_args=["-device", "no-such-device"])
    with pytest.raises(BoardError, match=r"exit status 1(.|\n)*no-such-device"):
        board.start()


def test_machine_that_qemu_does_not_know_is_quoted(make: Make) -> None:
    board = make()
    board.spec = replace(SPEC, cpu="cortex-a1")
    with pytest.raises(BoardError, match="cortex-a1"):
        board.start()


def test_panic_of_xen_is_a_crash_for_everyone_who_waits(make: Make) -> None:
    seen = []
    board = make(PANIC)
    board.on_problem(seen.append)
    board.start()
    with pytest.raises(GuestCrash, match=r"xen-panic: \(XEN\) Panic on CPU 0:"):
        board.consoles["dom0"].expect(b"never", idle_timeout=60)
    assert [(problem.kind, problem.console) for problem in seen] == [("xen-panic", "xen")]
    assert board.problems == seen


def silence(board: Board) -> str:
    """What the error says of a wait that expires after 2 s (scaled)."""
    with pytest.raises(BoardError) as caught:
        board.consoles["dom0"].expect(b"never", idle_timeout=2)
    return str(caught.value)


def test_a_cpu_that_would_sleep_for_ever_is_noticed(make: Make) -> None:
    with make() as board:
        board.consoles["xen"].expect(HELLO, idle_timeout=10)
        said = silence(board)
    assert "\n    hung: every CPU sleeps, and nothing woke one, not even a timer; stood still for" in said
    assert re.search(r"CPU 0 at 0x1c: in the firmware \(EL3\)\n    all registers: .*/run/hang.txt\n", said)
    written = (board.run_dir / "hang.txt").read_text()
    assert "PC=000000000000001c" in written
    assert "QEMU's state: running" in written


def test_a_board_that_sleeps_for_ever_is_not_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.diagnosis.hang._FOREVER_SECONDS", 2.0)
    monkeypatch.setattr("framework.console.wait_policy._SAMPLE_SECONDS", 1.0)
    with make() as board:
        board.consoles["xen"].expect(HELLO, idle_timeout=10)
        with pytest.raises(BoardError, match="every CPU sleeps, and nothing woke one"):
            board.consoles["dom0"].expect(b"never", idle_timeout=600)
        assert board.alive


def test_a_cpu_that_spins_is_slow_and_its_place_is_named(make: Make) -> None:
    board = make()
    with board.stack.flash.open("r+b") as flash:
        flash.seek(24)
        assert flash.read(4) == struct.pack("<I", 0xD503_207F)  # wfi
        flash.seek(24)
        flash.write(struct.pack("<I", 0x1400_0000))  # b .
    with board:
        said = silence(board)
    assert "\n    slow: code is executed (CPU 0 for " in said
    assert "CPU 0 at 0x18: in the firmware (EL3), 5 times in a row" in said


def test_a_qemu_that_a_signal_has_stopped_is_named_at_once(make: Make) -> None:
    with make() as board:
        board.consoles["xen"].expect(HELLO, idle_timeout=10)
        os.kill(board.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            assert "\n    hung: a signal has stopped QEMU itself" in silence(board)
            assert time.monotonic() - begin < 3 * host_factor()
        finally:
            os.kill(board.pid, signal.SIGCONT)


def test_a_board_that_dies_while_somebody_looks_into_its_silence_is_dead_not_hung(make: Make) -> None:
    with make() as board:
        asked = board.qmp.execute

        def die_first(command: str, /, **arguments: object) -> object:
            os.kill(board.pid, signal.SIGKILL)
            return asked(command, **arguments)

        board.qmp.execute = die_first  # type: ignore[method-assign,assignment]
        said = silence(board)
    assert "QEMU was ended by signal 9 (SIGKILL)" in said
    assert "it happened while waiting for 'never'" in said
    assert not (board.run_dir / "hang.txt").exists()


def test_board_may_be_killed_from_a_callback(make: Make) -> None:
    board = make(PANIC)
    board.on_problem(lambda _problem: board.kill())
    board.start()
    with pytest.raises((BoardError, GuestCrash)):
        board.consoles["dom0"].expect(b"never", idle_timeout=600)
    assert gone(board.pid)
    board.kill()
    assert not board.alive


def test_qemu_has_no_privilege(make: Make) -> None:
    with make() as board:
        status = Path(f"/proc/{board.pid}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


@pytest.mark.parametrize("keep", [True, False])
def test_ram_in_a_file_is_kept_or_removed(make: Make, tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "ram"
    with make(ram=Ram(path, keep=keep)) as board:
        board.consoles["xen"].expect(HELLO[:5], idle_timeout=10)
        assert path.stat().st_size == SPEC.memory_mib << 20
    assert path.exists() == keep


def test_saved_board_continues_in_a_clone(make: Make, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    state = tmp_path / "state"
    ignore_shared = [{"capability": "x-ignore-shared", "state": True}]
    with make(ram=Ram(ram)) as board:
        board.consoles["xen"].expect(HELLO[:5], idle_timeout=10)
        board.qmp.execute("stop")
        board.qmp.execute("migrate-set-capabilities", capabilities=ignore_shared)
        with state.open("wb") as stream:
            board.qmp.execute("migrate", uri=f"file:{board.qmp.add_fd(stream.fileno())}")
        while board.qmp.execute("query-migrate")["status"] not in ("completed", "failed"):
            time.sleep(0.02)
        assert board.qmp.execute("query-migrate")["status"] == "completed"
    with make(ram=Ram(ram, share=False), incoming=True) as clone:
        clone.qmp.execute("migrate-set-capabilities", capabilities=ignore_shared)
        with state.open("rb") as stream:
            clone.qmp.execute("migrate-incoming", uri=f"file:{clone.qmp.add_fd(stream.fileno())}")
        while clone.qmp.execute("query-migrate").get("status") not in ("completed", "failed"):
            time.sleep(0.02)
        clone.resume()
        assert clone.qmp.execute("query-status")["status"] == "running"
        registers = clone.qmp.hmp("info registers")
    assert "PC=000000000000001c" in registers or "PC=000000000000001c" in registers

# SPDX-License-Identifier: GPL-2.0-or-later
"""A running board: QEMU, its consoles, its monitor.

Starts, observes and ends one; it never outlives this process.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from framework.artifacts.xen_image import arguments_for
from framework.board import devicetree, janitor, qemu
from framework.board.icount import unpin_threads
from framework.board.process import Job, QemuProcess
from framework.board.qemu import BoardFiles, Ram
from framework.board.qmp import Qmp
from framework.board.spec import BoardSpec, check_load_map
from framework.common import safe_files
from framework.common.errors import BoardError, MedcheckError
from framework.common.host_speed import host_factor
from framework.console.console import Console
from framework.console.crash_signatures import CrashSignature
from framework.console.problems import Problem, ProblemLog
from framework.console.reader_thread import ConsoleReader
from framework.console.wait_policy import OnSilence

_QUIT_SECONDS = 5.0
_KILL_SECONDS = 60.0
_SOCKET_BUFFER = 4 << 20
EARLIER_BYTES = 4 << 20
"""Bytes of a saved board's console log that are copied into a clone's; a boot prints less than a tenth of it."""
_FILE_BYTES = 8 << 30
"""Bytes that QEMU may write to a file: more than the trace plugin writes; a saved board's RAM comes on top."""

_counter = itertools.count()


@dataclass(frozen=True)
class RestoredFrom:
    """History of a board that was restored from a saved one: ``logs`` is the folder with its consoles' logs,
    ``uptime`` the seconds since power-on, ``origin`` what it was saved as."""

    logs: Path
    uptime: float
    origin: str

    def begin_log(self, console: str, log: Path) -> None:
        """Write a console's log up to where the board was saved, and a line that says so."""
        earlier = self.logs / f"{console}.log"
        text = safe_files.tail(earlier, EARLIER_BYTES)
        if len(text) == EARLIER_BYTES:
            text = b"---- the beginning is in %s ----\n" % os.fsencode(earlier) + text.partition(b"\n")[2]
        if text and not text.endswith(b"\n"):
            text += b"\n"
        safe_files.write(log, text + b"[%10.3f] ---- restored from %s ----\n" % (self.uptime, self.origin.encode()))


class Board:
    """One board. ``start()`` returns with the board powered on (or, with ``incoming``, waiting to be filled).

    ``run_dir`` receives ``qemu.log``, ``qemu.cmdline``, ``board.dtb``, ``consoles/*.log`` and, when a wait
    expired, ``hang.txt``. It stays; throwing it away is the caller's choice.
    ``incoming`` makes a clone: no files are loaded, QEMU runs with ``-incoming defer`` and stays paused until
    the caller has filled it over :attr:`qmp` and calls :meth:`resume`; ``past`` is what its consoles printed before;
    their logs continue it. ``ram`` puts guest RAM into a file. ``plugin`` is a TCG plugin to load and
    ``plugin_args`` its ``key=value`` arguments; ``pass_fds`` are inherited by QEMU under the same numbers.
    ``outputs`` are files that QEMU or its plugin writes, and sockets it connects to: QEMU runs as a user of its
    own when medcheck is root, so they are made beforehand, given to it, and taken back when it ends. ``run_as``:
    ``auto`` is such a user, ``keep`` that of medcheck without any capability, a number another uid.
    ``icount``: see :mod:`framework.board.icount`.
    """

    def __init__(
        self,
        spec: BoardSpec,
        stack: BoardFiles,
        run_dir: Path,
        *,
        plugin: Path | None = None,
        plugin_args: Sequence[str] = (),
        ram: Ram | Path | None = None,
        incoming: bool = False,
        past: RestoredFrom | None = None,
        run_as: str | int = "auto",
        extra_args: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        outputs: Sequence[Path] = (),
        icount: bool = False,
    ) -> None:
        self.spec = spec
        self.stack = stack
        self.run_dir = run_dir.absolute()
        self.id = janitor.new_board_id(next(_counter))
        self.consoles: dict[str, Console] = {}
        self.problem_log = ProblemLog()
        self.problems: list[Problem] = self.problem_log.kept
        self.ram = Ram(ram) if isinstance(ram, Path) else ram
        self._plugin = plugin
        self._plugin_args = tuple(plugin_args)
        self._incoming = incoming
        self._past = past
        self._run_as = run_as
        self._extra_args = tuple(extra_args)
        self._pass_fds = tuple(pass_fds)
        self.on_silence: OnSilence | None = None
        """Called while a wait on this board's consoles sees nothing; set it before :meth:`start`."""
        self.in_lockstep = any(argument.startswith("lockstep=") for argument in plugin_args)
        self.outputs = tuple(outputs)
        self.icount = icount
        self._problem_callbacks: list[Callable[[Problem], None]] = []
        self._power_on = time.monotonic() - self._earlier
        self._wanted_end = False
        self._process: QemuProcess | None = None
        self._reader: ConsoleReader | None = None
        self._qmp: Qmp | None = None
        self._ssh_port: int | None = None
        self._ending = threading.Lock()

    # Life and death

    def start(self) -> Board:
        """Start QEMU, connect everything, power on.

        Raises BoardError with QEMU's own words when that fails.
        """
        if self._process is not None:
            raise BoardError("a board starts once", where=f"board {self.spec.name}", hint="make a new Board")
        for folder in (self.run_dir, self.run_dir / "consoles", *(path.parent for path in self.outputs)):
            safe_files.make_own(folder)
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def __enter__(self) -> Board:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.pid is not None and not self._process.ended.is_set()

    def ends_within(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for QEMU's end; return whether it has ended."""
        return self._running().ended.wait(seconds)

    @property
    def ending(self) -> str:
        """Text that says how QEMU ended, or that it runs."""
        return "the board was not started" if self._process is None else self._process.ending

    @property
    def exit_code(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs and when it is not known."""
        return None if self._process is None else self._process.exit_code

    @property
    def pid(self) -> int:
        """QEMU's pid."""
        return self._running().wait_started()

    @property
    def supervisor_pid(self) -> int:
        """The pid of QEMU's supervisor."""
        return self._running().supervisor_pid

    def stop(self) -> None:
        """End the board in an orderly way, by force if QEMU does not go; may be called twice and on a dead
        board."""
        self._wanted_end = True
        process = self._process
        if process is not None and self._qmp is not None and not process.ended.is_set():
            try:
                if self.icount:
                    unpin_threads(self.pid)
                self._qmp.execute("quit", answer_seconds=_QUIT_SECONDS)
            except BoardError:
                # QEMU may close the connection before its answer is read; below is seen whether it goes.
                pass
            process.ended.wait(_QUIT_SECONDS * host_factor())
        self.kill()

    def kill(self) -> None:
        """End the board at once and wait until it is gone; may be called twice and on a dead board.

        Called from the console reader thread, it only requests the end: that thread itself has to complete it.
        """
        self._wanted_end = True
        if self._reader is not None and self._reader.is_current:
            self._running().kill()
            return
        with self._ending:
            process = self._process
            if process is not None:
                process.kill()
                if not process.ended.wait(_KILL_SECONDS * host_factor()):
                    raise BoardError(f"QEMU (pid {process.pid}) does not die", where=str(self.run_dir))
            if self._qmp is not None:
                self._qmp.close()
            if self._reader is not None:
                self._reader.stop()
            for console in self.consoles.values():
                console.close(self.death())

    @property
    def remarks(self) -> list[str]:
        """Remarks for the user about how this board runs: that its QEMU is root, and why."""
        walls = None if self._process is None else self._process.walls
        return [f"QEMU runs as root (uid 0, without capabilities): {walls.lack}"] if walls and walls.lack else []

    def death(self) -> MedcheckError:
        """Return the error that says how this board ended."""
        if self._wanted_end:
            return BoardError("the board was stopped", where=f"board {self.spec.name}")
        tail = "" if self._process is None else "\n" + self._process.log_tail()
        return BoardError(
            f"the board died: {self.ending}{self._reason()}; QEMU said:{tail}",
            where=f"board {self.spec.name}",
            hint=f"its logs are in {self.run_dir}",
        )

    def _reason(self) -> str:
        """Reason that QEMU gave for its end, if it had the time to."""
        events = [] if self._qmp is None else self._qmp.events()
        reasons = [event["data"]["reason"] for event in events if event["event"] == "SHUTDOWN"]
        return f" ({reasons[-1]})" if reasons else ""

    def resume(self) -> None:
        """Let the virtual CPUs run; the first time, this is power-on and the clock of the consoles begins.

        The clock of a clone goes on from where its snapshot was saved.
        """
        self._power_on = time.monotonic() - self._earlier
        self.qmp.execute("cont")

    # What to do with a board

    @property
    def qmp(self) -> Qmp:
        """The monitor. Raises BoardError when the board was not started."""
        if self._qmp is None:
            raise BoardError("the board was not started", where=f"board {self.spec.name}")
        return self._qmp

    @property
    def ssh_port(self) -> int:
        """The TCP port on 127.0.0.1 that leads to dom0's port 22."""
        if self._ssh_port is None:
            self._ssh_port = self._forwarded_port()
        return self._ssh_port

    @property
    def uptime(self) -> float:
        """Seconds of wall time since power-on."""
        return time.monotonic() - self._power_on

    @property
    def _earlier(self) -> float:
        return 0.0 if self._past is None else self._past.uptime

    def on_problem(self, callback: Callable[[Problem], None]) -> None:
        """Call ``callback`` (from the console reader thread, so be quick) for each problem from now on."""
        self._problem_callbacks.append(callback)

    def alarm(self, error: MedcheckError) -> None:
        """Make every wait on a console of this board raise ``error``."""
        for console in self.consoles.values():
            console.alarm(error)

    # How it starts

    def _start(self) -> None:
        host_factor()
        names = qemu.console_names(self.spec)
        pairs = {name: _socket_pair() for name in [*names, "qmp"]}
        theirs = {name: pair[1] for name, pair in pairs.items()}
        self._reader = ConsoleReader(self.id)
        for name in names:
            log = self.run_dir / "consoles" / f"{name}.log"
            if self._past is not None:
                self._past.begin_log(name, log)
            console = Console(name, pairs[name][0], log, lambda: self.uptime, append=self._past is not None)
            console.on_signature(self._on_signature)
            if self.on_silence is not None:
                console.on_silence(self.on_silence)
            self.consoles[name] = console
            self._reader.add(console)
        self._qmp = Qmp(self.id, pairs["qmp"][0])
        try:
            self._process = QemuProcess(self._job({name: end.fileno() for name, end in theirs.items()}))
        finally:
            for end in theirs.values():
                end.close()
        self._reader.add_other(self._process.status_fd, self._on_status)
        self._reader.start()
        self._process.wait_started()
        try:
            self._qmp.connect()
            _ = self.ssh_port
        except BoardError:
            # A command line that QEMU refuses shows as a closed monitor first, and as its reason a moment
            # later.
            if self._process.ended.wait(1.0):
                raise self.death() from None
            raise
        if not self._incoming:
            self.resume()

    def _job(self, fds: dict[str, int]) -> Job:
        spec, files = self.spec, self.stack
        argv = [*files.qemu.argv(), *qemu.common_argv(self.id, icount=self.icount)]
        argv += [*qemu.machine_argv(spec, self.ram), *qemu.flash_argv(files)]
        if self._incoming:
            argv += ["-incoming", "defer"]
        else:
            argv += qemu.boot_argv(spec, files, self._write_tree())
        argv += qemu.device_argv(spec, fds)
        argv += qemu.plugin_argv(self._plugin, self._plugin_args)
        argv += self._extra_args
        boot = [files.xen, files.kernel, files.dom0_ramdisk, self.run_dir / "board.dtb"]
        read = [*qemu.program_files(files.qemu.argv()), files.flash, *([] if self._incoming else boot)]
        read += [] if self._plugin is None else [self._plugin]
        write = [*self.outputs]
        if self.ram is not None:
            (write if self.ram.share else read).append(self.ram.path)
        for path in self.outputs:
            _make_file(path)
        if self.ram is not None and self.ram.share:
            # A board from power-on begins with empty RAM, whatever an earlier one left in the file.
            if not self._incoming:
                self.ram.path.unlink(missing_ok=True)
            _make_file(self.ram.path, 0o600, spec.memory_mib << 20)
        temporary = [self.ram.path] if self.ram is not None and not self.ram.keep else []
        entry = janitor.write_entry(self.id, temporary, self.run_dir)
        safe_files.write(self.run_dir / "qemu.cmdline", ("\n".join(argv) + "\n").encode())
        return Job(
            argv, [*fds.values(), *self._pass_fds], self._run_as, self.run_dir / "qemu.log", entry, temporary,
            [path.absolute() for path in read], [path.absolute() for path in write],
            _FILE_BYTES + (spec.memory_mib << 20),
        )  # fmt: skip

    def _write_tree(self) -> Path:
        spec, files = self.spec, self.stack
        sizes = {
            "xen": files.xen.stat().st_size,
            "dom0_kernel": files.kernel.stat().st_size,
            "dom0_ramdisk": files.dom0_ramdisk.stat().st_size,
        }
        check_load_map(spec, sizes)
        raw = devicetree.dump(tuple(files.qemu.argv()), spec.machine, spec.cpu, spec.smp, spec.memory_mib)
        modules = [
            devicetree.Module("kernel", spec.load_map.dom0_kernel, sizes["dom0_kernel"]),
            devicetree.Module("ramdisk", spec.load_map.dom0_ramdisk, sizes["dom0_ramdisk"]),
        ]
        path = self.run_dir / "board.dtb"
        safe_files.write(path, devicetree.edit(raw, spec.with_xen_args(arguments_for(files.xen)), modules))
        return path

    def _forwarded_port(self) -> int:
        text = self.qmp.hmp("info usernet")
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b", text)
        if match is None:
            raise BoardError(f"QEMU forwards no port to dom0:\n{text}", where=f"board {self.spec.name}")
        return int(match[1])

    def _running(self) -> QemuProcess:
        if self._process is None:
            raise BoardError("the board was not started", where=f"board {self.spec.name}")
        return self._process

    # In the console reader thread

    def _on_status(self) -> bool:
        process = self._running()
        if process.read_status():
            return True
        assert self._reader is not None
        self._reader.read_rest()
        for console in self.consoles.values():
            console.close(self.death())
        return False

    def _on_signature(self, console: Console, signature: CrashSignature, line: bytes) -> None:
        problem, kept = self.problem_log.add(console.name, signature, line, self.uptime)
        if signature.fatal and kept:
            self.alarm(problem.crash())
        for callback in tuple(self._problem_callbacks) if kept else ():
            callback(problem)


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel without a file or a name: nothing to collide with and nothing to clean up."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        try:
            # A byte sent alone costs the sender's buffer some 700: the default holds fewer than 300 of them.
            end.setsockopt(socket.SOL_SOCKET, 32, _SOCKET_BUFFER)  # SO_SNDBUFFORCE, Linux asm-generic/socket.h
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    return ours, theirs


def _make_file(path: Path, mode: int = 0o644, size: int | None = None) -> None:
    """Make sure that a file is there for QEMU to write, of this size if one is given; a socket stays as it is."""
    if not path.is_socket():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            if size is not None:
                os.truncate(fd, size)
        finally:
            os.close(fd)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Hang diagnosis: classify a silent board as hung, idle or slow from console, trace and vCPU activity.

Three things move on a board: bytes on consoles, recorded SMCs (the trace file grows within a tenth of a second), and
its CPUs. What a virtual CPU executes shows as CPU time of its thread in QEMU, in nanoseconds; one that waits for an
interrupt sleeps, and each interrupt, its own timers' included, wakes it. So a CPU that neither ran nor was woken has
nothing that will ever wake it, short of input from outside.

A sample reads a few files below /proc; QEMU is asked only when a wait has expired.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from framework.board.board import Board
from framework.board.icount import unpin_threads
from framework.common.errors import BoardError
from framework.common.host_speed import host_factor
from framework.diagnosis.cpu_location import CpuLocation, Names, parse
from framework.diagnosis.kallsyms import LinuxNames

REPORT = "hang.txt"
"""The file in a board's run folder with all that was seen, registers included; of the last wait that expired."""

_PROC = Path("/proc")
_WORD = re.compile("0x[0-9a-f]{8}")
_WOKEN = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
_ANSWER_SECONDS = 3.0
"""Seconds that QEMU's monitor may take, scaled; it answers within milliseconds."""
_DEATH_SECONDS = 1.0
_FOREVER_SECONDS = 15.0
"""A board none of whose CPUs ran or was woken for so long (scaled) sleeps for ever: an idle Linux has timers that
run every second or so, and an idle board as a whole is woken a hundred times a second."""
_SAMPLES = 5
_IDLE_SECONDS = 0.5
"""Between two samples that decide whether CPUs have work: a shorter time is one of chance."""
_CODE_BYTES = 256
_SAMPLE_SECONDS = 0.02
_ASLEEP = 0.75
"""A CPU that sleeps for this part of the time waits for interrupts; an idle Linux sleeps for 98 %."""
_STARVED = 0.25
"""A CPU kept waiting for this part of the time by other programs of the host is slow for that reason alone."""


@dataclass(frozen=True)
class CpuActivity:
    """Activity of a virtual CPU's thread up to one point in time: ``ran`` and ``waited`` (for a CPU of the host)
    in seconds, and how often it was ``woken``."""

    ran: float
    waited: float
    woken: int


@dataclass(frozen=True)
class ActivitySample:
    """Activity of a board up to ``at`` (monotonic seconds): bytes per console, bytes of trace (None: no SMC
    is recorded), and what its CPUs did. ``frozen``: a signal has stopped QEMU itself."""

    at: float
    consoles: dict[str, int]
    trace: int | None
    cpus: dict[str, CpuActivity]
    frozen: bool = False


@dataclass(frozen=True)
class Verdict:
    """``word`` is ``hung``, ``idle``, ``slow`` or ``running``, ``reason`` a sentence; ``still`` names what stood
    still for ``seconds``, ``locations`` where each CPU is."""

    word: str
    reason: str
    still: tuple[str, ...]
    seconds: float
    locations: tuple[str, ...] = ()

    def __str__(self) -> str:
        still = ", ".join(self.still) or "nothing"
        lines = [f"{self.word}: {self.reason}; stood still for {self.seconds:.1f} s: {still}", *self.locations]
        return "\n    ".join(lines)


def sample(board: Board) -> ActivitySample:
    """Sample a board's activity without disturbing it or asking QEMU anything. Raises OSError when it is gone."""
    folder = _PROC / str(board.pid)
    cpus = {}
    for task in (folder / "task").iterdir():
        try:
            # Such as "CPU 0/TCG", or "ALL CPUs/TCG" where one thread runs them by turns.
            name, slash, _ = (task / "comm").read_text().partition("/")
            if slash and "CPU" in name:
                cpus[name] = _use(task)
        except (FileNotFoundError, ProcessLookupError):
            continue  # QEMU's helpers come and go.
    if not cpus:
        raise ProcessLookupError(f"QEMU (pid {board.pid}) has no CPUs any more")
    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    files = [path for path in board.outputs if path.is_file()]
    return ActivitySample(
        time.monotonic(),
        {name: console.bytes_seen for name, console in board.consoles.items()},
        sum(path.stat().st_size for path in files) if files else None,
        dict(sorted(cpus.items())),
        state in ("T", "t"),
    )


def still(before: ActivitySample, now: ActivitySample) -> tuple[str, ...]:
    """Name what stood still between two samples: ``consoles``, ``SMCs`` (only if they are recorded), ``CPU n``."""
    found = [] if now.consoles != before.consoles else ["consoles"]
    if now.trace is not None and now.trace == before.trace:
        found.append("SMCs")
    return (*found, *(name for name, use in between(before, now).items() if use.ran == 0 and use.woken == 0))


def rests(before: ActivitySample, now: ActivitySample) -> bool:
    """Whether nothing at all moved between two samples."""
    quiet = still(before, now)
    return all(name in quiet for name in now.cpus) and not _moved(before, now)


def judge(before: ActivitySample, now: ActivitySample, status: str | None) -> Verdict:
    """Decide from two samples and what QEMU says of itself (``status``, None: it does not answer)."""
    quiet = still(before, now)
    seconds = max(now.at - before.at, 1e-3)
    uses = between(before, now)
    moved = _moved(before, now)

    def verdict(word: str, reason: str) -> Verdict:
        return Verdict(word, reason, quiet, seconds)

    if now.frozen:
        return verdict("hung", "a signal has stopped QEMU itself")
    if status not in ("running", None):
        return verdict("hung", f"QEMU does not let the board run (its state is {status})")
    silent_qemu = "" if status else "; QEMU's monitor does not answer"
    if rests(before, now):
        return verdict("hung", f"every CPU sleeps, and nothing woke one, not even a timer{silent_qemu}")
    asleep = [name for name in uses if name in quiet]
    # One that sleeps for good beside others may be switched off; it may also wait for a timer that was lost.
    slept = f"; {', '.join(asleep)} slept all the while, and nothing woke it" if asleep else ""
    busy = _busy(before, now)
    load = ", ".join(f"{name} for {use.ran / seconds:.0%}" for name, use in busy.items())
    starved = [name for name, use in busy.items() if use.waited > _STARVED * seconds]
    host = f"; the host is busy with other things and lets {', '.join(starved)} wait" if starved else ""
    if moved:
        return verdict(
            "running", f"{moved}{f'; {load} of the time on a CPU' if load else ''}{host}{slept}{silent_qemu}"
        )
    if busy:
        silent = f"code is executed ({load} of the time) but nothing is printed: it is slow, or in a loop"
        return verdict("slow", f"{silent}{host}{slept}{silent_qemu}")
    wakes = sum(use.woken for use in uses.values()) / seconds
    return verdict("idle", f"all CPUs wait for an interrupt (woken {wakes:.0f} times a second){slept}{silent_qemu}")


_SKIPPED = "time in which no CPU works is skipped at the host's full speed, whose use tells nothing: see where they are"


def watch(board: Board) -> Board:
    """Give ``board`` a hang detector, which explains expired waits on its consoles, and return it; call it before the
    start."""
    board.on_silence = HangDetector(board)
    return board


class HangDetector:
    """Explains silence of a board's consoles and guests. May be called from several threads."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._last: ActivitySample | None = None
        self._since: ActivitySample | None = None
        """The first of the last samples between which nothing moved."""
        self._idle: tuple[ActivitySample, ActivitySample] | None = None
        """The first and the last of the last samples between which no SMC came and no CPU had work."""

    def sample(self) -> ActivitySample | None:
        """Take a sample; None if there is nothing to see any more."""
        try:
            now = sample(self._board)
        except (OSError, BoardError):
            return None
        with self._lock:
            self._last = now
            if self._since is None or not rests(self._since, now):
                self._since = now
        return now

    def hopeless(self) -> bool:
        """Whether the samples so far show a board that runs and sleeps for ever.

        A paused board does not run, and one whose SMCs are read in lock-step may be held by that reader.
        """
        with self._lock:
            since, last = self._since, self._last
        if since is None or last is None or last.at - since.at < _FOREVER_SECONDS * host_factor():
            return False
        if last.frozen or self._board.in_lockstep:
            return False
        try:
            return _status(self._board) == "running"
        except BoardError:
            return False

    def idle(self) -> float:
        """Return the seconds for which no SMC came and CPUs only waited for interrupts, up to now; 0 when there is
        nothing to see, and in lock-step, where the reader may be what they wait for. Unlike a board that
        :meth:`hopeless` speaks of, one with a hung program still has its timers."""
        if self._board.in_lockstep:
            return 0.0
        with self._lock:
            since, last = self._idle or (None, None)
            try:
                if last is None or time.monotonic() - last.at > _IDLE_SECONDS:
                    now = sample(self._board)
                    if since is None or last is None or now.trace != last.trace or _busy(last, now) or now.frozen:
                        since = now
                    last = now
            except (OSError, BoardError):
                self._idle = None
                return 0.0
            assert since is not None
            self._idle = since, last
            return last.at - since.at

    def explain(self, before: ActivitySample | None) -> str | None:
        """Explain why nothing came since ``before``, and write :data:`REPORT`; None when QEMU is gone.

        Never raises: failures to collect data are included in the report, and the wait's own error is not lost.
        """
        try:
            now = sample(self._board)
            if before is None:
                return "unknown: there was no earlier sample to compare with"
            with self._lock:
                if self._since is not None and rests(self._since, now):
                    before = self._since
            said = _Said() if now.frozen else _ask(self._board, before, now)
            # QEMU closes its monitor shortly before it is gone.
            if said.trouble and self._board.ends_within(_DEATH_SECONDS):
                return None
        except OSError:
            self._board.ends_within(_DEATH_SECONDS)
            return None
        except BoardError as error:
            return f"unknown: {error.what}"
        try:
            verdict, text = _conclude(self._board, before, now, said)
        except Exception as error:
            return f"unknown: the diagnosis failed: {error!r}"
        try:
            with self._writing:
                _write(self._board.run_dir / REPORT, text)
        except OSError as error:
            return f"{verdict}\n    ({REPORT} cannot be written: {error})"
        return f"{verdict}\n    all registers: {self._board.run_dir / REPORT}"


@dataclass
class _Said:
    """QEMU's answers: its state, its registers, once or more, memory around Linux' locations; or why it did not
    answer."""

    status: str | None = None
    dumps: list[str] = field(default_factory=list)
    code: dict[int, bytes] = field(default_factory=dict)
    trouble: str = ""


def _ask(board: Board, before: ActivitySample, now: ActivitySample) -> _Said:
    said = _Said()
    try:
        if board.icount:
            unpin_threads(board.pid)
        said.status = _status(board)
        for number in range(_SAMPLES if _busy(before, now) else 1):
            if number:
                # Nothing announces that a CPU has moved on.
                time.sleep(_SAMPLE_SECONDS)
            said.dumps.append(_monitor(board, "info registers -a"))
            for location in parse(said.dumps[-1]):
                if location.pc is not None and location.level == 1 and not location.secure:
                    begin = (location.pc - _CODE_BYTES // 2) & ~63
                    # While the CPU goes on this may fail, or show another program's memory: the names check it.
                    text = _monitor(board, f"x /{_CODE_BYTES // 4}wx {begin:#x}", location.cpu)
                    said.code[begin] = words(text)
    except BoardError as error:
        said.trouble = error.what
    return said


def words(text: str) -> bytes:
    """Return the memory that QEMU's ``x /Nwx`` shows; empty if it shows none."""
    found = [line.partition(":")[2].split() for line in text.replace("\r", "").splitlines()]
    numbers = [word for line in found for word in line if _WORD.fullmatch(word)]
    return b"".join(int(word, 16).to_bytes(4, "little") for word in numbers)


def _conclude(board: Board, before: ActivitySample, now: ActivitySample, said: _Said) -> tuple[Verdict, str]:
    found = judge(before, now, said.status)
    if board.icount and found.word in ("slow", "running"):
        found = replace(found, word="unknown", reason=_SKIPPED)
    linux = LinuxNames(board.stack.kernel)
    for address, code in said.code.items():
        linux.learn(address, code)
    names = Names(getattr(board.stack, "xen_syms", None), linux.name)  # Not every board has a Xen.
    seen = [parse(dump) for dump in said.dumps]
    busy = _busy(before, now)
    locations = [
        names.describe(location) + (_again(location, seen) if f"CPU {location.cpu}" in busy else "")
        for location in (seen[-1] if seen else [])
    ]
    if said.trouble:
        locations.append(f"the registers are not known: {said.trouble}")
    if board.in_lockstep and found.word == "hung":
        locations.append("its SMCs are read in lock-step: a CPU that seems to sleep may be held by the reader")
    verdict = Verdict(found.word, found.reason, found.still, found.seconds, tuple(locations))
    lines = [f"{board.uptime:.3f} s after power-on; time limits were scaled by {host_factor():.2f}"]
    lines += [str(verdict), "", f"in {found.seconds:.3f} s:"]
    lines += [f"    console {name}: {now.consoles[name] - count} bytes" for name, count in before.consoles.items()]
    trace = "not recorded" if now.trace is None else f"{now.trace - (before.trace or 0)} bytes of trace"
    lines.append(f"    SMCs: {trace}")
    for name, use in between(before, now).items():
        ran = f"ran {use.ran:.6f} s, waited for the host {use.waited:.6f} s"
        lines.append(f"    {name}: {ran}, woken {use.woken} times")
    lines += ["", f"QEMU's state: {said.status or 'unknown'}"]
    lines += [f"Linux's functions have no names: {linux.trouble}"] if linux.trouble else []
    for number, (dump, found_at) in enumerate(zip(said.dumps, seen, strict=True), start=1):
        lines += ["", f"sample {number} of {len(seen)}:"]
        for location in found_at:
            caller = names.caller(location)
            lines.append(names.describe(location) + (f"; X30 points to {caller}" if caller else ""))
        lines.append(dump.replace("\r", "").strip())
    return verdict, "\n".join(lines) + "\n"


def _again(location: CpuLocation, seen: list[list[CpuLocation]]) -> str:
    """Text that says that a CPU was at the same location each time; QEMU knows it to the last jump it had to look
    up."""
    counters = {other.pc for locations in seen for other in locations if other.cpu == location.cpu}
    return f", {len(seen)} times in a row" if len(seen) > 1 and len(counters) == 1 else ""


def _moved(before: ActivitySample, now: ActivitySample) -> str:
    """Text that says what moved beside CPUs."""
    printed = {name: now.consoles[name] - count for name, count in before.consoles.items()}
    found = [f"console {name} printed {count} bytes" for name, count in printed.items() if count]
    if now.trace is not None and now.trace != before.trace:
        found.append("SMCs were recorded")
    return ", ".join(found)


def _busy(before: ActivitySample, now: ActivitySample) -> dict[str, CpuActivity]:
    """The CPUs that did anything but wait for interrupts."""
    limit = (1 - _ASLEEP) * (now.at - before.at)
    return {name: use for name, use in between(before, now).items() if use.ran + use.waited > limit}


def between(before: ActivitySample, now: ActivitySample) -> dict[str, CpuActivity]:
    """Return what each CPU did between two samples; all it ever did for a CPU missing from the first."""
    nothing = CpuActivity(0.0, 0.0, 0)
    found = {}
    for name, use in now.cpus.items():
        past = before.cpus.get(name, nothing)
        found[name] = CpuActivity(use.ran - past.ran, use.waited - past.waited, use.woken - past.woken)
    return found


def _use(task: Path) -> CpuActivity:
    woken = _WOKEN.search((task / "status").read_text())
    try:
        # Nanoseconds run and waited: Documentation/scheduler/sched-stats.rst in Linux.
        ran, waited = (int(field) / 1e9 for field in (task / "schedstat").read_text().split()[:2])
    except FileNotFoundError:
        # A host without CONFIG_SCHED_INFO; see proc(5).
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ran, waited = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 0.0
    return CpuActivity(ran, waited, 0 if woken is None else int(woken[1]))


def _status(board: Board) -> str:
    return str(board.qmp.execute("query-status", answer_seconds=_ANSWER_SECONDS)["status"])


def _monitor(board: Board, line: str, cpu: int = 0) -> str:
    return str(
        board.qmp.execute("human-monitor-command", answer_seconds=_ANSWER_SECONDS, command_line=line, cpu_index=cpu)
    )


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    aside.rename(path)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost of watching: the same xtest cases on clones of one board, with a watcher and without.

A wiring is what watches: it gives the options of a board, and makes sure afterwards that it really watched. Each
sample is a ratio of wall-clock times of one pair, measured one right after the other and in turns with either
first, so that a host that slows down slows both.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts.cache import BuildCache
from framework.artifacts.stack import Stack
from framework.bench.context import Context
from framework.board.spec import BoardSpec
from framework.common.errors import InfrastructureError, TraceError
from framework.common.host_speed import host_factor
from framework.common.paths import cache_root
from framework.common.progress import Progress
from framework.conformance.live import JUDGED, LiveCheck
from framework.guests.xtest import run_xtest
from framework.snapshot.restore import clone
from framework.snapshot.store import SnapshotStore
from framework.target.checkpoints import READY, snapshot
from framework.target.stack import known_optee
from framework.target.target import Target
from framework.trace.build import PluginOptions, build_plugin, coverage_beside, xen_layout
from framework.trace.coverage import read_coverage
from framework.trace.format import Kind
from framework.trace.live import LiveConsumer
from framework.trace.optee_symbols import OpteeLayout
from framework.trace.reader import Reader
from framework.trace.senses import Sense
from framework.trace.xen_symbols import XenLayout

CASES = ("1001", "1002", "1004", "1005", "1012", "1016", "1017", "1025", "6001")
"""xtest cases that make all kinds of calls and RPCs, and compute little between them: the worst case for a watcher."""

PAIRS = 4
_WARM_UP = ("1001", "1004")
_CONNECT_S = 60.0
_JOIN_S = 60.0


@dataclass(frozen=True)
class Rig:
    """A snapshot of a board with its guests ready, and the plugin to watch its clones."""

    spec: BoardSpec
    stack: Stack
    snapshots: SnapshotStore
    plugin: Path
    layout: XenLayout | None
    optee: OpteeLayout | None = None

    def plugged(
        self, out: Path | None = None, lockstep: Path | None = None, senses: frozenset[Sense] = frozenset()
    ) -> dict[str, Any]:
        """Options of a board that the plugin watches."""
        options = PluginOptions(
            out=out, lockstep=lockstep, xen=self.layout, optee=self.optee, label="bench", senses=senses
        )
        return options.for_board(self.plugin)


Wiring = Callable[[Rig, Path], AbstractContextManager[dict[str, Any]]]


@contextmanager
def plain(_rig: Rig, _folder: Path) -> Iterator[dict[str, Any]]:
    """No watcher."""
    yield {}


@contextmanager
def traced(rig: Rig, folder: Path) -> Iterator[dict[str, Any]]:
    """Every SMC goes into a file."""
    trace = folder / "board.trace"
    yield rig.plugged(out=trace)
    if not any(True for _ in Reader(trace, recover=True).events()):
        raise InfrastructureError("nothing was traced", where=str(trace))


def sensing(*senses: Sense) -> Wiring:
    """As :func:`traced`, with these senses on."""

    @contextmanager
    def wiring(rig: Rig, folder: Path) -> Iterator[dict[str, Any]]:
        trace = folder / "board.trace"
        yield rig.plugged(out=trace, senses=frozenset(senses))
        calls = [event for event in Reader(trace, recover=True).events() if event.kind == Kind.GUEST_RETURN]
        if Sense.READS in senses and not any(event.accesses() is not None for event in calls):
            raise InfrastructureError("no access was recorded", where=str(trace))
        if Sense.COVERAGE in senses and read_coverage(coverage_beside(trace)) is None:
            raise InfrastructureError("no coverage was written", where=str(trace))

    return wiring


@contextmanager
def lockstep(rig: Rig, folder: Path) -> Iterator[dict[str, Any]]:
    """Every vCPU waits at each call and return until a consumer, which does nothing else, lets it go."""
    seen, broken = [0], list[TraceError]()
    with LiveConsumer(folder / "lockstep", hold=JUDGED) as consumer:

        def serve() -> None:
            try:
                consumer.accept(_CONNECT_S)
                for _ in consumer.events():
                    seen[0] += 1
            except TraceError as error:
                broken.append(error)

        thread = threading.Thread(target=serve, name="lockstep", daemon=True)
        thread.start()
        yield rig.plugged(lockstep=consumer.path)
        thread.join(_JOIN_S)
    if broken:
        raise broken[0]
    if not seen[0]:
        raise InfrastructureError("no vCPU waited", where=str(consumer.path))


@contextmanager
def checked(rig: Rig, folder: Path) -> Iterator[dict[str, Any]]:
    """Every SMC goes into a file and, without waiting, to the live check."""
    trace = folder / "board.trace"
    with LiveCheck(folder / "live", source=trace, connect_s=_CONNECT_S) as check:
        yield rig.plugged(out=trace, lockstep=check.socket)
        check.join(_JOIN_S)
    result = check.result(board_alive=True)
    if check.error is not None:
        raise check.error
    if result.failed or not result.events_checked:
        raise InfrastructureError(f"the live check says {result.verdict} after {result.events_checked} events")


def make_rig(context: Context) -> Rig:
    """The snapshot, the plugin and Xen's layout, made when they are not in the cache."""
    stack, spec, cache = context.stack(), BoardSpec.load("default"), BuildCache(cache_root())
    snapshots = SnapshotStore(progress=context.progress)
    with snapshot(snapshots, spec, stack, READY, context.progress):
        host_factor()
    layout = None if stack.xen_syms is None else xen_layout(cache, stack.xen_syms)
    return Rig(spec, stack, snapshots, build_plugin(cache), layout, known_optee(stack.optee.folder))


def xtest_seconds(rig: Rig, wiring: Wiring) -> float:
    """Seconds that :data:`CASES` take in one domU of a fresh clone; connecting and warming up are not counted."""
    with (
        tempfile.TemporaryDirectory(prefix="medcheck-bench-") as name,
        wiring(rig, Path(name)) as options,
    ):
        with snapshot(rig.snapshots, rig.spec, rig.stack, READY) as found:
            board = clone(found, rig.spec, rig.stack, Path(name), **options)
        with Target(rig.spec, rig.stack, Path(name), board=board) as target:
            target.adopt(found.about)
            guest = next(iter(target.guests.values()))
            run_xtest(guest, _WARM_UP, alive=target.check_alive)  # a clone fetches its memory when it is first used
            begin = time.monotonic()
            result = run_xtest(guest, CASES, alive=target.check_alive)
            seconds = time.monotonic() - begin
            if not result.good:
                raise InfrastructureError(f"xtest in {guest.name}: {result.reason}", where=name)
    return seconds


def ratios(
    watched: Callable[[], float], bare: Callable[[], float], pairs: int = PAIRS, progress: Progress | None = None
) -> list[float]:
    """Return the factor by which the same work takes longer when it is watched, pair by pair: 1.3 means 30 % longer."""
    found = []
    for number in range(pairs):
        if number % 2:
            with_it, without = watched(), bare()
        else:
            without, with_it = bare(), watched()
        found.append(with_it / without)
        if progress is not None:
            progress.say(f"{without:.1f} s without, {with_it:.1f} s with: ratio {found[-1]:.2f}")
    return found


def cost_of(watched: Wiring, bare: Wiring = plain) -> Callable[[Context], list[float]]:
    """A benchmark: the ratios of one wiring to another."""

    def measure(context: Context) -> list[float]:
        rig = make_rig(context)
        return ratios(lambda: xtest_seconds(rig, watched), lambda: xtest_seconds(rig, bare), progress=context.progress)

    return measure

# SPDX-License-Identifier: GPL-2.0-or-later
"""Named checkpoints (snapshots of a booted board) and boards restored from them.

A checkpoint is a name and a plain function that takes a booted target there. Whatever goes into a snapshot goes
into its key: the files of the stack, the board, QEMU's command line, the checkpoint's own source, and the sources of
what boots a board. So a snapshot is made at first use, made again when anything in it changes, and never stale.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts.cache import BuildCache
from framework.artifacts.stack import Stack
from framework.board import qemu
from framework.board.board import Board
from framework.board.qemu import Ram
from framework.board.spec import BoardSpec
from framework.common.errors import UsageError
from framework.common.paths import PACKAGE, cache_root
from framework.common.progress import Progress, Silent
from framework.diagnosis.hang import watch
from framework.guests.restored import LostTimerError
from framework.guests.xen_console import free_kib
from framework.probe import parked, waiting
from framework.probe.build import build_probe
from framework.probe.link import DoorbellServer
from framework.probe.waiting import ProbeSpec
from framework.snapshot import sparse
from framework.snapshot.restore import BeforeRun
from framework.snapshot.save import wait_until_calm
from framework.snapshot.store import HISTORY, Snapshot, SnapshotStore
from framework.target.target import Target, say_remarks
from framework.trace.build import build_plugin

_SOURCES = ("board/*.py", "guests/*.py", "snapshot/*.py", "target/*.py")
"""Sources that decide, beside files and options, which state a board is saved in: whole rooms, of which none is
forgotten."""


@dataclass(frozen=True)
class Checkpoint:
    """A point of a board's life to save. ``prepare`` goes on from a board with all its guests ready (``guests``) or
    with dom0 only; it may leave JSON in :attr:`Target.notes <framework.target.target.Target>` for the clones. It must
    be a plain function: its source is part of the snapshot's key, and so is the content of the ``files`` that it
    uses.

    ``probes``: instead, a clone of :data:`DOM0` gets these and is saved when they wait for programs. Every SMC since
    that clone's begin is recorded and stays with the snapshot: a trace of its clones begins with it."""

    name: str
    guests: bool = True
    prepare: Callable[[Target], None] | None = None
    files: Callable[[], Sequence[Path]] | None = None
    probes: tuple[ProbeSpec, ...] = ()

    @property
    def source(self) -> str:
        """The source text of ``further``."""
        return "" if self.prepare is None else inspect.getsource(self.prepare)


READY = Checkpoint("ready")
"""All Linux guests up, each initialised in OP-TEE."""

DOM0 = Checkpoint("dom0", guests=False)
"""dom0 up, no guest yet."""


def _park(target: Target) -> None:
    """A probe on the first guest port; a standard call of it waits in OP-TEE."""
    port = "guest0"
    console = target.board.consoles[port]
    target.notes["parked"] = parked.park(target.dom0, port, console, build_probe(BuildCache(cache_root())))


def _park_files() -> Sequence[Path]:
    return [build_probe(BuildCache(cache_root())), *parked.SOURCES]


PARKED = Checkpoint("parked", guests=False, prepare=_park, files=_park_files)
"""dom0 up, and a probe guest whose standard call is suspended in OP-TEE at an RPC: see :func:`take_over_parked`."""

PROBE = Checkpoint("probe", guests=False, probes=(ProbeSpec("probe0"),))
"""dom0 up, and a probe guest that waits for programs: see :mod:`framework.target.probes`."""

PROBE_PAIR = Checkpoint("probe_pair", guests=False, probes=(ProbeSpec("probe0"), ProbeSpec("probe1")))
"""The same with two of them."""

PROBE_SMP = Checkpoint("probe_smp", guests=False, probes=(ProbeSpec("probe0", vcpus=2),))
"""The same with one of two virtual CPUs."""

MOMENTS = {checkpoint.name: checkpoint for checkpoint in (READY, DOM0, PARKED, PROBE, PROBE_PAIR, PROBE_SMP)}


def get_checkpoint(checkpoint: Checkpoint | str) -> Checkpoint:
    """Return the checkpoint of this name; a checkpoint is returned as it is. Raises UsageError for a name that none
    has."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if checkpoint not in MOMENTS:
        raise UsageError(f"no checkpoint is called '{checkpoint}'", hint=f"one of {', '.join(MOMENTS)}")
    return MOMENTS[checkpoint]


def take_over_parked(target: Target) -> parked.Parked:
    """The probe and its waiting call in a clone of :data:`PARKED`. Raises GuestError when the probe is silent."""
    notes = target.notes["parked"]
    return parked.take_over(target.board.consoles[notes["port"]], notes)


def label_of(spec: BoardSpec, checkpoint: Checkpoint) -> str:
    """Return the snapshot's label: ``default2-ready`` is board default with two guests, all ready."""
    return f"{spec.name}{len(spec.guests)}-{checkpoint.name}"


def inputs_of(spec: BoardSpec, stack: Stack, checkpoint: Checkpoint) -> dict[str, object]:
    """Return everything that the content of a snapshot depends on."""
    fds = dict.fromkeys([*qemu.console_names(spec), "qmp"], 0)
    own: dict[str, object] = {}
    if checkpoint.probes:
        cache = BuildCache(cache_root())
        own = {
            "begins": inputs_of(spec, stack, DOM0),
            "probes": checkpoint.probes,
            "made by": [build_probe(cache), build_plugin(cache), *waiting.SOURCES],
        }
    return own | {
        "board": spec,
        "files": [stack.flash, stack.xen, stack.kernel, stack.dom0_ramdisk, Path(stack.qemu.argv()[-1])],
        "line": [*qemu.common_argv("id"), *qemu.machine_argv(spec, None), *qemu.device_argv(spec, fds)],
        "checkpoint": [checkpoint.name, checkpoint.guests, checkpoint.source],
        "used": [] if checkpoint.files is None else list(checkpoint.files()),
        "code": sorted(path for pattern in _SOURCES for path in PACKAGE.glob(pattern)),
        "key": stack.keys.host_public.read_text(),
    }


@contextmanager
def snapshot(
    store: SnapshotStore,
    spec: BoardSpec,
    stack: Stack,
    checkpoint: Checkpoint = READY,
    progress: Progress | None = None,
    inputs: Mapping[str, object] | None = None,
) -> Iterator[Snapshot]:
    """The verified snapshot of this checkpoint, made now if need be; its files stay while the context lasts.

    ``inputs``: those of :func:`inputs_of`, where they are known already."""
    shown = progress or Silent()

    @contextmanager
    def make(ram: Ram, run_dir: Path) -> Iterator[tuple[Board, dict[str, Any]]]:
        making = (
            _with_probes(store, spec, stack, checkpoint.probes, ram, run_dir, shown)
            if checkpoint.probes
            else _ready_to_save(spec, stack, checkpoint, ram, run_dir, shown)
        )
        with making as target:
            yield target.board, target.about()

    with store.get(label_of(spec, checkpoint), inputs or inputs_of(spec, stack, checkpoint), make) as found:
        yield found


def _ready_to_save(
    spec: BoardSpec, stack: Stack, checkpoint: Checkpoint, ram: Ram, run_dir: Path, shown: Progress
) -> Target:
    """A board at the checkpoint, calm; booted once more when a guest of the first one has lost its timer."""
    for last in (False, True):
        target = Target(spec, stack, run_dir, board=watch(Board(spec, stack, run_dir, ram=ram)))
        try:
            target.boot(shown, guests=checkpoint.guests)
            if checkpoint.prepare is not None:
                checkpoint.prepare(target)
            target.prepare_to_save()
            wait_until_calm(target.board)
        except BaseException as error:
            target.close()
            if last or not isinstance(error, LostTimerError):
                raise
            # How it came to that is worth more than disk space.
            evidence = run_dir.with_name(f"{run_dir.name}.lost-timer")
            shutil.rmtree(evidence, ignore_errors=True)
            run_dir.rename(evidence)
            shown.say(f"{error}; its logs are in {evidence}; booting once more")
        else:
            return target
    raise AssertionError("the last boot returns or raises")


@contextmanager
def _with_probes(
    store: SnapshotStore,
    spec: BoardSpec,
    stack: Stack,
    probes: Sequence[ProbeSpec],
    ram: Ram,
    run_dir: Path,
    shown: Progress,
) -> Iterator[Target]:
    """A clone of :data:`DOM0` with these probes at their doorbells, calm, and all its SMCs in a trace."""
    image = build_probe(BuildCache(cache_root()))
    # Left last: a plugin that loses its consumer stops the board.
    with DoorbellServer() as bells:
        with snapshot(store, spec, stack, DOM0, shown) as base:
            sparse.copy(base.ram, ram.path)
            target = Target.from_snapshot(
                base, spec, stack, run_dir, trace=True, lockstep=bells.socket, ram=ram, senses=frozenset()
            )
        with target:
            # Before there were any: what is free again when they are gone.
            target.notes["free_kib"] = free_kib(target.board.consoles["xen"])
            target.notes["probes"] = waiting.leave(target.dom0, probes, target.board.consoles, bells, image)
            target.prepare_to_save()
            wait_until_calm(target.board)
            yield target
        assert target.trace is not None
        # It is complete now that the board has ended.
        target.trace.rename(run_dir / HISTORY)


def clone_target(
    store: SnapshotStore,
    spec: BoardSpec,
    stack: Stack,
    run_dir: Path,
    checkpoint: Checkpoint = READY,
    *,
    trace: bool = False,
    lockstep: Path | None = None,
    progress: Progress | None = None,
    inputs: Mapping[str, object] | None = None,
    before_run: BeforeRun | None = None,
) -> Target:
    """Return a running target of the caller's own at this checkpoint; the caller closes it.

    ``trace``, ``lockstep``, ``before_run``: see :meth:`Target.from_snapshot`; ``inputs``: see :func:`snapshot`.
    """
    with snapshot(store, spec, stack, checkpoint, progress, inputs) as found:
        target = Target.from_snapshot(
            found, spec, stack, run_dir, trace=trace, lockstep=lockstep, before_run=before_run
        )
    say_remarks(target.board, progress or Silent())
    return target

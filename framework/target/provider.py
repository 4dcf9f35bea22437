# SPDX-License-Identifier: GPL-2.0-or-later
"""Provides boards to tests (restored from a snapshot or cold-booted), limits how many run at once, and cleans up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from framework.artifacts.stack import Stack
from framework.board.janitor import Janitor
from framework.board.spec import BoardSpec
from framework.common.content_hash import plain
from framework.common.errors import BoardError, MedcheckError
from framework.common.progress import SilentTask, Task
from framework.snapshot.restore import BeforeRun
from framework.snapshot.store import SnapshotStore
from framework.target.checkpoints import READY, Checkpoint, clone_target, get_checkpoint, inputs_of
from framework.target.slots import BoardSlots, slots_here
from framework.target.target import Target


class _LineProgress:
    """Progress in single lines, for a test run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:  # noqa: ARG002
        """Print the task's title."""
        self._say(f"{title} …")
        return nullcontext(SilentTask())

    def say(self, text: str) -> None:
        """Print one line."""
        self._say(text)


class TargetProvider:
    """Makes the boards of one process. ``say`` receives progress messages, ``before_run`` each restored board before
    its first instruction."""

    def __init__(
        self,
        stack: Stack,
        spec: BoardSpec,
        say: Callable[[str], None] | None = None,
        before_run: BeforeRun | None = None,
    ) -> None:
        self.stack = stack
        self.spec = spec
        self._before_run = before_run
        self._progress = _LineProgress(say or (lambda _text: None))
        self._store = SnapshotStore(progress=self._progress)
        self._slots = BoardSlots(slots_here(spec.smp), say=say)
        self._janitor = Janitor()
        self._inputs: dict[tuple[BoardSpec, Checkpoint], Mapping[str, object]] = {}

    def _inputs_of(self, spec: BoardSpec, checkpoint: Checkpoint) -> Mapping[str, object]:
        """What a snapshot depends on, hashed once: a run's boards have the files with which it began."""
        key = spec, checkpoint
        if key not in self._inputs:
            self._inputs[key] = plain(inputs_of(spec, self.stack, checkpoint))
        return self._inputs[key]

    @contextmanager
    def clone(
        self,
        folder: Path,
        checkpoint: Checkpoint | str = "ready",
        *,
        trace: bool = False,
        spec: BoardSpec | None = None,
        lockstep: Path | None = None,
    ) -> Iterator[Target]:
        """Yield a private copy of a board at a checkpoint; ``spec`` is another board than the default one.

        ``lockstep``: the socket of a consumer that listens (:class:`framework.trace.live.LiveConsumer`).
        """
        which = get_checkpoint(checkpoint)
        board = spec or self.spec
        with self._slots.slot():
            target = clone_target(
                self._store,
                board,
                self.stack,
                folder,
                which,
                trace=trace,
                lockstep=lockstep,
                progress=self._progress,
                inputs=self._inputs_of(board, which),
                before_run=self._before_run,
            )
            with self._gone(target):
                yield target

    @contextmanager
    def cold(
        self, folder: Path, checkpoint: Checkpoint = READY, *, trace: bool = False, spec: BoardSpec | None = None
    ) -> Iterator[Target]:
        """Yield a board booted from power-on up to a checkpoint."""
        with self._slots.slot(), self._gone(Target(spec or self.spec, self.stack, folder, trace=trace)) as target:
            target.boot(self._progress, guests=checkpoint.guests)
            if checkpoint.prepare is not None:
                checkpoint.prepare(target)
            yield target

    @contextmanager
    def _gone(self, target: Target) -> Iterator[Target]:
        """Close a target and prove that nothing of its board is left. Raises BoardError, naming what is."""
        with target:
            yield target
        board = target.board
        left = [str(item) for item in self._janitor.processes_of(board.id)]
        if board.id in self._janitor.boards():
            left.append(f"the entry file of board {board.id}")
        if left:
            raise BoardError("a board outlived its test: " + ", ".join(left), hint="`medcheck clean` ends it")


class SharedBoard:
    """One board booted from power-on for many tests, as without snapshots: what a clone per test is measured against.

    It is booted anew when it cannot serve the next test: that wants another checkpoint, or to be traced or not; or the
    one before failed, or left a board that is dead or stopped, has shown a problem, or whose dom0 does not answer or
    misses a guest. What else a test changes, the next one finds. ``boots`` counts these reasons.
    """

    def __init__(self, boards: TargetProvider, folder: Path) -> None:
        self.boots: Counter[str] = Counter()
        self.tests = 0
        self._boards = boards
        self._folder = folder
        self._kind: tuple[Checkpoint, bool] | None = None
        self._running = ExitStack()
        self._session: Target | None = None
        self._broken = ""

    @contextmanager
    def lend(self, checkpoint: Checkpoint, *, trace: bool, failed: Callable[[], bool]) -> Iterator[Target]:
        """The board, for one test; ``failed`` is asked at the end whether the test did."""
        kind = (checkpoint, trace)
        if self._kind is not None and kind != self._kind:
            self._broken = self._broken or "another checkpoint or tracing was wanted"
        if self._session is None or self._broken:
            self._boot(kind)
        target = self._session
        assert target is not None
        self.tests += 1
        problems = len(target.board.problems)
        try:
            yield target
        finally:
            if failed():
                self._broken = "a test failed"
            elif len(target.board.problems) > problems:
                self._broken = "a console showed a problem"
            elif checkpoint.prepare is not None:
                self._broken = "the checkpoint was used up"
            else:
                self._broken = _unfit(target)

    def close(self) -> None:
        """End the board; may be called twice."""
        self._session = None
        self._running.close()

    def _boot(self, kind: tuple[Checkpoint, bool]) -> None:
        self.close()
        self.boots[self._broken or "it was the first"] += 1
        self._kind, self._broken = kind, ""
        folder = self._folder / str(self.boots.total())
        self._session = self._running.enter_context(self._boards.cold(folder, kind[0], trace=kind[1]))


def _unfit(target: Target) -> str:
    """Return why another test cannot use this board; empty if no reason is visible."""
    if not target.board.alive:
        return "a test ended the board"
    try:
        if not target.board.qmp.execute("query-status")["running"]:
            return "a test left the board stopped"
        missing = set(target.guests) - {domain.name for domain in target.dom0.xl.list()}
    except MedcheckError:
        return "the board did not answer after a test"
    return "a test left a guest missing" if missing else ""

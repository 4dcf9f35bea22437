"""Boards for tests: cloned or cold, never more at once than the machine can bear, gone without trace afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from framework.artifacts.stack import Stack
from framework.board.janitor import Janitor
from framework.board.pool import Pool, places
from framework.board.spec import BoardSpec
from framework.board.template import TemplateStore
from framework.errors import BoardError
from framework.moments import MOMENTS, Moment, clone_session
from framework.progress import SilentTask, Task
from framework.session import Session


class _Told:
    """Progress in single lines, for a test run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:  # noqa: ARG002
        """Say that something takes its time."""
        self._say(f"{title} …")
        return nullcontext(SilentTask())

    def say(self, text: str) -> None:
        """Say one line."""
        self._say(text)


class Boards:
    """Makes the boards of one process. ``say`` receives what a waiting person wants to know."""

    def __init__(self, stack: Stack, spec: BoardSpec, say: Callable[[str], None] | None = None) -> None:
        self.stack = stack
        self.spec = spec
        self._progress = _Told(say or (lambda _text: None))
        self._store = TemplateStore(progress=self._progress)
        self._pool = Pool(places(spec.smp), say=say)
        self._janitor = Janitor()

    @contextmanager
    def clone(
        self,
        folder: Path,
        moment: Moment | str = "ready",
        *,
        trace: bool = False,
        spec: BoardSpec | None = None,
        lockstep: Path | None = None,
    ) -> Iterator[Session]:
        """A private copy of a board at a moment; ``spec`` is another board than the default one.

        ``lockstep``: the socket of a consumer that listens (:class:`framework.trace.live.LiveConsumer`).
        """
        which = MOMENTS[moment] if isinstance(moment, str) else moment
        with self._pool.place():
            session = clone_session(
                self._store,
                spec or self.spec,
                self.stack,
                folder,
                which,
                trace=trace,
                lockstep=lockstep,
                progress=self._progress,
            )
            with self._gone(session):
                yield session

    @contextmanager
    def cold(self, folder: Path, *, trace: bool = False, spec: BoardSpec | None = None) -> Iterator[Session]:
        """A board booted from power-on, all guests ready."""
        with self._pool.place(), self._gone(Session(spec or self.spec, self.stack, folder, trace=trace)) as session:
            session.boot(self._progress)
            yield session

    @contextmanager
    def _gone(self, session: Session) -> Iterator[Session]:
        """Close a session and prove that nothing of its board is left. Raises BoardError, naming what is."""
        with session:
            yield session
        board = session.board
        left = [str(item) for item in self._janitor.processes_of(board.id)]
        if board.id in self._janitor.boards():
            left.append(f"the entry file of board {board.id}")
        if left:
            raise BoardError("a board outlived its test: " + ", ".join(left), hint="`medcheck clean` ends it")

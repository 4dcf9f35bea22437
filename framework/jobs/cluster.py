# SPDX-License-Identifier: GPL-2.0-or-later
"""Independent jobs on the machines of a Dask cluster. A worker offers boards as the resource ``BOARD``, as many as its
machine bears; each job takes one.

A job is called by its content: the scheduler runs two of the same name once. A worker that dies costs its job only:
another worker takes it, and after several such deaths the job is reported as lost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from framework.common.errors import InfrastructureError, UsageError
from framework.common.progress import Progress

if TYPE_CHECKING:
    from distributed import Client, Future

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 300.0
"""With no worker that offers a board for so long, what is left of the jobs is given up."""
_DEATHS = 3
"""Workers that may die of one job before it counts as lost."""
_BOARD = "BOARD"
_LONGEST_WORDS = 2000


def spread(
    address: str,
    jobs: Mapping[str, Job],
    execute: Callable[[Job], Result],
    progress: Progress,
    *,
    patience_s: float = _PATIENCE_SECONDS,
) -> Iterator[tuple[str, Result | InfrastructureError]]:
    """Have the cluster at ``address`` run ``execute`` on each of ``jobs`` (by name), and yield names and results as
    they come; an error in place of a result where the cluster lost the job.

    ``execute`` is a function of a module that every worker has.

    :raises UsageError: the package distributed is missing. :raises InfrastructureError: no scheduler answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler needs the package distributed", hint="pip install 'medcheck[cluster]'") from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InfrastructureError(
            f"no scheduler answers at {address}: {error}", hint="start one there with `dask scheduler`"
        ) from error
    with client:
        yield from _Spread(client, execute, progress, patience_s).results(dict(jobs))


class _Spread(Generic[Job, Result]):
    """Jobs on their way. Each is sent to a worker with a free board, and no other takes it over: Dask would hold the
    death of a worker against every job that waits there."""

    def __init__(self, client: Client, execute: Callable[[Job], Result], progress: Progress, patience_s: float) -> None:
        self._client = client
        self._execute = execute
        self._progress = progress
        self._patience_s = patience_s
        self._running: dict[str, tuple[Future, str, Job]] = {}
        self._deaths: Counter[str] = Counter()
        self._last_board = time.monotonic()

    def results(self, waiting: dict[str, Job]) -> Iterator[tuple[str, Result | InfrastructureError]]:
        """Yield names and results as they come; ``waiting`` is used up."""
        told = False
        while waiting or self._running:
            offered = boards(self._client)
            yield from self._ended(offered, waiting)
            if offered:
                self._last_board, told = time.monotonic(), False
            elif not told:
                self._progress.say(f"no worker of the cluster offers a board; waiting for one (--resources {_BOARD}=1)")
                told = True
            self._send(offered, waiting)
            if hopeless := self._hopeless():
                yield from ((name, hopeless) for name in [*self._running, *waiting])
                return
            self._wait()

    def _ended(
        self, offered: Mapping[str, int], waiting: dict[str, Job]
    ) -> Iterator[tuple[str, Result | InfrastructureError]]:
        for name, (future, worker, job) in list(self._running.items()):
            if future.status in ("finished", "error"):
                result = _result(future)
            elif worker in offered:
                continue
            elif self._deaths[name] + 1 < _DEATHS:
                self._deaths[name] += 1
                self._progress.say(f"the worker {worker} of {name} is gone; another takes it")
                waiting[name] = job
                result = None
            else:
                result = InfrastructureError(f"{_DEATHS} workers died, one after the other, while they had it")
            del self._running[name]
            future.release()
            if result is not None:
                yield name, result

    def _send(self, offered: Mapping[str, int], waiting: dict[str, Job]) -> None:
        busy = Counter(worker for _, worker, _ in self._running.values())
        for worker, count in offered.items():
            for _ in range(count - busy[worker]):
                if not waiting:
                    return
                name = next(iter(waiting))
                job = waiting.pop(name)
                # The scheduler may know the name of the first attempt still, and that worker.
                key = f"{name}-again-{self._deaths[name]}" if self._deaths[name] else name
                future = self._client.submit(
                    self._execute, job, key=key, workers=[worker], allow_other_workers=False, resources={_BOARD: 1}
                )
                self._running[name] = (future, worker, job)

    def _hopeless(self) -> InfrastructureError | None:
        """Why nothing more can be expected of the cluster; None while there is hope."""
        if self._client.status != "running":
            return InfrastructureError("the scheduler is gone", hint="start it again, then run the same command")
        if time.monotonic() - self._last_board > self._patience_s:
            return InfrastructureError(
                f"no worker of the cluster has offered a board for {self._patience_s:.0f} s",
                hint=f"start one: `dask worker ADDRESS --nthreads 1 --resources {_BOARD}=1`; then run the same command",
            )
        return None

    def _wait(self) -> None:
        """Wait for the next job to end, but not so long that a look at the workers is overdue."""
        from distributed import wait

        if not self._running:
            # No event says that a worker has come with a board.
            time.sleep(_LOOK_SECONDS)
            return
        try:
            wait([future for future, _, _ in self._running.values()], _LOOK_SECONDS, "FIRST_COMPLETED")
        except TimeoutError:
            return


def boards(client: Client) -> dict[str, int]:
    """How many boards the workers of a cluster offer, by address; those that offer none are left out."""
    workers = client.scheduler_info()["workers"]
    offered = {address: int(worker.get("resources", {}).get(_BOARD, 0)) for address, worker in workers.items()}
    return {address: count for address, count in offered.items() if count}


def _result(future: Future) -> Any:
    """The result, or in its place an error that says how the job was lost."""
    try:
        return future.result(timeout=_CONNECT_SECONDS)
    except Exception as error:
        # Whatever a worker raised, or Dask on its behalf.
        return InfrastructureError(f"the cluster lost it: {type(error).__name__}: {error}"[:_LONGEST_WORDS])

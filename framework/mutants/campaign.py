# SPDX-License-Identifier: GPL-2.0-or-later
"""Which test runs with which mutant next, and what follows from all runs so far.

Each run is a line in a file, so a campaign can be interrupted and continued anywhere, by any number of processes one
after the other. Verdicts are a function of these lines.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.common.errors import InfrastructureError
from framework.mutants.outcome import Status, Verdict, judge
from framework.mutants.worker import Run, Worker
from framework.mutants.xen import Mutant, MutantXen

_FIRST_LIMIT = 180.0
"""Seconds for a test without any mutant; the first one may have to make its snapshot."""
_SLOWER, _LEAST = 6.0, 20.0
"""A mutant's test may take so many times as long as without one, and at least so many seconds."""
_ABOUT = 8.0
"""How much more a test promises that is about a rule which has to see the fault."""
_TIMEOUTS = 2
"""Tests that run out of time before a mutant is given up: each takes long."""


class RunLog:
    """All runs so far, in memory and in a file of JSON lines.

    ``versions``: what each test is now. A run of another version counts no more, and is taken for not made.
    """

    def __init__(self, path: Path, versions: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._versions = versions or {}
        self.runs: dict[tuple[str, int], Run] = {}
        self.order: dict[int, list[str]] = {}
        """For each mutant its tests, in the order of their runs."""
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                current = row.pop("version", "") == self._versions.get(row["test"], "")
                # A test that failed without a mutant is tried again: it may have been the machine's fault.
                if current and (row["number"] or row["passed"]):
                    self._keep(row.pop("test"), row.pop("number"), _run(row))

    def add(self, test: str, number: int, run: Run) -> None:
        """Keep a run, on disk first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            head = {"test": test, "version": self._versions.get(test, ""), "number": number}
            stream.write(json.dumps({**head, **asdict(run)}) + "\n")
        self._keep(test, number, run)

    def _keep(self, test: str, number: int, run: Run) -> None:
        if (test, number) not in self.runs:
            self.order.setdefault(number, []).append(test)
        self.runs[test, number] = run


def _run(row: dict[str, object]) -> Run:
    lists = {key: tuple(map(_hashable, value)) for key, value in row.items() if isinstance(value, list)}
    return Run(**{**row, **lists})  # type: ignore[arg-type]


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Job:
    """One run that is due; with number 0, it tells what the test reaches."""

    test: str
    number: int
    limit: float


class Campaign:
    """``tests`` is the suite in its order, ``numbers`` the mutants that are wanted, in theirs. ``most`` tests are run
    with each mutant at most (0: all that reach it). ``about``: tests that are likely to notice a mutant."""

    def __init__(
        self,
        xen: MutantXen,
        log: RunLog,
        tests: Sequence[str],
        numbers: Sequence[int],
        most: int = 0,
        about: Mapping[int, Collection[str]] | None = None,
    ) -> None:
        self._xen = xen
        self._log = log
        self._tests = _representatives_first(tests)
        self._numbers = list(numbers)
        self._most = most
        self._about = about or {}
        self._taken: set[tuple[str, int]] = set()
        self._changed = threading.Condition()
        self._reach: dict[str, frozenset[int]] = {}
        self._round: list[Job] = []
        self._done: dict[int, Verdict] = {}
        for (test, number), run in log.runs.items():
            self._learn(test, number, run)

    @property
    def unfit(self) -> list[str]:
        """Tests that fail without any mutant: they can kill none."""
        return [test for test in self._tests if (run := self._log.runs.get((test, 0))) and not run.passed]

    def next(self) -> Job | None:
        """The run that is due next; waits while that depends on another worker's. None when there is none any more."""
        with self._changed:
            while (job := self._next()) is None and self._taken:
                self._changed.wait()
            if job is not None:
                self._taken.add((job.test, job.number))
            return job

    def give_up(self, job: Job) -> None:
        """Let go of a run that came to no end."""
        with self._changed:
            self._taken.discard((job.test, job.number))
            self._changed.notify_all()

    def record(self, job: Job, run: Run) -> None:
        """Take in a run."""
        with self._changed:
            self._log.add(job.test, job.number, run)
            self._learn(job.test, job.number, run)
            self._taken.discard((job.test, job.number))
            self._changed.notify_all()

    def verdicts(self) -> dict[int, Verdict]:
        """The verdict of every wanted mutant."""
        return {number: self._verdict(number) for number in self._numbers}

    def left(self) -> int:
        """How many mutants have no verdict yet."""
        return sum(self._verdict(number).status is Status.UNDECIDED for number in self._numbers)

    def _learn(self, test: str, number: int, run: Run) -> None:
        if number == 0:
            self._reach[test] = frozenset(run.met) if run.passed else frozenset()
            return
        self._done.pop(number, None)

    def _next(self) -> Job | None:
        missing = [test for test in self._tests if (test, 0) not in self._log.runs]
        for test in missing:
            if (test, 0) not in self._taken:
                return Job(test, 0, _FIRST_LIMIT)
        if not missing and not self._round and not self._taken:
            self._round = self._new_round()
        return self._round.pop(0) if self._round else None

    def _new_round(self) -> list[Job]:
        """One test more for each mutant that had the fewest.

        Which one follows from what all had by then, so it does not depend on how many workers there are, nor on where
        the campaign was interrupted. Mutants that are easily killed do not wait for those that no test kills.
        """
        left = [number for number in self._numbers if self._verdict(number).status is Status.UNDECIDED]
        had = {number: len(self._log.order.get(number, ())) for number in left}
        fewest = min(had.values(), default=0)
        kills: Counter[tuple[str, str]] = Counter()
        tries: Counter[tuple[str, str]] = Counter()
        for number in self._numbers:
            function = self._xen.mutants[number].function
            for test in self._log.order.get(number, ())[:fewest]:
                tries[test, function] += 1
                kills[test, function] += judge(self._log.runs[test, number])[0].kills

        def promise(test: str, number: int) -> float:
            function = self._xen.mutants[number].function
            rate = (kills[test, function] + 0.5) / (tries[test, function] + 1)
            likely = _ABOUT if test in self._about.get(number, ()) else 1.0
            return rate * likely / self._log.runs[test, 0].seconds

        jobs = []
        for number in left:
            due = [test for test in self._reaching(number) if (test, number) not in self._log.runs]
            if had[number] == fewest and due:
                test = max(due, key=lambda test: promise(test, number))
                jobs.append(Job(test, number, max(_LEAST, _SLOWER * self._log.runs[test, 0].seconds)))
        return jobs

    def _reaching(self, number: int) -> list[str]:
        return [test for test in self._tests if number in self._reach.get(test, ())]

    def _verdict(self, number: int) -> Verdict:
        known = self._done.get(number)
        if known is None:
            known = self._judged(number)
            if known.status is not Status.UNDECIDED:
                self._done[number] = known
        return known

    def _judged(self, number: int) -> Verdict:
        ran = tuple(test for test in self._log.order.get(number, ()) if (test, number) in self._log.runs)
        seconds = round(sum(self._log.runs[test, number].seconds for test in ran), 1)
        judged = {test: judge(self._log.runs[test, number]) for test in ran}
        for test, (status, evidence) in judged.items():
            if status.kills:
                return Verdict(status, test, evidence, ran, seconds)
        late = [test for test, (status, _) in judged.items() if status is Status.TIMEOUT]
        if len(late) >= _TIMEOUTS:
            return Verdict(Status.TIMEOUT, late[0], judged[late[0]][1], ran, seconds)
        reaching = self._reaching(number)
        if any((test, 0) not in self._log.runs for test in self._tests):
            return Verdict(Status.UNDECIDED, ran=ran, seconds=seconds)
        if not reaching:
            booted = any(number in run.boot for (_, n), run in self._log.runs.items() if n == 0)
            return Verdict(Status.NOT_MET, evidence=("reached while Xen boots",) if booted else ())
        wanted = min(len(reaching), self._most or len(reaching))
        if len(ran) < wanted:
            return Verdict(Status.UNDECIDED, ran=ran, seconds=seconds)
        if late:
            return Verdict(Status.TIMEOUT, late[0], judged[late[0]][1], ran, seconds)
        return Verdict(Status.SURVIVED, evidence=(f"{len(ran)} of {len(reaching)} tests",), ran=ran, seconds=seconds)


def _representatives_first(tests: Sequence[str]) -> list[str]:
    """Tests in their order, but of those that differ in parameters only the first one first."""
    seen: set[str] = set()
    first: list[str] = []
    more: list[str] = []
    for test in tests:
        name = test.partition("[")[0]
        (more if name in seen else first).append(test)
        seen.add(name)
    return first + more


def choose(mutants: Iterable[Mutant], sample: int, seed: int) -> list[int]:
    """The numbers of the mutants to run: ``sample`` of them (0: all), drawn and ordered by ``seed``."""
    numbers = [mutant.number for mutant in mutants]
    random.Random(seed).shuffle(numbers)
    return numbers[:sample] if sample else numbers


def drive(
    campaign: Campaign, make_worker: Callable[[int], Worker], workers: int, seconds: float,
    told: Callable[[Job, Run], object],
) -> None:  # fmt: skip
    """Do what is due with so many workers until nothing is, or the time (0: no end) is up.

    :raises InfrastructureError: a worker's process ended; what was recorded stays.
    """
    end = time.monotonic() + seconds if seconds else float("inf")
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with make_worker(number) as worker:
                while not failed and time.monotonic() < end and (job := campaign.next()) is not None:
                    try:
                        run = worker.run(job.test, job.number, job.limit, met=job.number == 0)
                        campaign.record(job, run)
                    finally:
                        campaign.give_up(job)
                    told(job, run)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as error:
        failed.append(error)
        for thread in threads:
            thread.join()
        raise
    if failed:
        first = failed[0]
        raise first if isinstance(first, InfrastructureError) else InfrastructureError(f"a worker failed: {first!r}")

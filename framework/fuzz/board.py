# SPDX-License-Identifier: GPL-2.0-or-later
"""A live clone of a board whose probes run fuzz programs, one after the other, while the reference judges."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from framework.common.errors import GuestCrash, GuestError, MedcheckError
from framework.conformance.checker import Checker
from framework.console.problems import Problem
from framework.fuzz.machine import Machine, die
from framework.fuzz.program import FuzzProgram
from framework.probe.link import DoorbellServer
from framework.target.liveness import hypervisor_of, threads_said
from framework.target.probes import take_over
from framework.target.provider import TargetProvider
from framework.trace.format import Kind
from framework.trace.live import Held
from framework.trace.reader import Reader
from mediator_ref import Limits, Outcome, State, Verdict
from mediator_ref.knowledge import TrackedDomain
from mediator_ref.rules import RuleId

_MOST_BUFFERS, _MOST_PAGES, _MOST_RPC_PAGES = 8, 8192, 16
"""What known defects may leave behind in a domain before its board is given up: half of the mediator's limits."""
_CALLS = (int(Kind.GUEST_CALL), int(Kind.EL3_CALL))
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Found:
    """A nonconformance, or a death (``rule`` is LIFE-7, or ``HANG`` for a board that stands still though Xen lives).

    ``words``: what was found, without its numbers; together with the rule, what one shrinks to. ``step``: the number of
    the step that showed it; steps behind the last are the reset and the end.
    """

    rule: str
    words: str
    step: int
    explanation: str


@dataclass(frozen=True)
class Result:
    """What a program did. ``found``: in order; ``blocks``: code that ran for the first time on this board;
    ``features``: outcomes of rules and of the specification that were new to it; ``fit``: it can serve further."""

    found: tuple[Found, ...]
    blocks: frozenset[int]
    features: frozenset[str]
    fit: bool


@dataclass
class _Judge:
    """The checker behind a board's records: called by the doorbells' thread."""

    checker: Checker | None = None
    calls: int = 0
    step: int = 0
    found: list[Found] = field(default_factory=list)
    blocks: set[int] = field(default_factory=set)
    ask: bool = False
    waiting: list[Held] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, held: Held) -> None:
        """Judge one record; at a ring, take the coverage when asked to."""
        if self.ask and held.waiting:
            self.ask = False
            while news := held.coverage():
                self.blocks.update(news)
        with self.lock:
            if self.checker is None:
                self.waiting.append(held)
            else:
                self._feed(self.checker, held)

    def begin(self, checker: Checker) -> None:
        """Judge with a checker that knows the board's past what has come meanwhile, and what comes."""
        with self.lock:
            for held in self.waiting:
                self._feed(checker, held)
            self.waiting.clear()
            self.checker = checker

    def _feed(self, checker: Checker, held: Held) -> None:
        self.calls += held.event.kind in _CALLS
        for verdict in checker.feed(held.event):
            if verdict.outcome is Outcome.FAIL:
                self.found.append(Found(verdict.rule, signature(verdict), self.step, checker.explain(verdict)))


def signature(verdict: Verdict) -> str:
    """The words of a verdict without numbers."""
    fields = ", ".join(sorted({_NUMBERS.sub("#", difference.field) for difference in verdict.differences}))
    reason = _NUMBERS.sub("#", verdict.reason)
    return f"{reason} ({fields})" if fields else reason


class FuzzBoard(AbstractContextManager["FuzzBoard"]):
    """A clone of a checkpoint with its probes at their doorbells and its checker. ``programs``: how many it has run.

    Raises what :meth:`TargetProvider.clone` raises."""

    def __init__(self, boards: TargetProvider, checkpoint: str, memory_free: bool = True) -> None:
        self.checkpoint = checkpoint
        self.programs = 0
        self.keep_to: Path | None = None
        """Folder that gets the board's trace and consoles when it is closed."""
        self._judge = _Judge()
        self._seen: set[str] = set()
        self._over = False
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medcheck-fuzz-")))
            stack.callback(self._keep, folder / "run")
            bells = stack.enter_context(DoorbellServer(watch=self._judge.watch))
            self.target = stack.enter_context(
                boards.clone(folder / "run", checkpoint, trace=True, lockstep=bells.socket)
            )
            self._transports = [bells.transport(note["domid"]) for note in self.target.notes["probes"]]
            self.target.board.on_problem(self._on_problem)
            self._begin(memory_free)
            self.machine = Machine(take_over(self.target, bells))
            self._cover()
            self._judge.blocks.clear()
            self._closing = stack.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def calls(self) -> int:
        """SMCs of guests and of the mediator that were judged."""
        return self._judge.calls

    def run(self, program: FuzzProgram) -> Result:
        """Run a program and what it leaves open; the board has to be fit. Raises BoardError or TraceError when the
        board broke for no reason of the mediator's."""
        judge, self.programs = self._judge, self.programs + 1
        judge.found, judge.blocks, judge.step = [], set(), 0
        alive = True
        try:
            self._execute(program)
        except (GuestError, GuestCrash) as error:
            alive = False
            judge.found += self._death(error)
        state = self._state
        features = frozenset(_features(state)) - self._seen
        self._seen |= features
        fit = alive and not judge.found and not program.dies and not any(map(_worn, state.domains.values()))
        return Result(tuple(judge.found), frozenset(judge.blocks), features, fit)

    def _keep(self, run_dir: Path) -> None:
        if self.keep_to is not None:
            shutil.copytree(run_dir, self.keep_to, dirs_exist_ok=True)

    def _execute(self, program: FuzzProgram) -> None:
        for number, step in enumerate(program.steps):
            self._judge.step = number
            self.machine.run(step)
        self._judge.step = len(program.steps)
        if program.dies:
            die(self.machine, self.target)
        else:
            self.machine.reset()
            self._cover()

    def _cover(self) -> None:
        self._judge.ask = True
        self.machine.actors[0].execute([])

    def _begin(self, memory_free: bool) -> None:
        """Give the checker what was recorded before the board was saved."""
        trace = self.target.trace
        assert trace is not None
        checker = Checker(
            limits=Limits(threads=threads_said(self.target.board.run_dir)), memory_free=memory_free, source=str(trace)
        )
        reader = Reader(trace, recover=True)
        for record in reader.events():
            if len(reader.segments) > 1:
                break
            checker.feed(record)
        checker.resume()
        self._judge.begin(checker)

    @property
    def _state(self) -> State:
        assert self._judge.checker is not None
        return self._judge.checker.state

    def _on_problem(self, problem: Problem) -> None:
        if problem.fatal:
            for transport in self._transports:
                transport.hang_up(GuestError(problem.crash().what))

    def _death(self, error: MedcheckError) -> list[Found]:
        """Say how the board ended: with Xen, or not. Nothing when a known deviation explains Xen's end."""
        step, checker = self._judge.step, self._judge.checker
        assert checker is not None
        seen = hypervisor_of(self.target)
        if seen.alive is not False:
            return [Found("HANG", f"a probe does not come back, and Xen answers: {seen.alive}", step, str(error))]
        before = checker.state.tally.fails[RuleId.LIFE_7]
        checker.finish(board_alive=False)
        if checker.state.tally.fails[RuleId.LIFE_7] == before:
            return []
        said = [problem.line for problem in self.target.board.problems if problem.kind.startswith("xen-")]
        words = _NUMBERS.sub("#", said[0].strip() if said else str(error))
        return [Found(RuleId.LIFE_7, words, step, "\n".join(said))]


def _worn(domain: TrackedDomain) -> bool:
    """Whether what a domain holds cannot be taken back, and comes near to its limits."""
    held = domain.defects.accounting or domain.accounting()
    return bool(
        domain.calls or domain.running or len(held.held) > _MOST_BUFFERS or held.pages > _MOST_PAGES
        or len(domain.rpcs) > _MOST_RPC_PAGES
    )  # fmt: skip


def _features(state: State) -> Iterator[str]:
    tally = state.tally
    yield from (f"pass {rule}" for rule, count in tally.passes.items() if count)
    yield from (f"outcome {name}" for name in tally.outcomes)
    yield from (f"deviation {rule} {name}" for rule, name in tally.deviations)
    yield from (f"unchecked {rule}: {reason}" for rule, reason in tally.not_checked)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The campaign of `medcheck fuzz`: programs, round after round, on live clones; what one finds is made small, told
apart and reproduced."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from framework.common.progress import Progress
from framework.fuzz.board import Found, FuzzBoard, Result
from framework.fuzz.corpus import Corpus
from framework.fuzz.program import FuzzProgram, joined
from framework.fuzz.shrink import shrink
from framework.fuzz.steps import MOST_STEPS
from framework.fuzz.strategies import programs
from framework.target.provider import TargetProvider

ROUND = 200
"""Programs that Hypothesis draws at once; what they reached is known to the next round."""
_BOARD_PROGRAMS = 2000
"""Programs after which a board is given up all the same: its trace grows, and its guests grow old."""
TURNS = ("probe", "probe", "probe", "probe_smp", "probe", "probe", "probe_pair")
"""The checkpoints of the rounds, in turn."""
_TOLD_EVERY_S = 20.0
_SHRINK_S = 60.0
_FIRST_TRIES = 3
"""Fresh boards on which a finding is tried before it counts as one that needs what came before."""
_LONGEST_PAST = 64
_SHRUNK_OF_A_RULE = 4
"""Findings of one rule that are made small; one fault shows in many ways."""

MakeBoard = Callable[[str], FuzzBoard]


@dataclass(frozen=True)
class Finding:
    """What a campaign reports. ``seen`` of ``tries`` fresh boards showed it; ``needs``: programs that had to run before
    (they are part of the program); ``rules``: all that the program breaks; ``after``: programs, and seconds, of the
    campaign until it was seen first; ``shrunk``: seconds that it took to make it small."""

    rule: str
    words: str
    explanation: str
    program: FuzzProgram
    seen: int
    tries: int
    needs: int
    rules: tuple[str, ...]
    after: tuple[int, float]
    shrunk: float

    @property
    def name(self) -> str:
        """A name for its files."""
        rule = "".join(letter if letter.isalnum() else "_" for letter in self.rule.split(" ")[0].lower())
        return f"{rule}_{self.program.digest[:8]}"


@dataclass
class Numbers:
    """How far a campaign is."""

    programs: int = 0
    calls: int = 0
    boards: int = 0
    begin: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    """When something new was reached last."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begin


class Campaign(AbstractContextManager["Campaign"]):
    """One campaign on the boards of ``make``. ``seconds`` and ``most`` (programs) bound it, 0 is no bound;
    ``reproduce``: fresh boards for each finding; ``turns``: checkpoints, in turn; ``shrink_seconds``: for making one
    finding small. ``report`` gets each finding, and meanwhile the folder ``evidence`` has the trace and the consoles of
    the board that showed it first."""

    def __init__(
        self, make: MakeBoard, corpus: Corpus, progress: Progress, *, seed: int, seconds: float, most: int = 0,
        reproduce: int = 20, turns: Sequence[str] = TURNS, shrink_seconds: float = _SHRINK_S, evidence: Path,
        report: Callable[[Finding], None],
    ) -> None:  # fmt: skip
        self.corpus = corpus
        self.numbers = Numbers()
        self.blocks: set[int] = set()
        self.features: set[str] = set()
        self.findings: list[Finding] = []
        self.again: Counter[tuple[str, str]] = Counter()
        self._make, self._progress, self._report = make, progress, report
        self._seed, self._seconds, self._most = seed, seconds, most
        self._reproduce, self._turns, self._evidence = reproduce, turns, evidence
        self._shrink_seconds = shrink_seconds
        self._board: FuzzBoard | None = None
        self._past: list[FuzzProgram] = []
        self._told = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._retire()

    @property
    def over(self) -> bool:
        """Whether one of the bounds is reached."""
        late = bool(self._seconds) and self.numbers.seconds > self._seconds
        return late or (bool(self._most) and self.numbers.programs >= self._most)

    def run(self) -> None:
        """Go on until it is over."""
        begun: set[str] = set()
        number = 0
        while not self.over:
            checkpoint = self._turns[number % len(self._turns)]
            if checkpoint not in begun:
                begun.add(checkpoint)
                self._replay_corpus(checkpoint)
            self._round(checkpoint, number)
            number += 1

    def reproduced(
        self, program: FuzzProgram, tries: int, shows: Callable[[Result], bool]
    ) -> tuple[int, Result | None]:
        """How many of some fresh boards show something, and what the first that did said; its trace and consoles are
        kept."""
        seen, first = 0, None
        for _ in range(tries):
            result = self._fresh(program, keep=first is None)
            if shows(result):
                seen += 1
                first = first or result
        return seen, first

    # Rounds

    def _replay_corpus(self, checkpoint: str) -> None:
        """Run what an earlier campaign kept, and forget of it what reaches nothing new."""
        for program in self.corpus.of(checkpoint):
            if self.over:
                return
            if not self._live(program):
                self.corpus.drop(program)

    def _round(self, checkpoint: str, number: int) -> None:
        known = self.corpus.of(checkpoint)

        @hypothesis.seed(f"{self._seed} {number}")
        @hypothesis.settings(
            max_examples=ROUND, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @hypothesis.given(programs(checkpoint, st.sampled_from(known) if known else None))
        def each(program: FuzzProgram) -> None:
            if not self.over:
                self._live(program)

        each()

    def _live(self, program: FuzzProgram) -> bool:
        """Run a program on the live board; whether it reached something new."""
        board = self._current(program.checkpoint)
        result = self._run(board, program)
        self._past.append(program)
        past = self._past[-_LONGEST_PAST:]
        if result.found and not self.again[result.found[0].rule, result.found[0].words]:
            board.keep_to = self._evidence
        if not result.fit or board.programs >= _BOARD_PROGRAMS:
            self._retire()
        self.numbers.programs += 1
        new = bool(result.blocks - self.blocks or result.features - self.features)
        self.blocks |= result.blocks
        self.features |= result.features
        if new:
            self.numbers.last = time.monotonic()
            self.corpus.add(program)
        if result.found:
            self._examine(program, past, result.found[0])
        self._tell()
        return new

    def _tell(self) -> None:
        now, n = time.monotonic(), self.numbers
        if now - self._told < _TOLD_EVERY_S:
            return
        self._told = now
        self._progress.say(
            f"{n.seconds:.0f} s: {n.programs} programs ({n.programs / n.seconds:.0f}/s), {n.calls} SMCs checked "
            f"({n.calls / n.seconds:.0f}/s), {len(self.blocks)} places of the mediator, {len(self.features)} outcomes, "
            f"{len(self.findings)} findings, nothing new for {now - n.last:.0f} s"
        )

    # Boards

    def _current(self, checkpoint: str) -> FuzzBoard:
        if self._board is None or self._board.checkpoint != checkpoint:
            self._retire()
            self._board = self._make(checkpoint)
            self.numbers.boards += 1
        return self._board

    def _retire(self) -> None:
        board, self._board = self._board, None
        self._past = []
        if board is not None:
            board.__exit__(None, None, None)

    def _run(self, board: FuzzBoard, program: FuzzProgram) -> Result:
        before = board.calls
        try:
            return board.run(program)
        finally:
            self.numbers.calls += board.calls - before

    def _fresh(self, program: FuzzProgram, keep: bool = False) -> Result:
        """Run a program on a fresh board; ``keep`` what it leaves when something is found."""
        self._retire()
        try:
            board = self._current(program.checkpoint)
            result = self._run(board, program)
            if keep and result.found:
                board.keep_to = self._evidence
            return result
        finally:
            self._retire()

    # Findings

    def _examine(self, program: FuzzProgram, past: Sequence[FuzzProgram], found: Found) -> None:
        """Take a nonconformance that a live board showed: known, or made small, reproduced and reported."""
        key = found.rule, found.words
        self.again[key] += 1
        of_rule = sum(finding.rule == found.rule for finding in self.findings)
        if self.again[key] > 1 or of_rule >= _SHRUNK_OF_A_RULE:
            return
        after = self.numbers.programs, self.numbers.seconds
        self._progress.say(f"nonconformance: {found.rule}: {found.words}, after {after[0]} programs, {after[1]:.0f} s")
        self._retire()
        begin = time.monotonic()

        def shows(result: Result) -> bool:
            return any((each.rule, each.words) == key for each in result.found)

        whole, needs = self._sufficient(program, past, found, shows)
        small = whole
        if needs is not None:
            small = shrink(whole, lambda candidate: self._shows_it(candidate, shows), self._seed, self._shrink_seconds)
        took = time.monotonic() - begin
        seen, first = self.reproduced(small, self._reproduce, shows)
        if any(f.rule == found.rule and f.program.shape == small.shape for f in self.findings):
            shutil.rmtree(self._evidence, ignore_errors=True)
            return
        shown = (found,) if first is None else first.found
        text = next((each for each in shown if (each.rule, each.words) == key), found).explanation
        rules = tuple(dict.fromkeys(each.rule for each in shown))
        finding = Finding(found.rule, found.words, text, small, seen, self._reproduce, needs or 0, rules, after, took)
        self.findings.append(finding)
        self.numbers.last = time.monotonic()
        self._report(finding)
        shutil.rmtree(self._evidence, ignore_errors=True)

    def _sufficient(
        self, program: FuzzProgram, past: Sequence[FuzzProgram], found: Found, shows: Callable[[Result], bool]
    ) -> tuple[FuzzProgram, int | None]:
        """A program that shows a finding on a fresh board, and how many others had to run before: itself, or with more
        and more of what its board had run. The second is None when none does."""
        begin = program.upto(found.step)
        for chosen in (program,) if begin.text == program.text else (begin, program):
            if any(shows(self._fresh(chosen)) for _ in range(_FIRST_TRIES)):
                return chosen, 0
        count = 2
        while count < 2 * len(past):
            whole = joined(past[-count:])
            if len(whole.steps) > MOST_STEPS:
                break
            if shows(self._fresh(whole)):
                return whole, min(count, len(past)) - 1
            count *= 2
        return program, None

    def _shows_it(self, candidate: FuzzProgram, shows: Callable[[Result], bool]) -> bool:
        """Whether a program shows a finding: asked of the live board first, and of a fresh one where that has run
        others."""
        board = self._current(candidate.checkpoint)
        result = self._run(board, candidate)
        if not result.fit:
            self._retire()
        if not shows(result):
            return False
        return board.programs == 1 or shows(self._fresh(candidate))


def boards(provider: TargetProvider) -> MakeBoard:
    """The maker of a campaign's boards."""
    return lambda checkpoint: FuzzBoard(provider, checkpoint)

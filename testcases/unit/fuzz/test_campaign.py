# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on boards that are made up: found, made small, told apart, reproduced, continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from framework.common.progress import Silent
from framework.fuzz import job
from framework.fuzz.board import Found, FuzzBoard, Result
from framework.fuzz.campaign import Campaign, Finding
from framework.fuzz.corpus import Corpus
from framework.fuzz.program import FuzzProgram
from framework.fuzz.shrink import shrink
from framework.fuzz.steps import Step, value_of

Faults = Callable[[Sequence[Step]], Sequence[str]]


class FakeBoard:
    """Shows what ``faults`` says of all steps since it began; blocks are the kinds of steps."""

    def __init__(self, checkpoint: str, faults: Faults, made: list[FakeBoard]) -> None:
        self.checkpoint, self.programs, self.calls = checkpoint, 0, 0
        self.keep_to: Path | None = None
        self.closed = False
        self._faults, self._steps = faults, list[Step]()
        made.append(self)

    def run(self, program: FuzzProgram) -> Result:
        assert not self.closed
        self.programs += 1
        self.calls += 2 * len(program.steps)
        self._steps += program.steps
        found = tuple(
            Found(rule, "words", len(program.steps), f"{rule} explained") for rule in self._faults(self._steps)
        )
        kinds = {step["do"] for step in program.steps}
        return Result(found, frozenset(map(hash, kinds)), frozenset(kinds), not found)

    def __exit__(self, *_rest: object) -> None:
        self.closed = True


def campaign(tmp_path: Path, faults: Faults, **options: Any) -> tuple[Campaign, list[FakeBoard], list[Finding]]:
    made: list[FakeBoard] = []
    told: list[Finding] = []

    def make(checkpoint: str) -> FuzzBoard:
        return FakeBoard(checkpoint, faults, made)  # type: ignore[return-value]

    chosen = {"seed": 1, "seconds": 0.0, "most": 150, "reproduce": 3, "turns": ("probe",)} | options
    corpus = Corpus(tmp_path / "corpus")
    found = Campaign(make, corpus, Silent(), evidence=tmp_path / "evidence", report=told.append, **chosen)
    return found, made, told


def registers(steps: Sequence[Step]) -> Sequence[str]:
    """A fault of two kinds: a registration, and a fast call after it."""
    seen = [number for number, step in enumerate(steps) if value_of_command(step) == "REGISTER_SHM"]
    fast = [number for number, step in enumerate(steps) if step["do"] == "fast"]
    return ["STD-9"] if seen and fast and fast[-1] > seen[0] else []


def value_of_command(step: Step) -> str:
    return str(value_of(step, "command")) if step["do"] == "call" else ""


def test_a_fault_is_found_once_made_small_and_reproduced(tmp_path: Path) -> None:
    found, made, told = campaign(tmp_path, registers)
    with found:
        found.run()
    assert [finding.rule for finding in told] == ["STD-9"] and found.findings == told
    assert told[0].program.shape == ("call REGISTER_SHM()", "fast CALLS_COUNT")
    assert (told[0].seen, told[0].tries, told[0].explanation) == (3, 3, "STD-9 explained")
    assert found.numbers.programs == 150 and found.again["STD-9", "words"] > 1
    assert all(board.closed for board in made)


def test_what_needs_an_earlier_program_is_told_with_it(tmp_path: Path) -> None:
    found, _, told = campaign(
        tmp_path, lambda steps: ["MEM-1"] if sum(s["do"] == "write" for s in steps) >= 3 else [], shrink_seconds=3
    )
    with found:
        found.run()
    assert told[0].needs and told[0].seen == 3
    assert [step["do"] for step in told[0].program.steps if step["do"] != "reset"].count("write") >= 3


def test_what_no_fresh_board_shows_is_told_with_its_evidence(tmp_path: Path) -> None:
    once = iter([["REF-1"]])
    found, made, told = campaign(tmp_path, lambda _steps: next(once, []), most=3)
    with found:
        found.run()
    assert (told[0].seen, told[0].tries) == (0, 3)
    assert made[0].keep_to == tmp_path / "evidence"


def test_a_campaign_goes_on_with_its_corpus_and_drops_what_reaches_nothing_new(tmp_path: Path) -> None:
    first, _, _ = campaign(tmp_path, lambda _steps: [])
    with first:
        first.run()
    kept = first.corpus.programs
    assert 1 < len(kept) <= len(first.features)
    again, _, _ = campaign(tmp_path, lambda _steps: [], most=len(kept))
    again.corpus.add(FuzzProgram("probe", (*kept[0].steps, *kept[0].steps)))
    with again:
        again.run()
    assert again.numbers.programs == len(kept) and again.blocks
    assert len(again.corpus.programs) <= len(kept)


def test_the_same_seed_gives_the_same_programs(tmp_path: Path) -> None:
    shown: list[list[Step]] = [[], []]

    def seen(number: int) -> Faults:
        def look(steps: Sequence[Step]) -> Sequence[str]:
            shown[number][:] = steps
            return []

        return look

    for number in range(2):
        found, _, _ = campaign(tmp_path / str(number), seen(number), most=30)
        with found:
            found.run()
    assert shown[0] == shown[1] and len(shown[0]) > 30


def test_shrinking_asks_once_for_each_program_and_ends_when_its_time_is_over() -> None:
    steps = tuple({"do": "fast", "x1": number} for number in range(1, 9))
    asked: list[str] = []

    def shows(program: FuzzProgram) -> bool:
        asked.append(program.text)
        return any(step.get("x1") == 5 for step in program.steps)

    whole = FuzzProgram("probe", steps)
    assert shrink(whole, shows, 1, 60).steps == ({"do": "fast", "x1": 5},)
    assert len(asked) == len(set(asked))
    assert shrink(whole, lambda _program: True, 1, 0) == whole


def test_a_finding_becomes_a_program_a_test_and_an_explanation(tmp_path: Path) -> None:
    program = FuzzProgram("probe_pair", ({"do": "call", "domain": 1},))
    finding = Finding("STD-9", "words", "the whole story", program, 20, 20, 0, ("STD-9", "ISO-1"), (7, 1.5), 2.0)
    job.write(finding, tmp_path, Silent())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{finding.name}.json", f"{finding.name}.txt", f"test_{finding.name}.py"]
    source = (tmp_path / f"test_{finding.name}.py").read_text()
    assert "probe_pair: tuple[medcheck.Probe, medcheck.Probe]" in source and "20 of 20" in source
    unseen = Finding("REF-1", "words", "", program, 0, 20, 0, ("REF-1",), (7, 1.5), 2.0)
    (tmp_path / "evidence").mkdir()
    job.write(unseen, tmp_path, Silent())
    assert (tmp_path / unseen.name).is_dir() and not (tmp_path / "evidence").exists()

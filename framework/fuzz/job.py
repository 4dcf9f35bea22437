# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck fuzz``: run a campaign, or one program again, and write what was found."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.artifacts.overrides import Overrides
from framework.board.spec import BoardSpec
from framework.common.disclosure import TELL_FIRST
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import atomic_write_text, cache_root
from framework.common.progress import Progress
from framework.fuzz.campaign import TURNS, Campaign, Finding, boards
from framework.fuzz.corpus import Corpus, corpus_of
from framework.fuzz.program import as_pytest, load
from framework.fuzz.steps import DOMAINS
from framework.target.provider import TargetProvider
from framework.target.stack import open_store, prepare_stack
from mediator_ref import RULES


@dataclass(frozen=True)
class FuzzOptions:
    """Choices of a campaign. ``seconds`` and ``most`` (programs) bound it, 0 is no bound; ``on``: checkpoints, none
    stands for all in turn; ``again``: a program's file to run instead."""

    overrides: Overrides
    offline: bool
    mirrors: str | None
    board: str
    seed: int
    seconds: float
    most: int
    reproduce: int
    on: tuple[str, ...]
    again: Path | None
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """The result of a campaign: lines for a reader, a document for programs, and the exit code."""

    text: str
    document: dict[str, Any]
    code: ExitCode


def run(options: FuzzOptions, progress: Progress) -> Outcome:
    """Run a campaign, or a program again.

    :raises UsageError: an option or a file does not fit. :raises InfrastructureError: no board runs here.
    """
    import hypothesis.configuration

    unknown = [name for name in options.on if name not in DOMAINS]
    if unknown:
        raise UsageError(f"no programs are for {', '.join(unknown)}", hint=f"--on takes {', '.join(DOMAINS)}")
    program = None if options.again is None else load(options.again)
    hypothesis.configuration.set_hypothesis_home_dir(cache_root() / "fuzz" / "hypothesis")
    spec = BoardSpec.load(options.board)
    store = open_store(options.offline, options.mirrors, progress)
    stack = prepare_stack(options.overrides, store, progress, cpu=spec.cpu)
    provider = TargetProvider(stack, spec, progress.say)
    corpus = corpus_of(stack.xen) if program is None else Corpus(options.folder / "none")
    with Campaign(
        boards(provider), corpus, progress, seed=options.seed, seconds=options.seconds, most=options.most,
        reproduce=options.reproduce, evidence=options.folder / "evidence",
        report=lambda finding: write(finding, options.folder, progress), turns=options.on or TURNS,
    ) as campaign:  # fmt: skip
        if program is not None:
            seen, first = campaign.reproduced(program, options.reproduce, lambda result: bool(result.found))
            said = f"{seen} of {options.reproduce} fresh boards show it"
            said += f"; trace and consoles of the first: {options.folder / 'evidence'}" if seen else ""
            found = () if first is None else first.found
            shown = "".join(f"{each.rule}: {each.words}\n\n{each.explanation}\n\n" for each in found)
            document = {"seen": seen, "tries": options.reproduce, "found": [asdict(each) for each in found]}
            return Outcome(shown + said, document, ExitCode.FAILED if seen else ExitCode.GOOD)
        campaign.run()
    return _outcome(campaign, options.folder)


def write(finding: Finding, folder: Path, progress: Progress) -> None:
    """Write a finding's files: the program as JSON and as a pytest file, and its explanation."""
    words = _words(finding)
    atomic_write_text(folder / f"{finding.name}.json", finding.program.text + "\n")
    atomic_write_text(folder / f"test_{finding.name}.py", as_pytest(finding.program, finding.name, words))
    atomic_write_text(folder / f"{finding.name}.txt", f"{words}\n\n{finding.explanation}\n")
    evidence = folder / "evidence"
    if not finding.seen and evidence.is_dir():
        # It cannot be had again: what there is of it stays.
        shutil.rmtree(folder / finding.name, ignore_errors=True)
        evidence.rename(folder / finding.name)
    steps = len(finding.program.steps) + finding.program.dies
    progress.say(f"{finding.rule}: {steps} steps, {finding.seen} of {finding.tries} boards: {finding.name}.json")


def _words(finding: Finding) -> str:
    rule = RULES.get(finding.rule.split(" ")[0])
    title = f" ({rule.title})" if rule is not None else ""
    needs = f"; {finding.needs} programs had to run before" if finding.needs else ""
    lines = [
        f"{finding.rule}{title}: {finding.words}",
        f"{finding.seen} of {finding.tries} fresh boards showed it{needs}.",
        f"Steps: {'; '.join(finding.program.shape)}. Broken: {', '.join(finding.rules)}.",
    ]
    if rule is not None and "isolation" in rule.severity.value:
        lines.append(TELL_FIRST)
    return "\n".join(lines)


def _outcome(campaign: Campaign, folder: Path) -> Outcome:
    n = campaign.numbers
    document = {
        "programs": n.programs, "calls": n.calls, "seconds": round(n.seconds, 1), "boards": n.boards,
        "places": len(campaign.blocks), "outcomes": len(campaign.features), "corpus": len(campaign.corpus.programs),
        "findings": [
            {"rule": f.rule, "words": f.words, "steps": len(f.program.steps) + f.program.dies, "seen": f.seen,
             "tries": f.tries, "rules": list(f.rules), "needs": f.needs, "programs": f.after[0],
             "seconds": round(f.after[1], 1), "shrink_seconds": round(f.shrunk, 1),
             "file": str(folder / f"{f.name}.json"), "test": str(folder / f"test_{f.name}.py")}
            for f in campaign.findings
        ],
    }  # fmt: skip
    lines = [
        f"{n.programs} programs ({n.programs / max(n.seconds, 1e-9):.0f}/s), {n.calls} SMCs checked "
        f"({n.calls / max(n.seconds, 1e-9):.0f}/s), {n.boards} boards, {len(campaign.blocks)} places of the mediator, "
        f"{len(campaign.features)} outcomes, {len(campaign.corpus.programs)} programs in the corpus",
        *(_words(f) + f"\n  {folder / f'test_{f.name}.py'}" for f in campaign.findings),
        f"{len(campaign.findings)} findings" if campaign.findings else "nothing found",
    ]
    return Outcome("\n".join(lines), document, ExitCode.FAILED if campaign.findings else ExitCode.GOOD)

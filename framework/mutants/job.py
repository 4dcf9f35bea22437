# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck mutants``: build the Xen with all mutants, run the suite against it, and report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from framework.artifacts import xen as xen_parts
from framework.artifacts.firmware import Builder
from framework.artifacts.overrides import Overrides
from framework.artifacts.source_tree import File
from framework.artifacts.xen_source import XenSource
from framework.common.digest import sha256_file
from framework.common.errors import ExitCode, InfrastructureError
from framework.common.paths import PACKAGE, ROOT, SUITE, atomic_write_text, cache_root
from framework.common.progress import Progress
from framework.mutants import report
from framework.mutants.campaign import Campaign, Job, RunLog, choose, drive
from framework.mutants.compile import Compiler, fingerprints, same_code
from framework.mutants.equivalents import reasons
from framework.mutants.faults import Fault, load
from framework.mutants.outcome import Status, Verdict, judge
from framework.mutants.worker import Run, Worker
from framework.mutants.xen import MEDIATOR, Mutant, MutantXen, provide
from framework.target.stack import builder_here, open_store, prepare_stack

_DECIDING = (SUITE / "lib", ROOT / "mediator_ref", PACKAGE / "conformance", PACKAGE / "probe", PACKAGE / "trace")
"""What decides every test's verdict, beside the Xen; runs of other versions of these count no more."""
_LIVING = (Status.SURVIVED, Status.NOT_MET, Status.TIMEOUT)


@dataclass(frozen=True)
class MutantOptions:
    """Choices of a campaign. ``sample`` mutants (0: all) are drawn by ``seed``; ``seconds`` (0: no end) bound it,
    ``most`` the tests for each mutant. ``seeded``: the faults of the table instead of operators' mutants.
    ``selection`` are pytest's own arguments for the tests."""

    overrides: Overrides
    offline: bool
    mirrors: str | None
    board: str
    sample: int
    seed: int
    seconds: float
    most: int
    workers: int
    operators: tuple[str, ...]
    seeded: bool
    folder: Path
    selection: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a campaign so far."""

    xen: MutantXen
    verdicts: dict[int, Verdict]
    unfit: list[str]
    faults: dict[int, Fault]

    @property
    def mutants(self) -> dict[int, Mutant]:
        """All mutants of the Xen by number."""
        return self.xen.mutants

    @property
    def wrong(self) -> list[str]:
        """What is not as the table of faults says: a fault that lives, a change without effect that was killed."""
        found = []
        for number, fault in self.faults.items():
            verdict = self.verdicts.get(number)
            if verdict is None or verdict.status is Status.UNDECIDED:
                continue
            if fault.preserves and verdict.status.kills:
                found.append(f"{fault.id} changes nothing, and was killed by {verdict.test}: {verdict.status}")
            elif not fault.preserves and not verdict.status.kills:
                found.append(f"{fault.id} lives ({verdict.status}): {fault.what}")
        return found

    @property
    def code(self) -> ExitCode:
        """1 when a seeded fault lives, or a change without effect was killed; a living mutant of an operator is a
        number of the report."""
        return ExitCode.FAILED if self.wrong else ExitCode.GOOD


@dataclass(frozen=True)
class Built:
    """The Xen with all mutants, the source that it was made from, and the other parts of its board."""

    xen: MutantXen
    source: XenSource
    overrides: Overrides

    def words(self, board: str) -> list[str]:
        """pytest's options that choose the board and all parts but Xen."""
        return [*(f"--mc-{word}" for word in self.overrides.words()), f"--mc-board={board}"]


def build(
    overrides: Overrides, offline: bool, mirrors: str | None, operators: Sequence[str], faults: Sequence[Fault],
    progress: Progress,
) -> Built:  # fmt: skip
    """Build the Xen with these operators' mutants and these faults, and everything that its board needs.

    :raises UsageError: an option does not fit. :raises BuildError: something cannot be built.
    """
    store = open_store(offline, mirrors, progress)
    builder = builder_here(store, progress)
    source, config = xen_parts.source_of(overrides, builder)
    xen = provide(source, config, overrides.cc, builder.cache, progress, operators, faults)
    others = _without_source(overrides, builder)
    # Fetched and built here once; the workers find all of it in the cache.
    prepare_stack(replace(others, xen=xen.image, xen_syms=xen.symbols), store, progress)
    return Built(xen, source, others)


def run(options: MutantOptions, progress: Progress) -> Outcome:
    """Run a campaign, or go on with it, and write its report.

    :raises UsageError: an option does not fit. :raises InfrastructureError: no test can run here.
    """
    faults = load() if options.seeded else []
    operators = () if options.seeded else options.operators
    built = build(options.overrides, options.offline, options.mirrors, operators, faults, progress)
    xen = built.xen
    numbers = choose(xen.mutants.values(), options.sample, options.seed)
    faulty = {mutant.number: fault for mutant in xen.mutants.values() for fault in faults if fault.id == mutant.id}
    campaign = _drive(options, built, numbers, faulty, progress)
    outcome = Outcome(
        xen, _with_equivalents(xen, campaign.verdicts(), options.folder, progress), campaign.unfit,
        faulty,
    )  # fmt: skip
    write(outcome, built.source, options.folder)
    return outcome


def write(outcome: Outcome, source: XenSource, folder: Path) -> None:
    """Write ``mutants.json`` (mutation-testing-elements), ``survivors.md`` and ``seeded.md`` into a folder."""
    file: File = source.files[MEDIATOR]
    document = report.document(file.data.decode(errors="replace"), outcome.mutants, outcome.verdicts)
    atomic_write_text(folder / "mutants.json", json.dumps(document, indent=1) + "\n")
    atomic_write_text(folder / "survivors.md", report.survivors(outcome.mutants, outcome.verdicts))
    if outcome.faults:
        rows = [(fault, outcome.verdicts[number]) for number, fault in sorted(outcome.faults.items())
                if number in outcome.verdicts]  # fmt: skip
        atomic_write_text(folder / "seeded.md", report.seeded(rows))


def _without_source(overrides: Overrides, builder: Builder) -> Overrides:
    """The chosen parts with dom0's tools by their folder, and nothing that a hypervisor is built from."""
    chosen = overrides
    if overrides.xen_tree is not None or overrides.xen_patch or overrides.xen_config or overrides.cc:
        chosen = xen_parts.frozen(overrides, xen_parts.provide(overrides, builder))
    return replace(chosen, xen=None, xen_syms=None)


def _drive(
    options: MutantOptions, built: Built, numbers: Sequence[int], faults: Mapping[int, Fault], progress: Progress
) -> Campaign:
    xen, words = built.xen, built.words(options.board)
    first = Worker(xen, options.selection, words, options.folder, 0)
    log = RunLog(cache_root() / "mutants" / f"{xen.key}-{_deciding()}" / "runs.jsonl", _versions(first.tests))
    about = {
        number: {test for test, rules in first.rules.items() if rules & set(fault.expected)}
        for number, fault in faults.items()
    }
    campaign = Campaign(xen, log, first.tests, numbers, options.most, about)

    def make(number: int) -> Worker:
        return first if number == 0 else Worker(xen, options.selection, words, options.folder, number)

    with progress.task("mutants", total=len(numbers), unit="mutants") as task:
        known = [len(numbers) - campaign.left()]
        task.advance(known[0])

        def told(job: Job, run: Run) -> None:
            status, evidence = judge(run)
            if job.number == 0 and not run.passed:
                progress.say(f"{job.test} fails without a mutant: {status}: {'; '.join(evidence)}")
            now = len(numbers) - campaign.left()
            task.advance(now - known[0])
            known[0] = now

        drive(campaign, make, options.workers, options.seconds, told)
    if campaign.unfit and len(campaign.unfit) == len(first.tests):
        raise InfrastructureError("every test fails without any mutant", hint="run `medcheck test` and look why")
    return campaign


def _versions(tests: Iterable[str]) -> dict[str, str]:
    """For each test the digests of its file and of the fixtures beside it: a new test costs no other one its runs."""

    @cache
    def version(name: str) -> str:
        files = (SUITE / name, (SUITE / name).with_name("conftest.py"))
        return " ".join(sha256_file(path)[:12] for path in files if path.is_file())

    return {test: version(test.partition("::")[0]) for test in tests}


def _deciding() -> str:
    total = hashlib.sha256()
    for folder in _DECIDING:
        for path in sorted(folder.rglob("*.py")):
            total.update(f"{path.relative_to(folder)} {sha256_file(path)}\n".encode())
    return total.hexdigest()[:12]


def _with_equivalents(
    xen: MutantXen, verdicts: dict[int, Verdict], folder: Path, progress: Progress
) -> dict[int, Verdict]:
    """The verdicts, with the survivors told apart that could never be killed: by machine code, then by reasons."""
    living = [number for number, verdict in verdicts.items() if verdict.status in _LIVING]
    if not living:
        return verdicts
    compiler = Compiler(xen.compiler, folder, MEDIATOR)
    with progress.task("comparing the code of survivors", total=len(living) + 1, unit="mutants") as task:
        workers = len(os.sched_getaffinity(0))
        same = same_code(fingerprints(compiler, xen.preprocessed, sorted(living), workers, task.advance))
    written = reasons()
    found = dict(verdicts)
    for number in living:
        mutant = xen.mutants[number]
        if number in same and same[number] == 0:
            found[number] = Verdict(Status.EQUIVALENT, evidence=("the same machine code",))
        elif number in same:
            found[number] = Verdict(Status.DUPLICATE, evidence=(xen.mutants[same[number]].id,))
        elif mutant.id in written:
            found[number] = Verdict(Status.EQUIVALENT, evidence=(written[mutant.id],))
    return found

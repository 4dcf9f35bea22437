# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of a matrix: one run each, named by the content of everything that decides it, and run once for each name.

A cell carries no file: the machine that runs it reads the same paths (its own clone, or a shared folder), names the
cell by what it finds there, and refuses one that has another content.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import mediator_ref
from framework.artifacts import xen
from framework.artifacts.cache import BuildCache, canonical
from framework.artifacts.optee import read_optee_tree
from framework.board.spec import BoardSpec
from framework.common.digest import short_key
from framework.common.errors import InfrastructureError, MedcheckError, UsageError
from framework.common.paths import IMAGES, PACKAGE, SUITE, cache_root
from framework.common.progress import Progress, Silent
from framework.jobs.profiles import profiles
from framework.jobs.run import RunOptions, run
from framework.report.facts import REPORT
from framework.target.stack import builder_here, open_store, with_guests

FILES = (REPORT, "index.html", "summary.md", "junit.xml")
"""What is kept of a cell's report; its traces and consoles stay where it ran."""
_TREES = ("xen_tree", "xen_rev", "xen_patch", "xen_config", "cc", "optee_tree")
"""Options that stand for what is built from trees: a tree's content is not that of its folder."""
_REFERENCE = Path(mediator_ref.__file__).parent


@dataclass(frozen=True)
class Cell:
    """One run to make: ``inputs`` has the digest of each thing that decides its result, by name."""

    options: RunOptions
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name by content, such as ``cell-0f3a…``."""
        return "cell-" + short_key(dict(self.inputs))


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: the report's ``files`` (none if there is no report), ``error`` where it could not be
    decided, and whether it is ``cached``: known from an earlier run."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    error: str | None = None
    cached: bool = False


def name_cell(options: RunOptions, progress: Progress) -> Cell:
    """Name the run with these options by the content of all that decides its result, medcheck's own code included.

    :raises UsageError: an option names what does not exist, or a tree or patch is none.
    """
    known = profiles()
    if options.profile not in known:
        raise UsageError(f"no profile {options.profile}", hint=f"one of {', '.join(known)}")
    builder = builder_here(open_store(options.offline, options.mirrors, progress), progress)
    others = {name: value for name, value in options.overrides.__dict__.items() if name not in _TREES}
    optee = options.overrides.optee_tree
    inputs: dict[str, object] = {
        "Xen": xen.inputs_of(options.overrides, builder),
        "OP-TEE": None if optee is None else read_optee_tree(optee, progress.say).digest(),
        "parts under test": others,
        "profile": [known[options.profile], options.xtest, options.trace, options.tests, options.senses],
        "board": with_guests(BoardSpec.load(options.board), options.domus),
        "policy": [options.fail_on, options.baseline, options.fail_fast, options.reruns],
        "medcheck": [PACKAGE, _REFERENCE, IMAGES, SUITE],
    }
    return Cell(options, {name: short_key(canonical(value)) for name, value in inputs.items()})


def known_outcome(cell: Cell) -> Outcome | None:
    """The outcome of a cell that was decided before, on this machine or by another for it; else None."""
    folder = BuildCache(cache_root()).find("cell", cell.inputs)
    if folder is None:
        return None
    return Outcome({name: (folder / name).read_bytes() for name in FILES}, cached=True)


def keep(cell: Cell, outcome: Outcome) -> None:
    """Remember the outcome of a cell, if it was decided: what was not is tried again next time."""
    if outcome.error is not None:
        return

    def write(folder: Path) -> None:
        for name in FILES:
            (folder / name).write_bytes(outcome.files[name])

    BuildCache(cache_root()).get("cell", cell.inputs, write)


def execute(cell: Cell, folder: Path, progress: Progress) -> Outcome:
    """Run a cell, with its report in ``folder``. Whatever ends the run early, but an interruption, is its outcome."""
    try:
        found = run(replace(cell.options, report=folder, command=("run", *_words(cell.options))), progress)
    except (MedcheckError, OSError) as error:
        return Outcome(error=str(error))
    if isinstance(found.failure, KeyboardInterrupt):
        raise found.failure
    files = {name: (folder / name).read_bytes() for name in FILES}
    undecided = found.report.verdict == "infrastructure"
    return Outcome(files, (found.report.reason or "no reason was recorded") if undecided else None)


def execute_anywhere(cell: Cell) -> Outcome:
    """Run a cell on a machine of a cluster, unless it has the outcome already.

    The whole report, with traces and consoles, stays in this machine's cache, below ``reports``.
    """
    try:
        here = name_cell(cell.options, Silent())
        if differing := [name for name, digest in cell.inputs.items() if here.inputs.get(name) != digest]:
            raise InfrastructureError(
                f"the worker has another content of: {', '.join(differing)}",
                hint="give every machine the same medcheck, compiler and trees, at the same paths",
            )
        if (known := known_outcome(cell)) is not None:
            return known
        folder = cache_root() / "reports" / cell.name
        if folder.exists():
            # Of a cell that was not decided, or whose worker died.
            shutil.rmtree(folder)
        outcome = execute(cell, folder, Silent())
        keep(cell, outcome)
    except (MedcheckError, OSError) as error:
        return Outcome(error=str(error))
    return outcome


def _words(options: RunOptions) -> list[str]:
    """The command line of ``medcheck run`` that makes the same run."""
    words = [f"--profile={options.profile}", f"--board={options.board}"]
    words += [] if options.domus is None else [f"--domus={options.domus}"]
    return [*words, *(f"--{word}" for word in options.overrides.chosen())]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The same run for many Xens: one table, whose columns are cells that are known by content and need not run again."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.artifacts.source_tree import commit_of
from framework.common.errors import ExitCode, MedcheckError, UsageError, redacted
from framework.common.paths import atomic_write
from framework.common.progress import Progress
from framework.common.safe_files import make_own
from framework.jobs import cells
from framework.jobs.cells import Cell, Outcome
from framework.jobs.cluster import spread
from framework.jobs.run import RunOptions
from framework.jobs.run_report import CODES, host_facts
from framework.report import json_report
from framework.report import matrix as table
from framework.report.facts import MATRIX, REPORT
from framework.report.write import point_latest

_NOT_RUN = "it did not run"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class MatrixOptions:
    """The choices of ``medcheck matrix``: a run, and what it is done for: each of the commits ``revs`` (none: the tree
    as it is, or the pinned source) with each of the ``compilers`` (none: that of the run). ``scheduler``: address of
    a Dask scheduler whose workers run the cells; None: this machine does."""

    run: RunOptions
    revs: tuple[str, ...] = ()
    compilers: tuple[str, ...] = ()
    scheduler: str | None = None


@dataclass(frozen=True)
class MatrixResult:
    """The document as written into ``folder``, and the exit code it means."""

    document: Mapping[str, Any]
    folder: Path
    code: ExitCode


def matrix(options: MatrixOptions, progress: Progress) -> MatrixResult:
    """Run all cells that are not known yet. The table is written anew after each, so that it is there whatever ends
    this; a cell that breaks is a column of it.

    :raises UsageError: before anything runs: two options contradict each other, or there is no such commit.
    """
    started = datetime.now(UTC)
    folder = options.run.report or Path("reports") / started.strftime("%Y%m%d-%H%M%S")
    columns = _columns(options)
    make_own(folder)
    writer = _Writer(options, list(columns), folder, started)
    jobs: dict[str, Cell] = {}
    with progress.task("reading the trees", total=len(columns), unit="columns") as task:
        for name, run in columns.items():
            try:
                cell = cells.name_cell(run, progress)
            except MedcheckError as error:
                writer.cannot(name, str(error))
            else:
                writer.expect(name, cell)
                jobs[cell.name] = cell
            task.advance()
    for name, cell in list(jobs.items()):
        if (known := cells.known_outcome(cell)) is not None:
            writer.has(name, known)
            del jobs[name]
    document = writer.write()
    for name, outcome in _outcomes(jobs, options, writer, progress):
        cells.keep(jobs[name], outcome)
        writer.has(name, outcome)
        document = writer.write()
    if options.run.report is None:
        point_latest(folder.parent, folder)
    return MatrixResult(document, folder, CODES[document["verdict"]])


def _columns(options: MatrixOptions) -> dict[str, RunOptions]:
    """The run of each column, by its name. A commit is taken by its hash: its name may move while others run."""
    overrides = options.run.overrides
    if options.revs and overrides.xen_tree is None:
        raise UsageError("--revs needs --xen-tree", hint="name the repository that has the commits")
    if options.revs and overrides.xen_rev is not None:
        raise UsageError("--revs and --xen-rev: one of them says which commits")
    found = {}
    for rev in dict.fromkeys(options.revs) or (None,):
        for compiler in dict.fromkeys(options.compilers) or (overrides.cc,):
            chosen = replace(overrides, cc=compiler)
            if rev is not None and overrides.xen_tree is not None:
                chosen = replace(chosen, xen_rev=commit_of(overrides.xen_tree, rev, "--revs"))
            base = rev or overrides.xen_rev or ("pinned" if overrides.xen_tree is None else overrides.xen_tree.name)
            name = f"{base} {compiler}" if options.compilers else base
            found[name] = replace(options.run, overrides=chosen)
    return found


def _outcomes(
    jobs: Mapping[str, Cell], options: MatrixOptions, writer: _Writer, progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    """Run cells, here or on a cluster, and yield names and outcomes as they come."""
    if options.scheduler is None:
        for number, (name, cell) in enumerate(jobs.items(), start=1):
            progress.say(f"cell {number} of {len(jobs)}: {writer.column_of(name)} ({name})")
            yield name, cells.execute(cell, writer.folder_of(name), progress)
    elif jobs:
        with progress.task("cells", total=len(jobs), unit="cells") as task:
            for name, result in spread(options.scheduler, jobs, cells.execute_anywhere, progress):
                task.advance()
                yield name, result if isinstance(result, Outcome) else Outcome(error=str(result))


class _Writer:
    """The table as far as it is known, and its files."""

    def __init__(self, options: MatrixOptions, columns: Sequence[str], folder: Path, started: datetime) -> None:
        self._options = options
        self._names = columns
        self._folder = folder
        self._started = started
        self._begin = time.monotonic()
        self._cells: dict[str, str] = {}
        self._outcomes: dict[str, Outcome] = {}

    def cannot(self, column: str, error: str) -> None:
        """A column whose cell cannot even be named."""
        self._outcomes[column] = Outcome(error=error)

    def expect(self, column: str, cell: Cell) -> None:
        """A column is that of a cell."""
        self._cells[column] = cell.name

    def has(self, cell: str, outcome: Outcome) -> None:
        """A cell's outcome, for all columns of equal content."""
        for column in self._names:
            if self._cells.get(column) == cell:
                self._outcomes[column] = outcome

    def column_of(self, cell: str) -> str:
        """The first column of a cell."""
        return next(column for column in self._names if self._cells.get(column) == cell)

    def folder_of(self, cell: str) -> Path:
        """Where the report of a cell goes."""
        return self._folder / self._where(self.column_of(cell))

    def write(self) -> dict[str, Any]:
        """Write the reports that came from elsewhere, then the table; return its document."""
        columns = [self._column(name) for name in self._names]
        verdict, reason = table.verdict_of(columns)
        run = self._options.run
        document = {
            "schema_version": table.SCHEMA_VERSION,
            "verdict": verdict,
            "reason": reason,
            "profile": run.profile,
            "board": run.board,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._begin, 3),
            "host": host_facts(),
            "reproduce": redacted(shlex.join(["./medcheck", *run.command])),
            "columns": columns,
        }
        # What is opened first gets its name last: where matrix.json is new, everything is.
        files = {
            MATRIX: json_report.dump(document),
            "summary.md": table.summary(document, terminal=False).encode(),
            "index.html": table.page(document).encode(),
        }
        with ExitStack() as stack:
            for name, data in files.items():
                stack.enter_context(atomic_write(self._folder / name)).write(data)
        return document

    def _column(self, name: str) -> dict[str, Any]:
        outcome = self._outcomes.get(name, Outcome(error=_NOT_RUN))
        where = self._where(name)
        for file, data in outcome.files.items():
            target = self._folder / where / file
            if not target.exists():
                with atomic_write(target) as stream:
                    stream.write(data)
        report = json.loads(outcome.files[REPORT]) if REPORT in outcome.files else None
        cell = self._cells.get(name, "")
        return table.column(name, cell, report, outcome.error, cached=outcome.cached, where=where)

    def _where(self, column: str) -> str:
        """A column's folder: names of commits may hold what a path may not."""
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", column)
        return f"{self._names.index(column) + 1}-{plain}"[:_LONGEST_NAME]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that reached something new, kept in the cache by their content, for one Xen each."""

from __future__ import annotations

from pathlib import Path

from framework.common.digest import sha256_file
from framework.common.errors import UsageError
from framework.common.paths import atomic_write_text, cache_root
from framework.fuzz.program import FuzzProgram, load


class Corpus:
    """The programs of a folder, in the order of their names. What is no program there is left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[FuzzProgram] = []
        for path in sorted(folder.glob("*.json")):
            try:
                self.programs.append(load(path))
            except UsageError:
                continue  # of another version of the language

    def add(self, program: FuzzProgram) -> None:
        """Keep a program."""
        if program not in self.programs:
            self.programs.append(program)
            atomic_write_text(self._path(program), program.text + "\n")

    def drop(self, program: FuzzProgram) -> None:
        """Forget a program that reaches nothing which others do not."""
        self.programs.remove(program)
        self._path(program).unlink(missing_ok=True)

    def of(self, checkpoint: str) -> list[FuzzProgram]:
        """The programs for a checkpoint."""
        return [program for program in self.programs if program.checkpoint == checkpoint]

    def _path(self, program: FuzzProgram) -> Path:
        return self.folder / f"{program.digest}.json"


def corpus_of(xen: Path) -> Corpus:
    """The corpus for a hypervisor's image: blocks are addresses in it."""
    return Corpus(cache_root() / "fuzz" / sha256_file(xen)[:16])

# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler's word about mutants: which it refuses, and which make no difference in its output."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.make import build_environment
from framework.common.errors import BuildError
from framework.mutants.schemata import Schemata

_COMMAND = re.compile(r"^(?:saved)?cmd_\S+ := (.*)$", re.M)
_ERROR = re.compile(r"^(?P<file>[^:\n]*):(?P<line>\d+):\d+: (?:fatal )?error: (?P<words>.*)$", re.M)
_ROUNDS = 12
"""An error may hide others, so what is left is compiled again; each round drops at least one mutant."""


@dataclass(frozen=True)
class Compiler:
    """The command that compiles the mediator in a built tree: ``words`` without input and output, run in ``folder``.
    What is preprocessed needs no tree."""

    words: tuple[str, ...]
    folder: Path
    source: str

    @classmethod
    def of(cls, tree: Path, source: str) -> Compiler:
        """The command that Xen's build used for ``source`` (a path below ``tree/xen``).

        :raises BuildError: the build left no such command.
        """
        path = tree / "xen" / source
        record = path.with_name(f".{path.stem}.o.cmd")
        found = _COMMAND.search(record.read_text()) if record.is_file() else None
        if found is None:
            raise BuildError("Xen's build left no command for the mediator", where=str(record))
        words = shlex.split(found[1].split(";")[0])
        kept: list[str] = []
        skip = False
        for word in words:
            if skip or word in ("-c", "-MMD", "-MP", "-g", source):
                skip = False
                continue
            if word in ("-o", "-MF"):
                skip = True
                continue
            kept.append(word)
        return cls(tuple(kept), tree / "xen", source)

    def preprocess(self, text: str, out: Path) -> None:
        """Write ``text`` with all its headers into ``out``, so that no tree is needed any more.

        :raises BuildError: the preprocessor refuses it.
        """
        near = [f"-I{Path(self.source).parent}"]
        done = self._run([*near, "-E", "-DMEDCHECK_ALONE", "-x", "c", "-", "-o", str(out)], text)
        if done.returncode:
            raise BuildError(f"the mediator's source cannot be preprocessed:\n{done.stderr[-2000:]}")

    def refused(self, text: str) -> list[tuple[int, str]]:
        """Lines of ``text`` that the compiler refuses, and why; empty when it takes all.

        :raises BuildError: it fails without naming a line.
        """
        near = [f"-I{Path(self.source).parent}"]
        done = self._run([*near, "-fmax-errors=0", "-ftrack-macro-expansion=0", "-fsyntax-only", "-x", "c", "-"], text)
        if done.returncode == 0:
            return []
        found = [(int(m["line"]), m["words"]) for m in _ERROR.finditer(done.stderr) if m["file"] == "<stdin>"]
        if not found:
            raise BuildError(f"the mediator's source does not compile:\n{done.stderr[-2000:]}")
        return found

    def fingerprint(self, preprocessed: Path, number: int) -> str:
        """A hash of the assembler text that one mutant compiles to.

        :raises BuildError: it does not compile alone.
        """
        text = preprocessed.read_text()
        switched = text.replace("MEDCHECK_NUMBER", str(number))
        done = self._run(["-w", "-S", "-x", "cpp-output", "-", "-o", "-"], switched)
        if done.returncode:
            raise BuildError(f"mutant {number} does not compile alone:\n{done.stderr[-2000:]}")
        return hashlib.sha256(done.stdout.encode()).hexdigest()

    def _run(self, words: list[str], text: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self.words, *words], input=text, cwd=self.folder, env=build_environment(), text=True,
                capture_output=True, check=False,
            )  # fmt: skip
        except OSError as error:
            raise BuildError(f"the compiler does not run: {error.strerror}", where=self.words[0]) from error


def drop_refused(compiler: Compiler, numbers: Iterable[int], render: Callable[[set[int]], Schemata]) -> dict[int, str]:
    """Find the mutants that do not compile: their numbers, and the compiler's words.

    :raises BuildError: the compiler refuses the source without any mutant, or does not come to an end.
    """
    left: set[int] = set(numbers)
    dropped: dict[int, str] = {}
    for _ in range(_ROUNDS):
        schemata = render(left)
        complaints = compiler.refused(schemata.text)
        if not complaints:
            return dropped
        owners = {schemata.owner(line): words for line, words in reversed(complaints)}
        bad = {number: words for number, words in owners.items() if number}
        if fixed := {number: words for number, words in bad.items() if number not in left}:
            number, words = next(iter(fixed.items()))
            raise BuildError(f"variant {number} does not compile: {words}")
        if not bad:
            # A macro that takes its arguments apart fails where its use begins, or behind the mutant.
            suspects = {number: words for line, words in complaints for number in schemata.near(line)}
            bad = {number: words for number, words in suspects.items() if compiler.refused(render({number}).text)}
        if not bad:
            lines = schemata.text.split("\n")
            shown = "\n".join(f"{line}: {words}: {lines[line - 1][:200]}" for line, words in complaints[:5])
            raise BuildError(f"the compiler refuses the mediator's source, and no mutant is to blame:\n{shown}")
        dropped |= bad
        left -= bad.keys()
    raise BuildError("the compiler finds new mutants to refuse each time")


def fingerprints(
    compiler: Compiler, preprocessed: Path, numbers: Iterable[int], workers: int, done: Callable[[], object]
) -> dict[int, str]:
    """The fingerprint of each mutant, and of the source as it was (0)."""

    def one(number: int) -> tuple[int, str]:
        result = compiler.fingerprint(preprocessed, number)
        done()
        return number, result

    with ThreadPoolExecutor(workers) as pool:
        return dict(pool.map(one, [0, *numbers]))


def same_code(prints: Mapping[int, str]) -> dict[int, int]:
    """For each mutant with the machine code of an earlier one, or of the source (0), that one's number."""
    first: dict[str, int] = {}
    found = {}
    for number in sorted(prints):
        earlier = first.setdefault(prints[number], number)
        if earlier != number:
            found[number] = earlier
    return found

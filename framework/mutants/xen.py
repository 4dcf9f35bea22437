# SPDX-License-Identifier: GPL-2.0-or-later
"""One Xen that holds every mutant: what goes into it, its build, and where its switch is in memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.artifacts.make import CROSS
from framework.artifacts.source_tree import File
from framework.artifacts.xen_build import XenConfig, build_hypervisor, built_tree
from framework.artifacts.xen_source import XenSource
from framework.board.board import Board
from framework.board.physical_memory import physical_memory
from framework.common.errors import BuildError, UsageError
from framework.common.progress import Progress
from framework.mutants.compile import Compiler, drop_refused
from framework.mutants.faults import Fault, patched
from framework.mutants.mutation import Mutation, Place
from framework.mutants.operators import OPERATORS, mutations_of
from framework.mutants.schemata import REACHED, SWITCH, Schemata, render
from framework.mutants.syntax import Source
from framework.mutants.variants import Variant, variant_of

MEDIATOR = "xen/arch/arm/tee/optee.c"
_MUTANTS, _PREPROCESSED, _SCHEMATA = "mutants.json", "mediator.i", "mediator.c"
_RECIPE = ("syntax", "operators", "mutation", "schemata", "variants", "compile", "faults", "xen")
"""Modules here that decide what is built."""
_CONFIG = "./include/xen/config.h"
_FIRST_SYMBOL = "_start"
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class Mutant:
    """One number of the schemata: an operator's ``mutation``, or a ``fault`` of meaning."""

    number: int
    id: str
    function: str
    operator: str
    place: Place
    original: str
    replacement: str
    words: str


@dataclass(frozen=True)
class MutantXen:
    """The built hypervisor, and its mutants by number. ``switch`` and ``reached`` are offsets of the symbols from the
    image's first byte; ``refused`` counts the mutants that do not compile, ``compiler`` are the words that compile what
    is :attr:`preprocessed`."""

    folder: Path
    mutants: dict[int, Mutant]
    refused: int
    switch: int
    reached: int
    size: int
    compiler: tuple[str, ...]

    @property
    def image(self) -> Path:
        """The hypervisor's flat image."""
        return self.folder / "xen"

    @property
    def symbols(self) -> Path:
        """The hypervisor's ELF file."""
        return self.folder / "xen-syms"

    @property
    def preprocessed(self) -> Path:
        """The mediator's source with all mutants and headers, in which ``MEDCHECK_NUMBER`` stands for a number."""
        return self.folder / _PREPROCESSED

    @property
    def key(self) -> str:
        """What tells this build from others."""
        return self.folder.name

    def set(self, board: Board, number: int) -> None:
        """Switch a mutant on in a board that stands still; 0 is the mediator as it was."""
        base = board.spec.load_map.xen
        with physical_memory(board) as memory:
            memory.write(base + self.switch, number.to_bytes(_NUMBER_BYTES, "little"))
            memory.write(base + self.reached, bytes(self.size))

    def met(self, board: Board) -> list[int]:
        """The numbers of the switches that a board has reached since :meth:`set`."""
        with physical_memory(board) as memory:
            marks = memory.read(board.spec.load_map.xen + self.reached, self.size)
        return [number for number, mark in enumerate(marks) if mark and number in self.mutants]


def provide(
    source: XenSource, config: XenConfig, compiler: str | None, cache: BuildCache, progress: Progress,
    operators: Sequence[str] = tuple(OPERATORS), faults: Sequence[Fault] = (),
) -> MutantXen:  # fmt: skip
    """The Xen with all mutants of ``source``'s mediator and all ``faults``, from the cache or built now.

    :raises UsageError: the tree has no mediator, or a fault does not apply. :raises BuildError: it does not build.
    """
    if MEDIATOR not in source.files:
        raise UsageError(f"this tree has no {MEDIATOR}", where=str(source.where))
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown:
        raise UsageError(f"no operator {', '.join(unknown)}", hint=f"one of {', '.join(OPERATORS)}")
    maker = _Maker(source, config, compiler, cache, progress, tuple(operators), tuple(faults))
    inputs = {
        "source": source.only(lambda name: name.startswith(("xen/", "config/"))).digest(),
        "config": config.text,
        "compiler": compiler or "",
        "operators": list(operators),
        "faults": [[fault.id, fault.patch] for fault in faults],
        "recipe": [Path(__file__).with_name(f"{name}.py") for name in _RECIPE],
    }
    return read(cache.get("xen-mutants", inputs, maker.build))


@dataclass(frozen=True)
class _Maker:
    source: XenSource
    config: XenConfig
    compiler: str | None
    cache: BuildCache
    progress: Progress
    operators: tuple[str, ...]
    faults: tuple[Fault, ...]

    def build(self, out: Path) -> None:
        original = Source(self.source.files[MEDIATOR].data, MEDIATOR)
        mutations = dict(enumerate(mutations_of(original, self.operators), start=1))
        variants, mutants = self._variants(original, len(mutations))

        def some(numbers: set[int]) -> Schemata:
            return render(original, {n: m for n, m in mutations.items() if n in numbers}, variants)

        with (
            tempfile.TemporaryDirectory(prefix="medcheck-built-") as unused,
            built_tree(self.source, self.config, self.compiler, self.cache, self.progress, Path(unused)) as tree,
        ):
            compiler = Compiler.of(tree, MEDIATOR.removeprefix("xen/"))
            with self.progress.task(f"compiling {len(mutations)} mutants"):
                refused = drop_refused(compiler, mutations, some)
            schemata = some(mutations.keys() - refused.keys())
            compiler.preprocess(schemata.text, out / _PREPROCESSED)
            words = [word for word in compiler.words if not word.startswith("-I") and word not in ("-include", _CONFIG)]
        mutants |= {n: _of(n, mutation) for n, mutation in mutations.items() if n not in refused}
        changed = {**self.source.files, MEDIATOR: File(schemata.text.encode())}
        built = build_hypervisor(
            replace(self.source, files=changed), self.config, self.compiler, self.cache, self.progress
        )
        for name in ("xen", "xen-syms"):
            (out / name).write_bytes((built / name).read_bytes())
        (out / _SCHEMATA).write_text(schemata.text)
        symbols = _symbols(out / "xen-syms")
        document = {
            "mutants": [asdict(mutants[number]) for number in sorted(mutants)],
            "refused": {str(n): [_of(n, mutations[n]).words, why] for n, why in refused.items()},
            "switch": symbols[SWITCH] - symbols[_FIRST_SYMBOL],
            "reached": symbols[REACHED] - symbols[_FIRST_SYMBOL],
            "size": len(schemata.numbers),
            "compiler": words,
        }
        (out / _MUTANTS).write_text(json.dumps(document, indent=1) + "\n")

    def _variants(self, original: Source, used: int) -> tuple[list[Variant], dict[int, Mutant]]:
        variants, mutants = [], {}
        for number, fault in enumerate(self.faults, start=used + 1):
            changed = Source(patched(self.source, fault, MEDIATOR), fault.id)
            variant = variant_of(number, f"fault {fault.id}", original, changed)
            variants.append(variant)
            first = variant.changed[0]
            before = {function.name: function for function in original.functions()}[first.name]
            line = before.node.start_point.row + 1
            place = Place(line, 1, before.node.end_point.row + 1, 2)
            mutants[number] = Mutant(
                number, fault.id, first.name, f"fault-{fault.kind}", place, before.head, fault.what, fault.what
            )
        return variants, mutants


def _of(number: int, mutation: Mutation) -> Mutant:
    return Mutant(
        number, mutation.id, mutation.function, mutation.operator, mutation.place, mutation.original,
        mutation.replacement, mutation.words,
    )  # fmt: skip


def _symbols(path: Path) -> dict[str, int]:
    done = subprocess.run([f"{CROSS}nm", str(path)], capture_output=True, text=True, check=False)
    rows = (line.split() for line in done.stdout.splitlines())
    found = {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[2] in (SWITCH, REACHED, _FIRST_SYMBOL)}
    if len(found) != 3:
        raise BuildError("the built Xen lacks the mutants' switch", where=str(path))
    return found


def read(folder: Path) -> MutantXen:
    """Read a folder that :func:`provide` has built."""
    document = json.loads((folder / _MUTANTS).read_text())
    mutants = [Mutant(**{**row, "place": Place(**row["place"])}) for row in document["mutants"]]
    return MutantXen(
        folder, {mutant.number: mutant for mutant in mutants}, len(document["refused"]), document["switch"],
        document["reached"], document["size"], tuple(document["compiler"]),
    )  # fmt: skip

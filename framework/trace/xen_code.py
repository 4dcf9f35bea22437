# SPDX-License-Identifier: GPL-2.0-or-later
"""The mediator's code in ``xen-syms``: where it lies, which source line each instruction belongs to, and where it
branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from framework.trace.dwarf import Budget

UNITS = ("tee/optee.c", "tee/tee.c", "arm/vsmc.c")
"""Ends of the names of the compilation units that are the mediator: OP-TEE's, what calls it, and the way there."""
_WORD = 4
_MOST_CODE = 1 << 20
_BRK = 0xD4200000


@dataclass(frozen=True, slots=True)
class Row:
    """Instructions from ``start`` to before ``end``, of ``line`` of file number ``file``."""

    start: int
    end: int
    file: int
    line: int


@dataclass(frozen=True, slots=True)
class Function:
    """A function with code of its own (not one that was only inlined)."""

    name: str
    start: int
    file: int
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    """A conditional branch. ``outcomes``: bit 0 it can fall through, bit 1 it can branch; a way that leads straight
    into a trap (``BUG``, ``ASSERT``) is none that a good run takes."""

    address: int
    file: int
    line: int
    outcomes: int


@dataclass(frozen=True, slots=True)
class MediatorCode:
    """The mediator's code. ``files``: source paths as the debug information has them; ``ranges``: addresses from, to
    before. Lines of headers that were inlined count for no file and have no rows."""

    files: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    rows: tuple[Row, ...] = ()
    functions: tuple[Function, ...] = ()
    branches: tuple[Branch, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        return {
            "files": list(self.files),
            "ranges": [list(r) for r in self.ranges],
            "rows": [[r.start, r.end, r.file, r.line] for r in self.rows],
            "functions": [[f.name, f.start, f.file, f.line] for f in self.functions],
            "branches": [[b.address, b.file, b.line, b.outcomes] for b in self.branches],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MediatorCode:
        """Read what :meth:`to_json` made."""
        return cls(
            tuple(data["files"]),
            tuple((start, end) for start, end in data["ranges"]),
            tuple(Row(*row) for row in data["rows"]),
            tuple(Function(*row) for row in data["functions"]),
            tuple(Branch(*row) for row in data["branches"]),
        )


@dataclass(slots=True)
class _Found:
    files: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)


def mediator_code(elf: Any, dwarf: Any, units: Iterable[Any], budget: Budget) -> MediatorCode:
    """The code of those of ``units`` that belong to the mediator (:data:`UNITS`); empty when none does."""
    found = _Found()
    for unit in units:
        top = unit.get_top_DIE()
        name = _text(top, "DW_AT_name")
        if not name.endswith(UNITS):
            continue
        number = len(found.files)
        found.files.append(name)
        _lines(dwarf, unit, name, number, found, budget)
        for die in budget.steps(top.iter_children()):
            start = die.attributes.get("DW_AT_low_pc")
            if die.tag == "DW_TAG_subprogram" and start is not None:
                line = die.attributes.get("DW_AT_decl_line")
                found.functions.append(Function(_name(die), start.value, number, line.value if line else 0))
    ranges = _joined(found.ranges)
    code = _words(elf, ranges, budget)
    rows = tuple(sorted(found.rows, key=lambda row: row.start))
    return MediatorCode(
        tuple(found.files), ranges, rows, tuple(sorted(found.functions, key=lambda f: f.start)),
        tuple(_branches(rows, code)),
    )  # fmt: skip


def _lines(dwarf: Any, unit: Any, name: str, number: int, found: _Found, budget: Budget) -> None:
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return
    files, first = program["file_entry"], 0 if program["version"] >= 5 else 1
    own = {
        index for index, entry in enumerate(files, first)
        if PurePosixPath(entry.name.decode(errors="replace")).name == PurePosixPath(name).name
    }  # fmt: skip
    states = [entry.state for entry in budget.steps(program.get_entries()) if entry.state is not None]
    here: list[Any] = []
    for state, following in pairwise(states):
        # Several statements may begin at one instruction: all of them ran when it did.
        here.append(state)
        if following.address > state.address and not state.end_sequence:
            found.ranges.append((state.address, following.address))
            lines = {s.line: None for s in here if s.file in own and s.line and (s.is_stmt or s is state)}
            found.rows += [Row(state.address, following.address, number, line) for line in lines]
        if following.address != state.address or state.end_sequence:
            here = []


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return tuple((start, end) for start, end in joined if end - start <= _MOST_CODE and not (start | end) % _WORD)


def _words(elf: Any, ranges: Iterable[tuple[int, int]], budget: Budget) -> dict[int, int]:
    """The instructions of ``ranges``, by address."""
    words: dict[int, int] = {}
    sections = [
        section for section in budget.steps(elf.iter_sections())
        if section["sh_type"] == "SHT_PROGBITS" and section["sh_addr"]
    ]  # fmt: skip
    for start, end in ranges:
        for section in sections:
            at = start - section["sh_addr"]
            if at >= 0 and end <= section["sh_addr"] + section["sh_size"]:
                data = section.data()[at : at + end - start]
                for offset in range(0, len(data) - 3, _WORD):
                    words[start + offset] = int.from_bytes(data[offset : offset + 4], "little")
                break
    return words


def _branches(rows: Iterable[Row], words: dict[int, int]) -> Iterator[Branch]:
    for row in {row.start: row for row in rows}.values():
        for address in range(row.start, row.end, _WORD):
            target = _target(address, words.get(address, 0))
            if target is None:
                continue
            ways = ((1, address + _WORD), (2, target))
            outcomes = sum(bit for bit, to in ways if words.get(to, 0) & 0xFFE0001F != _BRK)
            yield Branch(address, row.file, row.line, outcomes)


def _target(address: int, word: int) -> int | None:
    """Where a conditional branch (``b.cond``, ``cbz``, ``tbz`` and their like) leads; None for any other word."""
    if word & 0xFF000000 == 0x54000000 or word & 0x7E000000 == 0x34000000:
        offset, bits = word >> 5 & 0x7FFFF, 19
    elif word & 0x7E000000 == 0x36000000:
        offset, bits = word >> 5 & 0x3FFF, 14
    else:
        return None
    return address + _WORD * (offset - (offset >> (bits - 1) << bits))


def _text(die: Any, attribute: str) -> str:
    found = die.attributes.get(attribute)
    return found.value.decode(errors="replace") if found and isinstance(found.value, bytes) else ""


def _name(die: Any) -> str:
    name = _text(die, "DW_AT_name")
    for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if not name and link in die.attributes:
            name = _text(die.get_DIE_from_attribute(link), "DW_AT_name")
    return name or "?"

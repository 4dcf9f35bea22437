# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of symbols and offsets in structures, from an ELF file with DWARF that is not trusted.

DWARF is a program for its reader, and the ELF library is not hardened: a file is read in a process of its own with
limits, and only in the parts that matter.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from framework.common.errors import TraceError

CPU_S = 60
"""Seconds of processor time that reading may take; a debug Xen takes 2."""
_MEMORY = 2 << 30
_WALL_S = 600.0
_FILE_LIMIT = 512 << 20
_SECTIONS = 1000
_UNITS = 10_000
_LONGEST_PATH = 4096
_UNIT_HEAD = 48
"""Bytes of a compilation unit's first entry that hold its name: after producer and language, before the ranges."""
_SYMBOL = struct.Struct("<IBBHQQ")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a file is read for, as errors call it (``Xen's symbols``), and what to do when it is not fit for that."""

    what: str
    hint: str


class Layout(Protocol):
    """What is found in a file."""

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists."""
        ...


class Budget:
    """Limit of reading time, checked between the steps of the ELF library."""

    def __init__(self, where: str, cpu_s: float, purpose: Purpose) -> None:
        self.where = where
        self._purpose = purpose
        self._cpu_s = cpu_s
        self._end = time.process_time() + cpu_s

    def steps(self, items: Iterable[_T], most: int | None = None) -> Iterator[_T]:
        """``items`` for as long as there is time; more than ``most`` is an error."""
        for item in islice(items, None if most is None else most + 1):
            if time.process_time() > self._end:
                raise self.error(f"reading {self._purpose.what} takes more than {self._cpu_s} s")
            if most is not None:
                most -= 1
                if most < 0:
                    raise self.error("the file has more parts than any that is expected")
            yield item

    def error(self, what: str, hint: str = "") -> TraceError:
        """Make the error that says what is wrong with the file."""
        return TraceError(what, where=self.where, hint=hint or self._purpose.hint)


def load_apart(module: str, path: Path, purpose: Purpose, cpu_s: int) -> dict[str, Any]:
    """Run ``module``, whose main part is :func:`answer_apart`, in a process of its own, which may use ``cpu_s`` seconds
    of processor time and 2 GiB; return the JSON of what it found.

    Raises :class:`TraceError` when it found nothing, or a limit was reached.
    """
    where = str(path)
    if not path.is_file():  # a pipe has no end
        raise TraceError(f"cannot read {purpose.what}: there is no such file", where=where, hint=purpose.hint)
    # -P, and not the caller's working folder, which may hold anything.
    command = [sys.executable, "-P", "-m", module, where, str(cpu_s)]
    searched = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WALL_S, check=False,
            env=os.environ | {"PYTHONPATH": searched},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TraceError(f"cannot read {purpose.what}: {error}", where=where, hint=purpose.hint) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        why = said or f"it takes more than {cpu_s} s or {_MEMORY >> 30} GiB"
        raise TraceError(f"cannot read {purpose.what}: {why}", where=where, hint=purpose.hint)
    answer: dict[str, Any] = json.loads(done.stdout)
    if "what" in answer:
        raise TraceError(answer["what"], where=where, hint=answer["hint"])
    return answer


def answer_apart(parse: Callable[..., Layout]) -> None:
    """Be :func:`load_apart`'s other process: print the layout, or the error, as JSON."""
    path, cpu_s = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with suppress(ValueError):  # a lower limit that we were given is as good
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 2))
    try:
        answer: dict[str, object] = parse(Path(path), cpu_s=int(cpu_s)).to_json()
    except TraceError as error:
        answer = {"what": error.what, "hint": error.hint}
    print(json.dumps(answer))


def parse_here(path: Path, purpose: Purpose, cpu_s: float, parse: Callable[[Any, Budget], _T]) -> _T:
    """Read ``path`` in this process; a single step of the ELF library may take longer than ``cpu_s``.

    Raises :class:`TraceError`, and nothing else.
    """
    budget = Budget(str(path), cpu_s, purpose)
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            _check_sections(elf, os.fstat(stream.fileno()).st_size, budget)
            return parse(elf, budget)
    except TraceError:
        raise
    except Exception as error:  # whatever the library raises at bytes that it did not expect
        raise budget.error(f"cannot read {purpose.what}: {type(error).__name__} {str(error)[:200]}".rstrip()) from error


def _check_sections(elf: Any, size: int, budget: Budget) -> None:
    """Refuse what would make the ELF library unpack, read or loop without end."""
    header = elf.header
    if size > _FILE_LIMIT or elf.elfclass != 64 or not elf.little_endian or header["e_shentsize"] != 64:
        raise budget.error("this is no little-endian 64-bit ELF file of a size that is expected")
    if not 0 < header["e_shnum"] <= _SECTIONS:
        raise budget.error(f"the file has {header['e_shnum']} sections")
    for section in budget.steps(elf.iter_sections()):
        packed = section["sh_flags"] & SH_FLAGS.SHF_COMPRESSED or section.name.startswith(".zdebug")
        if packed:
            raise budget.error("its debug information is compressed", hint="build without -gz")
        if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > size:
            raise budget.error(f"section {section.name} lies outside the file")


def symbol_values(elf: Any, wanted: Iterable[str], budget: Budget) -> dict[str, int]:
    """Values of the symbols that matter, by name, from the table itself: the library reads every name of the file."""
    table = elf.get_section_by_name(".symtab")
    if table is None or table["sh_type"] != "SHT_SYMTAB":
        raise budget.error("the file has no symbol table")
    names, data = table.stringtable.data(), table.data()
    values: dict[int, int] = {}
    for name, *_, value, _ in _SYMBOL.iter_unpack(data[: len(data) // _SYMBOL.size * _SYMBOL.size]):
        values.setdefault(name, value)
    found = {}
    for name in wanted:
        value = next((values[at] for at in _places(names, name.encode()) if at in values), None)
        if value is not None:
            found[name] = value
    return found


def symbol_size(elf: Any, value: int) -> int:
    """Size in bytes of the largest symbol at this address; 0 where there is none."""
    data = elf.get_section_by_name(".symtab").data()
    entries = _SYMBOL.iter_unpack(data[: len(data) // _SYMBOL.size * _SYMBOL.size])
    return max((size for *_, at, size in entries if at == value), default=0)


def wanted_symbols(symbols: Mapping[str, int], names: Mapping[str, str], budget: Budget) -> dict[str, int]:
    """Values of some symbols by the plugin's argument name."""
    for name in names.values():
        if name not in symbols:
            raise budget.error(f"no symbol {name}")
    return {argument: symbols[name] for argument, name in names.items()}


def _places(names: bytes, name: bytes) -> Iterator[int]:
    """Yield the offsets of a name in a string table, also as the end of longer names."""
    at = names.find(name + b"\0")
    while at >= 0:
        yield at
        at = names.find(name + b"\0", at + 1)


def units_named(elf: Any, wanted: Collection[str], budget: Budget) -> dict[str, Any]:
    """The compilation units that matter, by the end of their file name."""
    if not elf.has_dwarf_info():
        raise budget.error("the file has no debug information", hint="build with it (Xen: CONFIG_DEBUG_INFO=y)")
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
    units = list(budget.steps(dwarf.iter_CUs(), _UNITS))
    places = set(budget.steps(_places_of_names(elf, wanted)))
    likely = [unit for unit in budget.steps(units) if _may_have_name(dwarf, unit, places)]
    found: dict[str, Any] = {}
    # To read the name of a unit the library reads all its abbreviations: of every unit, that is most of the time.
    for some in (likely, units):
        if len(found) < len(wanted):
            for unit in budget.steps(some):
                text = name_of(unit.get_top_DIE()) or ""
                found |= {name: unit for name in wanted if text.endswith(name)}
    return found


def _places_of_names(elf: Any, wanted: Iterable[str]) -> Iterator[int]:
    """Yield the offsets in the string sections at which a text with one of these ends may begin; linkers let one begin
    inside another."""
    for section in filter(None, map(elf.get_section_by_name, (".debug_str", ".debug_line_str"))):
        data = section.data()
        for name in wanted:
            for end in _places(data, name.encode()):
                yield from range(max(data.rfind(b"\0", 0, end) + 1, end - _LONGEST_PATH), end + 1)


def _may_have_name(dwarf: Any, unit: Any, places: Collection[int]) -> bool:
    """Whether one of the first words of a unit, at any alignment, is one of these offsets of a name."""
    dwarf.debug_info_sec.stream.seek(unit.cu_die_offset)
    head = dwarf.debug_info_sec.stream.read(_UNIT_HEAD)
    return any(int.from_bytes(head[at : at + 4], "little") in places for at in range(len(head) - 3))


def name_of(die: Any) -> str | None:
    name = die.attributes.get("DW_AT_name")
    return name.value.decode(errors="replace") if name else None


def structs_of(unit: Any, budget: Budget) -> dict[str, Any]:
    structs: dict[str, Any] = {}
    for die in budget.steps(unit.get_top_DIE().iter_children()):
        if die.tag == "DW_TAG_structure_type" and die.has_children and (name := name_of(die)) is not None:
            structs.setdefault(name, die)
    return structs


def _members(struct: Any, budget: Budget) -> Iterator[tuple[str | None, int, Any]]:
    for child in budget.steps(struct.iter_children()):
        if child.tag == "DW_TAG_member":
            offset = child.attributes.get("DW_AT_data_member_location")
            yield name_of(child), offset.value if offset else 0, child


def size_of(structs: Mapping[str, Any], struct_name: str, budget: Budget) -> int:
    size = structs[struct_name].attributes.get("DW_AT_byte_size") if struct_name in structs else None
    if size is None:
        raise budget.error(f"no size of struct {struct_name} in the debug information")
    return int(size.value)


def offset_of(structs: Mapping[str, Any], struct_name: str, path: tuple[str, ...], budget: Budget) -> int:
    if struct_name not in structs:
        raise budget.error(f"no struct {struct_name} in the debug information")
    total, die = 0, structs[struct_name]
    for part in path:
        for name, offset, member in _members(die, budget):
            if name == part:
                total += offset
                die = _type(member, budget)
                break
        else:
            raise budget.error(f"struct {struct_name} has no member {'.'.join(path)}")
    return total


def _type(member: Any, budget: Budget) -> Any:
    """A member's type behind all its names."""

    def behind(die: Any) -> Iterator[Any]:
        while True:
            die = die.get_DIE_from_attribute("DW_AT_type")
            yield die

    return next(die for die in budget.steps(behind(member), _UNITS) if die.tag != "DW_TAG_typedef")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and offsets in Xen that the plugin needs, from the symbols and DWARF of ``xen-syms``.

Used to attribute an event to a domain independently of the mediator, and to see domains come and go. Nothing
here depends on the mediator's behaviour. Its own lists (``struct optee_domain``) are read to find the RPC buffers
that guests handed out before a trace began (a restored board), and recorded as they are, for the rules about them.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from framework.common.errors import TraceError
from framework.trace.xen_code import UNITS, MediatorCode, mediator_code

_SYMBOLS = {
    "xen_curr_vcpu": "per_cpu__curr_vcpu",
    "xen_create": "arch_domain_create",
    "xen_kill": "domain_kill",
    "xen_destroy": "arch_domain_destroy",
}
_OPTIONAL = {"xen_leave": "leave_hypervisor_to_guest"}
"""Symbols that only a sense needs; without them it is off."""
_OFFSETS = {
    "xen_vcpu_domain": ("vcpu", ("domain",)),
    "xen_vcpu_id": ("vcpu", ("vcpu_id",)),
    "xen_domain_id": ("domain", ("domain_id",)),
}
_TEE_OFFSETS = {
    "xen_domain_tee": ("domain", ("arch", "tee")),
    "xen_tee_rpcs": ("optee_domain", ("shm_rpc_list",)),
    "xen_rpc_list": ("shm_rpc", ("list",)),
    "xen_rpc_arg": ("shm_rpc", ("xen_arg",)),
    "xen_rpc_gfn": ("shm_rpc", ("gfn",)),
    "xen_rpc_cookie": ("shm_rpc", ("cookie",)),
}
_BOOK_SYMBOLS = {"xen_heap_free": "total_avail_pages", "xen_heap_pool": "xenpool"}
_PDX_SYMBOL = "pfn_pdx_hole_shift"
"""Present in a Xen that may compress page numbers (``CONFIG_PDX_COMPRESSION``); whether it does is known once it
runs."""
_BOOK_OFFSETS = {
    "xen_domain_pages": ("domain", ("tot_pages",)),
    "xen_p2m_root": ("domain", ("arch", "p2m", "root")),
    "xen_p2m_vttbr": ("domain", ("arch", "p2m", "vttbr")),
    "xen_page_count": ("page_info", ("count_info",)),
    "xen_page_owner": ("page_info", ("v", "inuse", "domain")),
    "xen_tee_calls": ("optee_domain", ("call_list",)),
    "xen_tee_bufs": ("optee_domain", ("optee_shm_buf_list",)),
    "xen_tee_call_count": ("optee_domain", ("call_count",)),
    "xen_tee_buf_count": ("optee_domain", ("optee_shm_buf_count",)),
    "xen_tee_buf_pages": ("optee_domain", ("optee_shm_buf_pages",)),
    "xen_call_list": ("optee_std_call", ("list",)),
    "xen_call_shadow": ("optee_std_call", ("xen_arg_pg",)),
    "xen_call_ipa": ("optee_std_call", ("guest_arg_ipa",)),
    "xen_call_thread": ("optee_std_call", ("optee_thread_id",)),
    "xen_call_in_flight": ("optee_std_call", ("in_flight",)),
    "xen_rpc_page": ("shm_rpc", ("guest_page",)),
    "xen_rpc_shadow": ("shm_rpc", ("xen_arg_pg",)),
    "xen_buf_list": ("optee_shm_buf", ("list",)),
    "xen_buf_cookie": ("optee_shm_buf", ("cookie",)),
    "xen_buf_count": ("optee_shm_buf", ("page_cnt",)),
    "xen_buf_shadow": ("optee_shm_buf", ("pg_list",)),
    "xen_buf_order": ("optee_shm_buf", ("pg_list_order",)),
    "xen_buf_pages": ("optee_shm_buf", ("pages",)),
}
_BOOK_SIZES = {"xen_page_size": "page_info", "xen_call_size": "optee_std_call", "xen_rpc_size": "shm_rpc"}
_POOL_OFFSETS = {
    "xen_pool_used": ("xmem_pool", ("used_size",)),
    "xen_pool_regions": ("xmem_pool", ("num_regions",)),
    "xen_pool_header": ("bhdr", ("ptr",)),
}
_TEE_UNIT = "tee/optee.c"
_CORE_UNIT = "common/domain.c"
_DISPATCH_UNIT = "tee/tee.c"
_POOL_UNIT = "common/xmalloc_tlsf.c"
_ACTIVE = "cur_mediator"
"""The static of tee/tee.c that says which mediator is active; firmware/sci.c has another one of the same name."""
_OP_ADDR, _OP_ADDRX = 0x03, 0xA1
_HINT = "give the xen-syms of the very Xen that runs, not xen itself"

CPU_S = 60
"""Processor time that reading may take; a debug Xen takes 2 s."""
_MEMORY = 2 << 30
_WALL_S = 600.0
_FILE_LIMIT = 512 << 20
_SECTIONS = 1000
_UNITS = 10_000
_LONGEST_PATH = 4096
_UNIT_HEAD = 48
"""Bytes of a compilation unit's first entry that hold its name: after producer and language, before the ranges."""
_SYMBOL = struct.Struct("<IBBHQQ")
_NUMBER = range(1 << 64)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class XenLayout:
    """Addresses and offsets for the plugin; ``tee`` is empty when this Xen has no OP-TEE mediator.

    ``core``, ``tee`` and ``books`` map plugin argument names (``xen_vcpu_domain``, ...) to numbers. ``code`` is the
    mediator's code. ``books`` is what the senses for Xen's lists, page references and memory need; when a part of it is
    missing in this version of Xen it is empty, and ``without_books`` says what.
    """

    core: dict[str, int]
    tee: dict[str, int]
    code: MediatorCode = field(default_factory=MediatorCode)
    books: dict[str, int] = field(default_factory=dict)
    without_books: str = ""

    @classmethod
    def load(cls, xen_syms: Path, *, cpu_s: int = CPU_S) -> XenLayout:
        """Read ``xen_syms`` in a process of its own, which may use ``cpu_s`` seconds of processor time and 2 GiB.

        The limits are needed because DWARF is a program for its reader, and the ELF library is not hardened.

        Raises :class:`TraceError` when the file is not an ELF file with symbols and DWARF
        (``CONFIG_DEBUG_INFO``), a symbol or member is missing in this version of Xen, or a limit was reached.
        """
        where = str(xen_syms)
        if not xen_syms.is_file():  # a pipe has no end
            raise TraceError("cannot read Xen's symbols: there is no such file", where=where, hint=_HINT)
        # -P, and not the caller's working folder, which may hold anything.
        command = [sys.executable, "-P", "-m", __name__, where, str(cpu_s)]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WALL_S, check=False,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TraceError(f"cannot read Xen's symbols: {error}", where=where, hint=_HINT) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
            why = said or f"it takes more than {cpu_s} s or {_MEMORY >> 30} GiB"
            raise TraceError(f"cannot read Xen's symbols: {why}", where=where, hint=_HINT)
        answer = json.loads(done.stdout)
        if "what" in answer:
            raise TraceError(answer["what"], where=where, hint=answer["hint"])
        return cls.from_json(answer)

    @classmethod
    def parse(cls, xen_syms: Path, *, cpu_s: float = CPU_S) -> XenLayout:
        """Read ``xen_syms`` in this process; as :meth:`load`, but a single step of the ELF library may take longer."""
        where = str(xen_syms)
        try:
            with xen_syms.open("rb") as stream:
                return _parse(stream, where, _Budget(where, cpu_s))
        except TraceError:
            raise
        except Exception as error:  # whatever the library raises at bytes that it did not expect
            what = f"cannot read Xen's symbols: {type(error).__name__} {str(error)[:200]}".rstrip()
            raise TraceError(what, where=where, hint=_HINT) from error

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists."""
        books = {"books": self.books, "without_books": self.without_books}
        return {"core": self.core, "tee": self.tee, "code": self.code.to_json(), **books}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> XenLayout:
        """Read what :meth:`to_json` made."""
        code = MediatorCode.from_json(data["code"])
        return cls(data["core"], data["tee"], code, data["books"], data["without_books"])

    def arguments(self) -> tuple[str, ...]:
        """The plugin's ``key=value`` arguments."""
        numbers = [f"{name}={value:#x}" for name, value in (self.core | self.tee | self.books).items()]
        known = (("xen_tee", self.tee), ("xen_books", self.books))
        return ("xen=on", *(f"{name}={'on' if found else 'off'}" for name, found in known), *numbers)


class _Budget:
    """Limit of reading time, checked between the steps of the ELF library."""

    def __init__(self, where: str, cpu_s: float) -> None:
        self.where = where
        self._cpu_s = cpu_s
        self._end = time.process_time() + cpu_s

    def steps(self, items: Iterable[_T], most: int | None = None) -> Iterator[_T]:
        """``items`` for as long as there is time; more than ``most`` is an error."""
        for item in islice(items, None if most is None else most + 1):
            if time.process_time() > self._end:
                raise TraceError(f"reading Xen's symbols takes more than {self._cpu_s} s", where=self.where, hint=_HINT)
            if most is not None:
                most -= 1
                if most < 0:
                    raise TraceError("the file has more parts than any Xen", where=self.where, hint=_HINT)
            yield item


def _parse(stream: Any, where: str, budget: _Budget) -> XenLayout:
    elf = ELFFile(stream)
    _check_sections(elf, os.fstat(stream.fileno()).st_size, where, budget)
    symbols = _symbols(elf, where)
    core = _wanted(symbols, _SYMBOLS, where)
    core |= {argument: symbols[name] for argument, name in _OPTIONAL.items() if name in symbols}
    units = _units(elf, where, budget)
    unit = units.get(_TEE_UNIT) or units.get(_CORE_UNIT)
    if unit is None:
        raise TraceError(f"neither {_TEE_UNIT} nor {_CORE_UNIT} has debug information", where=where)
    structs = _structs(unit, budget)
    core |= {name: _offset(structs, *path, budget) for name, path in _OFFSETS.items()}
    tee: dict[str, int] = {}
    books: dict[str, int] = {}
    without = "this Xen has no OP-TEE mediator"
    if _TEE_UNIT in units:
        tee = {name: _offset(structs, *path, budget) for name, path in _TEE_OFFSETS.items()}
        tee |= _active_mediator(units, budget)
        try:
            books, without = _books(symbols, units, structs, budget), ""
            if "xen_mediator" not in tee:
                books, without = {}, "which mediator is active cannot be told"
        except TraceError as error:
            without = error.what
    if not all(type(value) is int and value in _NUMBER for value in (core | tee | books).values()):
        raise TraceError("a symbol or offset is no number of 64 bits", where=where, hint=_HINT)
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
    code = mediator_code(elf, dwarf, (units[name] for name in UNITS if name in units), budget)
    return XenLayout(core, tee, code, books, without)


def _books(
    symbols: Mapping[str, int], units: Mapping[str, Any], structs: Mapping[str, Any], budget: _Budget
) -> dict[str, int]:
    """What the plugin needs for Xen's own books. Raises :class:`TraceError` when this Xen lacks a part of it."""
    if _POOL_UNIT not in units:
        raise TraceError(f"{_POOL_UNIT} has no debug information", where=budget.where)
    found = _wanted(symbols, _BOOK_SYMBOLS, budget.where)
    found |= {name: _offset(structs, *path, budget) for name, path in _BOOK_OFFSETS.items()}
    found |= {name: _size(structs, struct_name, budget) for name, struct_name in _BOOK_SIZES.items()}
    pool = _structs(units[_POOL_UNIT], budget)
    found |= {name: _offset(pool, *path, budget) for name, path in _POOL_OFFSETS.items()}
    found["xen_pdx_hole"] = symbols.get(_PDX_SYMBOL, 0)
    return found


def _check_sections(elf: Any, size: int, where: str, budget: _Budget) -> None:
    """Refuse what would make the ELF library unpack, read or loop without end."""
    header = elf.header
    if size > _FILE_LIMIT or elf.elfclass != 64 or not elf.little_endian or header["e_shentsize"] != 64:
        raise TraceError("this is no little-endian 64-bit ELF file of a Xen's size", where=where, hint=_HINT)
    if not 0 < header["e_shnum"] <= _SECTIONS:
        raise TraceError(f"the file has {header['e_shnum']} sections", where=where, hint=_HINT)
    for section in budget.steps(elf.iter_sections()):
        packed = section["sh_flags"] & SH_FLAGS.SHF_COMPRESSED or section.name.startswith(".zdebug")
        if packed:
            raise TraceError("its debug information is compressed", where=where, hint="build Xen without -gz")
        if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > size:
            raise TraceError(f"section {section.name} lies outside the file", where=where, hint=_HINT)


def _symbols(elf: Any, where: str) -> dict[str, int]:
    """Values of the symbols that matter, by name, from the table itself: the library reads every name of the file."""
    table = elf.get_section_by_name(".symtab")
    if table is None or table["sh_type"] != "SHT_SYMTAB":
        raise TraceError("the file has no symbol table", where=where, hint="use xen-syms, not xen")
    names, data = table.stringtable.data(), table.data()
    values: dict[int, int] = {}
    for name, *_, value, _ in _SYMBOL.iter_unpack(data[: len(data) // _SYMBOL.size * _SYMBOL.size]):
        values.setdefault(name, value)
    found = {}
    for name in (*_SYMBOLS.values(), *_OPTIONAL.values(), *_BOOK_SYMBOLS.values(), _PDX_SYMBOL):
        value = next((values[at] for at in _places(names, name.encode()) if at in values), None)
        if value is not None:
            found[name] = value
    return found


def _wanted(symbols: Mapping[str, int], names: Mapping[str, str], where: str) -> dict[str, int]:
    """Values of some symbols by the plugin's argument name."""
    for name in names.values():
        if name not in symbols:
            raise TraceError(f"no symbol {name}", where=where, hint="is this the xen-syms of an arm64 Xen?")
    return {argument: symbols[name] for argument, name in names.items()}


def _places(names: bytes, name: bytes) -> Iterator[int]:
    """Yield the offsets of a name in a string table, also as the end of longer names."""
    at = names.find(name + b"\0")
    while at >= 0:
        yield at
        at = names.find(name + b"\0", at + 1)


def _units(elf: Any, where: str, budget: _Budget) -> dict[str, Any]:
    """The compilation units that matter, by the end of their file name."""
    if not elf.has_dwarf_info():
        raise TraceError("the file has no debug information", where=where, hint="build Xen with CONFIG_DEBUG_INFO=y")
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
    wanted = {_CORE_UNIT, _POOL_UNIT, *UNITS}
    units = list(budget.steps(dwarf.iter_CUs(), _UNITS))
    places = set(budget.steps(_places_of_names(elf, wanted)))
    likely = [unit for unit in budget.steps(units) if _may_have_name(dwarf, unit, places)]
    found: dict[str, Any] = {}
    # To read the name of a unit the library reads all its abbreviations: of every unit, that is most of the time.
    for some in (likely, units):
        if len(found) < len(wanted):
            for unit in budget.steps(some):
                text = _name(unit.get_top_DIE()) or ""
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


def _name(die: Any) -> str | None:
    name = die.attributes.get("DW_AT_name")
    return name.value.decode(errors="replace") if name else None


def _structs(unit: Any, budget: _Budget) -> dict[str, Any]:
    structs: dict[str, Any] = {}
    for die in budget.steps(unit.get_top_DIE().iter_children()):
        if die.tag == "DW_TAG_structure_type" and die.has_children and (name := _name(die)) is not None:
            structs.setdefault(name, die)
    return structs


def _members(struct: Any, budget: _Budget) -> Iterator[tuple[str | None, int, Any]]:
    for child in budget.steps(struct.iter_children()):
        if child.tag == "DW_TAG_member":
            offset = child.attributes.get("DW_AT_data_member_location")
            yield _name(child), offset.value if offset else 0, child


def _size(structs: Mapping[str, Any], struct_name: str, budget: _Budget) -> int:
    size = structs[struct_name].attributes.get("DW_AT_byte_size") if struct_name in structs else None
    if size is None:
        raise TraceError(f"no size of struct {struct_name} in the debug information", where=budget.where)
    return int(size.value)


def _offset(structs: Mapping[str, Any], struct_name: str, path: tuple[str, ...], budget: _Budget) -> int:
    if struct_name not in structs:
        raise TraceError(f"no struct {struct_name} in the debug information", where=budget.where)
    total, die = 0, structs[struct_name]
    for part in path:
        for name, offset, member in _members(die, budget):
            if name == part:
                total += offset
                die = _type(member, budget)
                break
        else:
            raise TraceError(f"struct {struct_name} has no member {'.'.join(path)}", where=budget.where)
    return total


def _active_mediator(units: Mapping[str, Any], budget: _Budget) -> dict[str, int]:
    """Where Xen keeps which mediator is active, and the offset of the TEE's number in its description; empty where the
    debug information does not tell."""
    unit = units.get(_DISPATCH_UNIT)
    if unit is None:
        return {}
    for die in budget.steps(unit.get_top_DIE().iter_children()):
        place = die.attributes.get("DW_AT_location")
        if die.tag == "DW_TAG_variable" and _name(die) == _ACTIVE and place is not None:
            kind = _offset(_structs(unit, budget), "tee_mediator_desc", ("tee_type",), budget)
            return {"xen_mediator": _address(unit, bytes(place.value)), "xen_tee_type": kind}
    return {}


def _address(unit: Any, expression: bytes) -> int:
    """The address that a variable's location consists of. Raises ValueError for one that is computed."""
    if expression[0] == _OP_ADDR and len(expression) == 9:
        return int.from_bytes(expression[1:], "little")
    if expression[0] == _OP_ADDRX and len(expression) == 2 and expression[1] < 0x80:
        found: int = unit.dwarfinfo.get_addr(unit, expression[1])
        return found
    raise ValueError("the location of a static is no address")


def _type(member: Any, budget: _Budget) -> Any:
    """A member's type behind all its names."""

    def behind(die: Any) -> Iterator[Any]:
        while True:
            die = die.get_DIE_from_attribute("DW_AT_type")
            yield die

    return next(die for die in budget.steps(behind(member), _UNITS) if die.tag != "DW_TAG_typedef")


def _main(xen_syms: str, cpu_s: str) -> None:
    """:meth:`XenLayout.load`'s other process: the layout, or the error, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with suppress(ValueError):  # a lower limit that we were given is as good
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 2))
    try:
        layout = XenLayout.parse(Path(xen_syms), cpu_s=int(cpu_s))
        answer: dict[str, object] = layout.to_json()
    except TraceError as error:
        answer = {"what": error.what, "hint": error.hint}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])

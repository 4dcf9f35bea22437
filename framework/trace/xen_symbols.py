# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and offsets in Xen that the plugin needs, from the symbols and DWARF of ``xen-syms``.

Used to attribute an event to a domain independently of the mediator, and to see domains come and go. Nothing
here depends on the mediator's behaviour. Its own lists (``struct optee_domain``) are read to find the RPC buffers
that guests handed out before a trace began (a restored board), and recorded as they are, for the rules about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.common.errors import TraceError
from framework.trace.dwarf import (
    CPU_S,
    Budget,
    Purpose,
    answer_apart,
    load_apart,
    name_of,
    offset_of,
    parse_here,
    size_of,
    structs_of,
    symbol_values,
    units_named,
    wanted_symbols,
)
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
_PURPOSE = Purpose("Xen's symbols", "give the xen-syms of the very Xen that runs, not xen itself")
_NUMBERS = range(1 << 64)


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
        answer = load_apart(__name__, xen_syms, _PURPOSE, cpu_s)
        return cls.from_json(answer)

    @classmethod
    def parse(cls, xen_syms: Path, *, cpu_s: float = CPU_S) -> XenLayout:
        """Read ``xen_syms`` in this process; as :meth:`load`, but a single step of the ELF library may take longer."""
        return parse_here(xen_syms, _PURPOSE, cpu_s, _parse)

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


def _parse(elf: Any, budget: Budget) -> XenLayout:
    symbols = symbol_values(
        elf, (*_SYMBOLS.values(), *_OPTIONAL.values(), *_BOOK_SYMBOLS.values(), _PDX_SYMBOL), budget
    )
    core = wanted_symbols(symbols, _SYMBOLS, budget)
    core |= {argument: symbols[name] for argument, name in _OPTIONAL.items() if name in symbols}
    units = units_named(elf, {_CORE_UNIT, _POOL_UNIT, *UNITS}, budget)
    unit = units.get(_TEE_UNIT) or units.get(_CORE_UNIT)
    if unit is None:
        raise TraceError(f"neither {_TEE_UNIT} nor {_CORE_UNIT} has debug information", where=budget.where)
    structs = structs_of(unit, budget)
    core |= {name: offset_of(structs, *path, budget) for name, path in _OFFSETS.items()}
    tee: dict[str, int] = {}
    books: dict[str, int] = {}
    without = "this Xen has no OP-TEE mediator"
    if _TEE_UNIT in units:
        tee = {name: offset_of(structs, *path, budget) for name, path in _TEE_OFFSETS.items()}
        tee |= _active_mediator(units, budget)
        try:
            books, without = _books(symbols, units, structs, budget), ""
            if "xen_mediator" not in tee:
                books, without = {}, "which mediator is active cannot be told"
        except TraceError as error:
            without = error.what
    if not all(type(value) is int and value in _NUMBERS for value in (core | tee | books).values()):
        raise budget.error("a symbol or offset is no number of 64 bits")
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
    code = mediator_code(elf, dwarf, (units[name] for name in UNITS if name in units), budget)
    return XenLayout(core, tee, code, books, without)


def _books(
    symbols: Mapping[str, int], units: Mapping[str, Any], structs: Mapping[str, Any], budget: Budget
) -> dict[str, int]:
    """What the plugin needs for Xen's own books. Raises :class:`TraceError` when this Xen lacks a part of it."""
    if _POOL_UNIT not in units:
        raise TraceError(f"{_POOL_UNIT} has no debug information", where=budget.where)
    found = wanted_symbols(symbols, _BOOK_SYMBOLS, budget)
    found |= {name: offset_of(structs, *path, budget) for name, path in _BOOK_OFFSETS.items()}
    found |= {name: size_of(structs, struct_name, budget) for name, struct_name in _BOOK_SIZES.items()}
    pool = structs_of(units[_POOL_UNIT], budget)
    found |= {name: offset_of(pool, *path, budget) for name, path in _POOL_OFFSETS.items()}
    found["xen_pdx_hole"] = symbols.get(_PDX_SYMBOL, 0)
    return found


def _active_mediator(units: Mapping[str, Any], budget: Budget) -> dict[str, int]:
    """Where Xen keeps which mediator is active, and the offset of the TEE's number in its description; empty where the
    debug information does not tell."""
    unit = units.get(_DISPATCH_UNIT)
    if unit is None:
        return {}
    for die in budget.steps(unit.get_top_DIE().iter_children()):
        place = die.attributes.get("DW_AT_location")
        if die.tag == "DW_TAG_variable" and name_of(die) == _ACTIVE and place is not None:
            kind = offset_of(structs_of(unit, budget), "tee_mediator_desc", ("tee_type",), budget)
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


if __name__ == "__main__":
    answer_apart(XenLayout.parse)

"""Where Xen keeps what the plugin must know, from the symbols and DWARF of ``xen-syms``.

Used to attribute an event to a domain independently of the mediator, and to see domains come and go. Nothing
here depends on the mediator's behaviour; ``struct optee_domain`` and ``struct shm_rpc`` are read only to find
the RPC buffers that guests handed out before a trace began (a restored board).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from framework.common.errors import TraceError

_SYMBOLS = {
    "xen_curr_vcpu": "per_cpu__curr_vcpu",
    "xen_create": "arch_domain_create",
    "xen_kill": "domain_kill",
    "xen_destroy": "arch_domain_destroy",
}
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
_TEE_UNIT = "tee/optee.c"
_CORE_UNIT = "common/domain.c"


@dataclass(frozen=True, slots=True)
class XenLayout:
    """Addresses and offsets for the plugin; ``tee`` is empty when this Xen has no OP-TEE mediator.

    ``core`` and ``tee`` map plugin argument names (``xen_vcpu_domain``, ...) to numbers.
    """

    core: dict[str, int]
    tee: dict[str, int]

    @classmethod
    def load(cls, xen_syms: Path) -> XenLayout:
        """Read ``xen_syms``.

        Raises :class:`TraceError` when the file is not an ELF file with symbols and DWARF
        (``CONFIG_DEBUG_INFO``), or a symbol or member is missing in this version of Xen.
        """
        where = str(xen_syms)
        try:
            with xen_syms.open("rb") as stream:
                elf = ELFFile(stream)
                core = _symbols(elf, where)
                units = _units(elf, where)
                unit = units.get(_TEE_UNIT) or units.get(_CORE_UNIT)
                if unit is None:
                    raise TraceError(f"neither {_TEE_UNIT} nor {_CORE_UNIT} has debug information", where=where)
                structs = _structs(unit)
                core |= {name: _offset(structs, *path, where) for name, path in _OFFSETS.items()}
                tee: dict[str, int] = {}
                if _TEE_UNIT in units:
                    tee = {name: _offset(structs, *path, where) for name, path in _TEE_OFFSETS.items()}
                return cls(core=core, tee=tee)
        except (ELFError, OSError) as error:
            raise TraceError(
                f"cannot read Xen's symbols: {error}",
                where=where,
                hint="give the xen-syms of the very Xen that runs, not xen itself",
            ) from error

    def arguments(self) -> tuple[str, ...]:
        """The plugin's ``key=value`` arguments."""
        numbers = [f"{name}={value:#x}" for name, value in (self.core | self.tee).items()]
        return ("xen=on", f"xen_tee={'on' if self.tee else 'off'}", *numbers)


def _symbols(elf: Any, where: str) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        raise TraceError("the file has no symbol table", where=where, hint="use xen-syms, not xen")
    found = {}
    for argument, name in _SYMBOLS.items():
        symbols = table.get_symbol_by_name(name)
        if not symbols:
            raise TraceError(f"no symbol {name}", where=where, hint="is this the xen-syms of an arm64 Xen?")
        found[argument] = int(symbols[0]["st_value"])
    return found


def _units(elf: Any, where: str) -> dict[str, Any]:
    """The two compilation units that matter, by the end of their file name."""
    if not elf.has_dwarf_info():
        raise TraceError("the file has no debug information", where=where, hint="build Xen with CONFIG_DEBUG_INFO=y")
    found = {}
    for unit in elf.get_dwarf_info().iter_CUs():
        name = unit.get_top_DIE().attributes.get("DW_AT_name")
        text = name.value.decode(errors="replace") if name else ""
        for wanted in (_TEE_UNIT, _CORE_UNIT):
            if text.endswith(wanted):
                found[wanted] = unit
    return found


def _structs(unit: Any) -> dict[str, Any]:
    structs: dict[str, Any] = {}
    for die in unit.get_top_DIE().iter_children():
        if die.tag == "DW_TAG_structure_type" and "DW_AT_name" in die.attributes and die.has_children:
            structs.setdefault(die.attributes["DW_AT_name"].value.decode(), die)
    return structs


def _members(struct: Any) -> Iterator[tuple[str | None, int, Any]]:
    for child in struct.iter_children():
        if child.tag == "DW_TAG_member":
            name = child.attributes.get("DW_AT_name")
            offset = child.attributes.get("DW_AT_data_member_location")
            yield name.value.decode() if name else None, offset.value if offset else 0, child


def _offset(structs: dict[str, Any], struct: str, path: tuple[str, ...], where: str) -> int:
    if struct not in structs:
        raise TraceError(f"no struct {struct} in the debug information", where=where)
    total, die = 0, structs[struct]
    for part in path:
        for name, offset, member in _members(die):
            if name == part:
                total += offset
                die = member.get_DIE_from_attribute("DW_AT_type")
                while die.tag == "DW_TAG_typedef":
                    die = die.get_DIE_from_attribute("DW_AT_type")
                break
        else:
            raise TraceError(f"struct {struct} has no member {'.'.join(path)}", where=where)
    return total

# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and offsets in OP-TEE that the plugin needs to read OP-TEE's own list of a guest's shared memory, from the
symbols and DWARF of its ``tee.elf``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.common.errors import TraceError
from framework.trace.dwarf import (
    CPU_S,
    Budget,
    Purpose,
    answer_apart,
    load_apart,
    offset_of,
    parse_here,
    structs_of,
    symbol_size,
    symbol_values,
    units_named,
    wanted_symbols,
)

_SYMBOLS = {"optee_leave": "virt_unset_guest", "optee_current": "current_partition", "optee_list": "reg_shm_list"}
_SHM_OFFSETS = {
    "optee_shm_size": ("mobj_reg_shm", ("mobj", "size")),
    "optee_shm_next": ("mobj_reg_shm", ("next",)),
    "optee_shm_cookie": ("mobj_reg_shm", ("cookie",)),
    "optee_shm_page_offset": ("mobj_reg_shm", ("page_offset",)),
    "optee_shm_pages": ("mobj_reg_shm", ("pages",)),
}
_SHM_UNIT, _GUEST_UNIT = "mm/mobj_dyn_shm.c", "kernel/virtualization.c"
_PURPOSE = Purpose("OP-TEE's symbols", "give the tee.elf of the very OP-TEE that runs, with CFG_NS_VIRTUALIZATION=y")
_POINTER = 8
_IMAGE = "tee-pager_v2.bin"


@dataclass(frozen=True, slots=True)
class OpteeLayout:
    """Numbers for the plugin by the names of its arguments (``optee_leave``, ...)."""

    numbers: dict[str, int]

    @classmethod
    def load(cls, tee_elf: Path, *, cpu_s: int = CPU_S) -> OpteeLayout:
        """Read ``tee_elf`` in a process of its own, with limits (:func:`framework.trace.dwarf.load_apart`).

        Raises :class:`TraceError` when it is not the ``tee.elf`` of an OP-TEE with several guests, not that of the
        image beside it, or a symbol or member is missing in this version of OP-TEE.
        """
        return cls.from_json(load_apart(__name__, tee_elf, _PURPOSE, cpu_s))

    @classmethod
    def parse(cls, tee_elf: Path, *, cpu_s: float = CPU_S) -> OpteeLayout:
        """Read ``tee_elf`` in this process; as :meth:`load`."""
        image = tee_elf.with_name(_IMAGE)

        def read(elf: Any, budget: Budget) -> OpteeLayout:
            _check_image(elf, image, budget)
            return cls(_numbers(elf, budget))

        return parse_here(tee_elf, _PURPOSE, cpu_s, read)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return {"numbers": self.numbers}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OpteeLayout:
        """Read what :meth:`to_json` made."""
        return cls(data["numbers"])

    def arguments(self) -> tuple[str, ...]:
        """The plugin's ``key=value`` arguments."""
        return ("optee=on", *(f"{name}={value:#x}" for name, value in self.numbers.items()))


def _check_image(elf: Any, image: Path, budget: Budget) -> None:
    """Refuse a ``tee.elf`` whose code is not that of the image that boots: its addresses would be any."""
    text = elf.get_section_by_name(".text")
    data = text.data() if text is not None else b""
    with image.open("rb") as stream:
        if not data or stream.read(len(data)) != data:
            raise budget.error(f"its code is not that of {image.name}")


def _numbers(elf: Any, budget: Budget) -> dict[str, int]:
    found = wanted_symbols(symbol_values(elf, _SYMBOLS.values(), budget), _SYMBOLS, budget)
    found["optee_cpus"] = symbol_size(elf, found["optee_current"]) // _POINTER
    units = units_named(elf, {_SHM_UNIT, _GUEST_UNIT}, budget)
    for name in (_SHM_UNIT, _GUEST_UNIT):
        if name not in units:
            raise TraceError(f"{name} has no debug information", where=budget.where)
    shared = structs_of(units[_SHM_UNIT], budget)
    found |= {name: offset_of(shared, *path, budget) for name, path in _SHM_OFFSETS.items()}
    guests = structs_of(units[_GUEST_UNIT], budget)
    found["optee_partition_id"] = offset_of(guests, "guest_partition", ("id",), budget)
    if not all(type(value) is int and 0 <= value < 1 << 64 for value in found.values()):
        raise budget.error("a symbol or offset is no number of 64 bits")
    return found


if __name__ == "__main__":
    answer_apart(OpteeLayout.parse)

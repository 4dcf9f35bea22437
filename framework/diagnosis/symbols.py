# SPDX-License-Identifier: GPL-2.0-or-later
"""Lookup of the function and offset of an address: ``idle_loop+0x188``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from framework.common.errors import BoardError

_EXECUTABLE = 4  # SHF_EXECINSTR


class Symbols:
    """Functions by address. Each is (address, size in bytes, name); one of size 0, as assembly code has them,
    reaches up to the next; ``end`` is where the last one ends if its size is 0."""

    def __init__(self, functions: Iterable[tuple[int, int, str]], end: int) -> None:
        # Where a function and a label begin together, the one with a size is the better name.
        self._functions = sorted(functions, key=lambda function: function[:2])
        self._begins = [begin for begin, _, _ in self._functions]
        self._end = end

    def __len__(self) -> int:
        return len(self._functions)

    def name(self, address: int) -> str | None:
        """Name the function and the offset in it; None for an address in no function."""
        index = bisect_right(self._begins, address) - 1
        if index < 0:
            return None
        begin, size, name = self._functions[index]
        following = self._begins[index + 1] if index + 1 < len(self._begins) else self._end
        return f"{name}+{address - begin:#x}" if address < (begin + size if size else following) else None


def elf_symbols(path: Path) -> Symbols:
    """Read the functions of an ELF file, once for each state of the file.

    Raises BoardError when it cannot be read or has no symbol table.
    """
    try:
        stamp = path.stat()
        return _read(path, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, ELFError) as error:
        raise BoardError(f"its symbols cannot be read: {error}", where=str(path)) from error


@lru_cache(maxsize=4)
def _read(path: Path, _mtime: int, _size: int) -> Symbols:
    with path.open("rb") as stream:
        elf: Any = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        if table is None:
            raise BoardError("it has no symbol table", where=str(path))
        sections = list(elf.iter_sections())
        code = {n for n, section in enumerate(sections) if section["sh_flags"] & _EXECUTABLE}
        functions = [
            (symbol["st_value"], symbol["st_size"], symbol.name)
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" or (symbol["st_shndx"] in code and _is_label(symbol))
        ]
        ends = [sections[n]["sh_addr"] + sections[n]["sh_size"] for n in code]
        return Symbols(functions, max(ends, default=0))


def _is_label(symbol: Any) -> bool:
    """Whether it is a label of assembly code, such as the exception vectors' ("$x" only tells code from data)."""
    return bool(symbol["st_info"]["type"] == "STT_NOTYPE" and symbol.name and symbol.name[0] not in "$.")

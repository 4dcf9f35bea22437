# SPDX-License-Identifier: GPL-2.0-or-later
"""Dependencies of a guest's ELF file: its libraries, and for a kernel module the modules it depends on.

Read here rather than with a library, because the files are foreign: every offset, count and length is checked against
the file, nothing is decompressed, and whatever is wrong is one kind of error. Only what arm64 guests and Xen are made
of is read: 64 bits, little endian, machine AArch64 unless another is asked for.
Source: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MACHINE = 183
"""EM_AARCH64."""
RELOCATABLE = 1
"""ET_REL: a kernel module before it is loaded."""

_MACHINES = {3: "32-bit x86", 40: "32-bit Arm", 62: "x86-64", MACHINE: "arm64", 243: "RISC-V"}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_NOT_STORED = (0, 8)
"""SHT_NULL and SHT_NOBITS."""
_SHF_COMPRESSED = 0x800
_NOTE_GNU_BUILD_ID = 3
_MOST_SECTIONS = 20000
_MOST_TAGS = 1 << 14
_MOST_MODINFO = 1 << 16
_LONGEST_NAME = 1024


class ElfError(ValueError):
    """The file is not an ELF file that an arm64 guest could use; the text says why."""


@dataclass(frozen=True)
class Section:
    """One section: its place in the file, in bytes. ``stored`` is False where the file holds none of its content."""

    name: str
    offset: int
    size: int
    stored: bool
    compressed: bool


class Elf:
    """An ELF file of an arm64 system. ``kind`` is e_type, ``sections`` are by name (the first of each)."""

    def __init__(self, data: bytes, wanted: int = MACHINE) -> None:
        """Read headers and section names. ``wanted`` is the machine that it must be for (e_machine).

        Raises ElfError when ``data`` is cut, damaged, or of another machine.
        """
        self._data = data
        if not is_elf(data):
            raise ElfError("not an ELF file")
        if len(data) < _HEADER.size:
            raise ElfError("not a readable ELF file: it ends within its header")
        if data[4] != 2 or data[5] != 1:
            machine = int.from_bytes(data[18:20], "little" if data[5] == 1 else "big")
            raise ElfError(f"an ELF file for {_machine(machine)}, not for {_machine(wanted)}")
        (_, self.kind, machine, _, _, segments, sections, _, _, entry, count, width, number, names) = _HEADER.unpack(
            data[: _HEADER.size]
        )
        if machine != wanted:
            raise ElfError(f"an ELF file for {_machine(machine)}, not for {_machine(wanted)}")
        self._segments = self._table(_SEGMENT, "program headers", segments, entry, count)
        self.sections = self._read_sections(sections, width, number, names)

    def content(self, name: str) -> bytes | None:
        """The bytes of a section; None without one. Raises ElfError when it is compressed."""
        section = self.sections.get(name)
        if section is None or not section.stored:
            return None
        if section.compressed:
            raise ElfError(f"not a readable ELF file: its section {name} is compressed")
        return self._data[section.offset : section.offset + section.size]

    def needed(self) -> tuple[str, ...]:
        """The DT_NEEDED library names behind the interpreter (an absolute path), in the file's order."""
        names: list[str] = []
        if (interpreter := self._segment(_PT_INTERP, "interpreter")) is not None:
            names.append(_text(interpreter, 0))
        if (dynamic := self._segment(_PT_DYNAMIC, "dynamic section")) is not None:
            names += self._libraries(dynamic)
        return tuple(names)

    def build_id(self) -> bytes | None:
        """Return the linker's build id; None without one."""
        notes, at = self.content(".note.gnu.build-id") or b"", 0
        while at + 12 <= len(notes):
            name, size, kind = struct.unpack_from("<III", notes, at)
            begin = at + 12 + -(-name // 4) * 4
            if notes[at + 12 : at + 12 + name] == b"GNU\0" and kind == _NOTE_GNU_BUILD_ID:
                if not 0 < size <= len(notes) - begin:
                    raise ElfError("not a readable ELF file: its build id is cut off")
                return notes[begin : begin + size]
            at = begin + -(-size // 4) * 4
        return None

    def modinfo(self) -> dict[str, str]:
        """The ``key=value`` strings of a kernel module's ``.modinfo`` section (the first of each key)."""
        result: dict[str, str] = {}
        data = self.content(".modinfo") or b""
        if len(data) > _MOST_MODINFO:
            raise ElfError(f"not a readable kernel module: its .modinfo has {len(data)} bytes")
        for item in data.split(b"\0"):
            key, separator, value = item.decode(errors="replace").partition("=")
            if separator:
                result.setdefault(key, value)
        return result

    def _segment(self, wanted: int, what: str) -> bytes | None:
        """The content of the first segment of a kind, which is the one that is used."""
        found = ((offset, size) for kind, _, offset, _, _, size, _, _ in self._segments if kind == wanted)
        place = next(found, None)
        return None if place is None else self._slice(*place, what)

    def _libraries(self, dynamic: bytes) -> Iterator[str]:
        tags = list(struct.iter_unpack("<QQ", dynamic[: len(dynamic) // 16 * 16][: 16 * _MOST_TAGS]))
        end = next((index for index, (tag, _) in enumerate(tags) if tag == _DT_NULL), len(tags))
        needed = [value for tag, value in tags[:end] if tag == _DT_NEEDED]
        address = next((value for tag, value in tags[:end] if tag == _DT_STRTAB), None)
        if not needed:
            return
        for kind, _, offset, start, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and address is not None and start <= address < start + size:
                strings = self._slice(offset, size, "loaded segment")[address - start :]
                yield from (_text(strings, name) for name in needed)
                return
        raise ElfError("not a readable ELF file: it needs libraries but does not name them")

    def _read_sections(self, offset: int, width: int, number: int, names: int) -> dict[str, Section]:
        if offset == 0:
            return {}
        if number == 0 or names == 0xFFFF:
            # More than fit into the header: the first section's header has the numbers.
            first = self._table(_SECTION, "section headers", offset, width, 1)[0]
            number, names = number or first[5], first[6] if names == 0xFFFF else names
        if number > _MOST_SECTIONS:
            raise ElfError(f"not a readable ELF file: {number} sections")
        headers = self._table(_SECTION, "section headers", offset, width, number)
        if names >= len(headers):
            raise ElfError("not a readable ELF file: its sections have no names")
        strings = self._slice(headers[names][4], headers[names][5], "section names") if names else b""
        result: dict[str, Section] = {}
        for name, kind, flags, _, start, size, _, _, _, _ in headers:
            stored = kind not in _NOT_STORED
            if stored:
                self._within(start, size, "sections")
            word = _text(strings, name) if strings else ""
            result.setdefault(word, Section(word, start, size, stored, bool(flags & _SHF_COMPRESSED)))
        return result

    def _table(self, form: struct.Struct, what: str, offset: int, width: int, count: int) -> list[tuple[int, ...]]:
        if count == 0:
            return []
        if width != form.size:
            raise ElfError(f"not a readable ELF file: its {what} are {width} bytes wide")
        return list(form.iter_unpack(self._slice(offset, width * count, what)))

    def _slice(self, offset: int, size: int, what: str) -> bytes:
        self._within(offset, size, what)
        return self._data[offset : offset + size]

    def _within(self, offset: int, size: int, what: str) -> None:
        if offset + size > len(self._data):
            raise ElfError(f"not a readable ELF file: cut off or damaged, its {what} lie behind its end")


def is_elf(data: bytes) -> bool:
    """Whether ``data`` begins as an ELF file does."""
    return data[:4] == b"\x7fELF"


def _machine(number: int) -> str:
    return _MACHINES.get(number, f"machine {number}")


def _text(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset, offset + _LONGEST_NAME) if offset < len(strings) else -1
    if end < 0:
        raise ElfError("not a readable ELF file: a name in it has no end")
    try:
        return strings[offset:end].decode()
    except UnicodeDecodeError as error:
        raise ElfError("not a readable ELF file: a name in it is no text") from error

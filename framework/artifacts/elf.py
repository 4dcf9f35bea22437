"""What an ELF file of a guest needs: its libraries, and for a kernel module the modules it depends on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile


def is_elf(data: bytes) -> bool:
    """Whether ``data`` begins as an ELF file does."""
    return data[:4] == b"\x7fELF"


def needed(data: bytes) -> tuple[str, ...]:
    """The DT_NEEDED library names and the interpreter (an absolute path), in the file's order."""
    try:
        elf: Any = ELFFile(io.BytesIO(data))
        names: list[str] = [s.get_interp_name() for s in elf.iter_segments("PT_INTERP")]
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                tags: Iterator[Any] = section.iter_tags("DT_NEEDED")
                names += [tag.needed for tag in tags]
    except ELFError as error:
        raise ValueError(f"not a readable ELF file: {error}") from error
    return tuple(names)


def build_id(data: bytes) -> bytes | None:
    """What the linker named this build; None if it did not."""
    try:
        section: Any = ELFFile(io.BytesIO(data)).get_section_by_name(".note.gnu.build-id")
        notes = () if section is None else tuple(section.iter_notes())
    except (ELFError, ValueError) as error:
        raise ValueError(f"not a readable ELF file: {error}") from error
    return next((bytes.fromhex(note["n_desc"]) for note in notes if note["n_type"] == "NT_GNU_BUILD_ID"), None)


def modinfo(data: bytes) -> dict[str, str]:
    """The ``key=value`` strings of a kernel module's ``.modinfo`` section (the first of each key)."""
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    result: dict[str, str] = {}
    if section is not None:
        for item in section.data().split(b"\0"):
            key, separator, value = item.decode(errors="replace").partition("=")
            if separator:
                result.setdefault(key, value)
    return result

# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules as distributions ship them: found in a folder, unpacked by their content, with what they depend on."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from framework.artifacts import elf
from framework.artifacts.guest_path import resolve

MOST = 128 << 20
"""Bytes of one module at most: the largest ones with all their debug information have half of it."""
_MOST_TOGETHER = 512 << 20
_MOST_LISTED = 16 << 20
_MEMORY = 256 << 20
"""Memory for unpacking one, in bytes: the kernel's own build compresses for far less."""
_FILE = re.compile(r"(.+)\.ko(\.(xz|gz|zst|bz2|lz4|lzma|lzo))?")
_OTHERS = {b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4", b"\x89LZO": "lzo"}


class ModuleError(ValueError):
    """A module cannot be used; ``path`` is its file, the text says why."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path


@dataclass(frozen=True)
class Module:
    """A kernel module: its name, content (unpacked) and ``.modinfo``."""

    name: str
    data: bytes
    info: Mapping[str, str]


@dataclass
class Modules:
    """The modules of some folders, by name; an earlier folder wins. ``built_in`` are those that need no file."""

    files: dict[str, Path] = field(default_factory=dict)
    built_in: set[str] = field(default_factory=set)
    complete: bool = True
    """Whether a module that is neither there nor listed as built in is missing; False where there is no such list."""

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Modules:
        """Look through ``folders``; links are followed inside each only."""
        found = cls()
        lists = 0
        for root in folders:
            for path in sorted(root.rglob("*.ko*")):
                match = _FILE.fullmatch(path.name)
                target = resolve(root, path.relative_to(root).as_posix()) if match else None
                if match and target is not None and target.is_file():
                    found.files.setdefault(canonical(match[1]), target)
            for path in root.rglob("modules.builtin"):
                if path.is_file() and not path.is_symlink():
                    lists += 1
                    with path.open("rb") as stream:
                        names = stream.read(_MOST_LISTED).decode(errors="replace").split()
                    found.built_in |= {canonical(name.rpartition("/")[2].removesuffix(".ko")) for name in names}
        found.complete = lists > 0
        return found

    def closure(self, names: Iterable[str]) -> Iterator[Module]:
        """Yield each module that ``names`` need, in loading order.

        :raises KeyError: one is missing; the argument is its name.
        :raises ModuleError: one is damaged, not for arm64, or compressed in a way that cannot be read.
        """
        seen: set[str] = set()
        # A name is still to be looked at; a module waits for what was put above it, which it depends on.
        left: list[str | Module] = [canonical(name) for name in reversed(list(names))]
        total = 0
        while left:
            item = left.pop()
            if isinstance(item, Module):
                yield item
                continue
            if item in seen or (item not in self.files and (item in self.built_in or not self.complete)):
                continue
            seen.add(item)
            if item not in self.files:
                raise KeyError(item)
            module = read(self.files[item])
            total += len(module.data)
            if total > _MOST_TOGETHER:
                raise ModuleError(self.files[item], f"it and those before have more than {_MOST_TOGETHER >> 20} MiB")
            left.append(module)
            left += [canonical(name) for name in reversed(module.info.get("depends", "").split(",")) if name]


def canonical(name: str) -> str:
    """A module's name as the kernel has it: ``-`` and ``_`` are one."""
    return name.replace("-", "_")


def read(path: Path) -> Module:
    """Read the module in the file ``path``, named after it.

    :raises ModuleError: it is damaged, larger than :data:`MOST`, or no module for arm64.
    """
    with path.open("rb") as stream:
        packed = stream.read(MOST + 1)
    try:
        data = _unpacked(packed)
        if len(data) > MOST:
            raise ValueError(f"it has more than {MOST >> 20} MiB")
        module = elf.Elf(data)
        if module.kind != elf.RELOCATABLE or ".modinfo" not in module.sections:
            raise ValueError("an ELF file, but not a kernel module")
        return Module(canonical(path.name.partition(".ko")[0]), data, module.modinfo())
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise ModuleError(path, f"damaged, it cannot be unpacked: {error}") from error
    except ValueError as error:
        raise ModuleError(path, str(error)) from error


def _unpacked(data: bytes) -> bytes:
    """Unpack a module, up to one byte more than the bound."""
    if data.startswith(b"\xfd7zXZ\0"):
        xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
        return _whole(xz.decompress(data, MOST + 1), ended=xz.eof)
    if data.startswith(b"\x1f\x8b"):
        gz = zlib.decompressobj(31)
        return _whole(gz.decompress(data, MOST + 1), ended=gz.eof)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        # One that is cut ends early without a word; the ELF file inside then lacks its end.
        with zstandard.ZstdDecompressor(max_window_size=_MEMORY).stream_reader(data) as stream:
            return bytes(stream.read(MOST + 1))
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            raise ValueError(f"compressed with {name}, which cannot be read; unpack it, or use xz, gzip or zstd")
    return data


def _whole(data: bytes, *, ended: bool) -> bytes:
    if not ended and len(data) <= MOST:
        raise EOFError("its end is missing")
    return data

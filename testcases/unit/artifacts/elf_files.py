# SPDX-License-Identifier: GPL-2.0-or-later
"""Small ELF files, Images and OP-TEE headers, made as by a linker or as by an attacker."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

ARM64, ARM, X86 = 183, 40, 62
DYNAMIC, MODULE = 3, 1
BASE = 0x400000


def elf(
    sections: Mapping[str, bytes] | None = None,
    *,
    kind: int = DYNAMIC,
    machine: int = ARM64,
    needed: Sequence[str] = (),
    interpreter: str | None = None,
    wide: bool = True,
) -> bytes:
    """A 64-bit little-endian ELF file (32 bits in its header only unless ``wide``) with these sections, and segments
    for what the loader reads."""
    strings, offsets = b"\0", []
    for name in needed:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    segments = []
    body = b""
    begin = 64 + 56 * 3

    def put(data: bytes) -> int:
        nonlocal body
        body += bytes(-len(body) % 8)
        body += data
        return begin + len(body) - len(data)

    if interpreter is not None:
        data = interpreter.encode() + b"\0"
        segments.append((3, 4, put(data), 0, 0, len(data), len(data), 1))
    if needed:
        place = put(strings)
        tags = [*((1, offset) for offset in offsets), (5, BASE + place), (10, len(strings)), (0, 0)]
        table = b"".join(struct.pack("<QQ", *tag) for tag in tags)
        segments.append((2, 6, put(table), 0, 0, len(table), len(table), 8))
        segments.append((1, 5, 0, BASE, BASE, begin + len(body), begin + len(body), 4096))
    headers = [bytes(64)]
    names = b"\0"
    for name, data in {**(sections or {}), ".shstrtab": b""}.items():
        place = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else data
        headers.append(struct.pack("<IIQQQQIIQQ", place, 3, 0, 0, put(content), len(content), 0, 0, 1, 0))
    table_at = put(b"".join(headers))
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident, kind, machine, 1, 0, 64 if segments else 0, table_at, 0, 64, 56, len(segments), 64, len(headers),
        len(headers) - 1,
    )  # fmt: skip
    program = b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
    return header + program.ljust(56 * 3, b"\0") + body


def module(
    name: str, depends: str = "", vermagic: str = "6.1.0 SMP modversions aarch64", machine: int = ARM64
) -> bytes:
    """A kernel module."""
    info = f"name={name}\0depends={depends}\0vermagic={vermagic}\0".encode()
    return elf({".modinfo": info, ".text": bytes(64)}, kind=MODULE, machine=machine)


def note(identity: bytes) -> bytes:
    """The note with a build id."""
    return struct.pack("<III4s", 4, len(identity), 3, b"GNU\0") + identity


def image(path: Path, content: bytes = b"", pages: int = 1, *, big_endian: bool = False) -> Path:
    """An arm64 Image; ``pages`` is 1, 2 or 3 for 4, 16 or 64 KiB."""
    path.write_bytes(struct.pack("<8xQQQ24x4s4x", 0, 1 << 20, pages << 1 | big_endian, b"ARMd") + content)
    return path


def optee(
    folder: Path, address: int = 0xF000_0000, version: int = 2, machine: int = 1, pager: bytes = b"p" * 4096
) -> Path:
    """The three files of an OP-TEE OS build."""
    folder.mkdir(exist_ok=True)
    header = struct.pack("<4sBBHI", b"OPTE", version, machine, 0, 1)
    header += struct.pack("<IIII", address >> 32, address & 0xFFFF_FFFF, 0, len(pager))
    (folder / "tee-header_v2.bin").write_bytes(header)
    (folder / "tee-pager_v2.bin").write_bytes(pager)
    (folder / "tee-pageable_v2.bin").touch()
    return folder

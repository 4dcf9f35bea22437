# SPDX-License-Identifier: GPL-2.0-or-later
"""Writer of initial ramdisks: "newc" cpio archives, byte for byte the same for the same entries.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from framework.artifacts.guest_path import is_plain
from framework.common.errors import ArtifactError

_END = "TRAILER!!!"
"""The name that ends an archive."""
_MOST = 0xFFFF_FFFF
"""Bytes: sizes have eight hexadecimal digits."""


@dataclass(frozen=True)
class Entry:
    """One file of an archive: ``mode`` with its type bits, and the bytes (a link's target for a symbolic link)."""

    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(permissions: int = 0o755) -> Entry:
    """A folder."""
    return Entry(stat.S_IFDIR | permissions)


def regular(data: bytes, permissions: int = 0o644) -> Entry:
    """A plain file."""
    return Entry(stat.S_IFREG | permissions, data)


def symlink(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def device(kind: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character (``"c"``) or block (``"b"``) device; it needs no root, since it exists only in the archive."""
    return Entry((stat.S_IFCHR if kind == "c" else stat.S_IFBLK) | permissions, rdev=(major, minor))


def write(entries: Mapping[str, Entry], stream: IO[bytes]) -> None:
    """Write ``entries`` (path without leading slash to entry) to ``stream``, parents before children.

    Times, owners and inode numbers are constant, so equal entries make equal bytes.

    :raises ArtifactError: a path is absolute, a component of it is empty, ``.`` or ``..``, or it is the name that ends
        an archive; or an entry has more bytes than the format can say.
    """
    complete = dict(entries)
    for path in entries:
        parent = path.rpartition("/")[0]
        while parent:
            complete.setdefault(parent, directory())
            parent = parent.rpartition("/")[0]
    for path, entry in complete.items():
        if not is_plain(path) or path == _END:
            raise ArtifactError(f"refused: {path!r} is no path of a file in an archive")
        if len(entry.data) > _MOST:
            raise ArtifactError(f"refused: {path} has {len(entry.data)} bytes, and the format ends at {_MOST}")
    for inode, path in enumerate(sorted(complete), start=1):
        _record(stream, path, complete[path], inode)
    _record(stream, _END, Entry(0), 0)
    # The kernel accepts archives one after the other if each begins on a multiple of four bytes.
    stream.write(bytes(-stream.tell() % 512))


def _record(stream: IO[bytes], path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.rdev[0], entry.rdev[1], len(name), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    stream.write(header + name + bytes(-(len(header) + len(name)) % 4))
    stream.write(entry.data + bytes(-len(entry.data) % 4))

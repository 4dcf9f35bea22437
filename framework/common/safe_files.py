# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders opened so that another user's links cannot redirect them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from framework.common.errors import UsageError


def require_own(folder: Path) -> None:
    """Refuse, as root, a folder in which another user could place links that root would follow.

    :raises UsageError: the folder belongs to another user or can be written by others.
    """
    if os.geteuid() != 0:
        return
    seen = folder.stat()
    hint = "name a folder of your own, or one that does not exist yet"
    if seen.st_uid != 0:
        raise UsageError(f"root does not write into a folder of user {seen.st_uid}", where=str(folder), hint=hint)
    # A group of its own for each user is common, and a umask that lets it write.
    if seen.st_mode & stat.S_IWOTH or (seen.st_mode & stat.S_IWGRP and seen.st_gid != os.getegid()):
        raise UsageError("root does not write where other users can write too", where=str(folder), hint=hint)


def make_own(folder: Path) -> None:
    """Make a folder and its parents where they are missing; as root, refuse one that :func:`require_own` refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    require_own(folder)


def create(path: Path, *, append: bool = False) -> int:
    """Open a file for writing, emptied unless ``append``, and return its descriptor; never through a symbolic link.

    :raises OSError: as open(2); ELOOP for a symbolic link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
    return os.open(path, flags, 0o644)


def write(path: Path, data: bytes) -> None:
    """Write a whole file; never through a symbolic link."""
    with os.fdopen(create(path), "wb") as stream:
        stream.write(data)


def tail(path: Path, size: int) -> bytes:
    """The last ``size`` bytes of a file; b"" when it is not there."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read(size)
    except FileNotFoundError:
        return b""

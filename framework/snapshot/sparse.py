# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM as a file with holes: copied and hashed without ever reading a hole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from framework.common.qemu_ids import READERS

_BLOCK = 64 * 1024
_ZERO = bytes(_BLOCK)


def digest(path: Path) -> str:
    """Return the SHA-256 over the blocks of 64 KiB that are not all zero, each with its number.

    Holes and written zeros are the same: a copy on another file system has the same digest.
    """
    return _pass(path, None)


def copy(source: Path, target: Path) -> str:
    """Copy to a new file of the user's own, with holes for zeros; return the digest of what was copied.

    Raises OSError (ENOSPC and the like) with nothing left of ``target``.
    """
    try:
        return _pass(source, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def seal(path: Path) -> None:
    """Make a file with guests' RAM read-only, and readable for this user and the QEMUs that it starts alone."""
    root = os.geteuid() == 0
    if root:
        os.chown(path, 0, READERS, follow_symlinks=False)
    path.chmod(0o440 if root else 0o400)


def allocated(path: Path) -> int:
    """Return how many bytes a file really takes."""
    return path.stat().st_blocks * 512


def copied(path: Path) -> int:
    """Return how many bytes a copy takes at most: a hole of less than 64 KiB may be written there."""
    with path.open("rb", buffering=0) as stream:
        return _BLOCK * sum(1 for _ in _blocks(stream.fileno(), os.fstat(stream.fileno()).st_size))


def _pass(source: Path, target: Path | None) -> str:
    total = hashlib.sha256()
    with source.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        total.update(size.to_bytes(8, "little"))
        out = None if target is None else os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if out is not None:
                os.truncate(out, size)
            for number in _blocks(stream.fileno(), size):
                data = os.pread(stream.fileno(), _BLOCK, number * _BLOCK)
                if data == _ZERO[: len(data)]:
                    continue
                total.update(number.to_bytes(8, "little"))
                total.update(data)
                if out is not None and os.pwrite(out, data, number * _BLOCK) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        finally:
            if out is not None:
                os.close(out)
    return total.hexdigest()


def _blocks(fd: int, size: int) -> Iterator[int]:
    """The numbers of the blocks that are not holes, ascending."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        # Rounded outwards, and never twice over the same block.
        first = max(begin // _BLOCK, -(-at // _BLOCK))
        last = -(-end // _BLOCK)
        yield from range(first, last)
        at = max(last * _BLOCK, end)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Hashes of files, and a record of the files that were hashed already and have not been touched since."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a write when a disk, quota or file size limit is exhausted."""

READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""Error numbers of a write when a folder cannot be written by this user."""

NO_ROOM_HINT = "free space with `medcheck clean`, or set MEDCHECK_CACHE to a folder on a larger disk"

Stamp = tuple[int, int, int, int]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def short_key(value: object) -> str:
    """Return a name, 16 hexadecimal digits, for plain JSON: the same for equal values on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Checker:
    """Compares files with their hashes.

    A file that was good is not read again by the same process while size, times and inode stay: the kernel
    sets the change time itself on every write or replacement, so no content changes unseen.
    """

    def __init__(self) -> None:
        self._good: dict[tuple[Path, str], Stamp] = {}
        self._lock = threading.Lock()

    def matches(self, path: Path, size: int, sha256: str) -> bool:
        """Whether ``path`` is a regular file with this size and hash; a missing file does not match."""
        try:
            status = path.lstat()
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            with self._lock:
                if self._good.get((path, sha256)) == stamp:
                    return True
            if not path.is_file() or path.is_symlink() or status.st_size != size or sha256_file(path) != sha256:
                return False
        except FileNotFoundError:
            return False
        with self._lock:
            self._good[path, sha256] = stamp
        return True


def make_writable_parent(folder: Path) -> None:
    """Create ``folder`` and prove that it can be written; the OSError says why not."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

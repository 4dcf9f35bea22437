# SPDX-License-Identifier: GPL-2.0-or-later
"""Working copies: the RAM of one cache's snapshots on tmpfs, where every clone maps it. A cache in memory, so bounded.

Layout of ``<tmpfs>/medcheck-<uid>-<tag of the cache>/``: ``<snapshot>/ram`` (with its ``.verified``),
``.<snapshot>.partial/ram`` (of a board that boots to become one), ``.owner`` (names the cache that all this belongs to;
locked by each user), ``.room`` (locked while copies are counted and made).

A copy is made only where all of this cache's copies then keep :func:`default_bound`; for its sake ones that have
grown a lot go (a hole that a clone reads becomes a page), then the least recently used. One whose snapshot is in use
stays, by the same lock that keeps the snapshot. Only files of this cache are considered, except that copies of a cache
that is gone are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil

from framework.common.content_hash import is_verified, mark_verified
from framework.common.errors import UsageError
from framework.common.locks import flock
from framework.snapshot import sparse

TMPFS = Path("/dev/shm")
MOST_RAM = 2 << 30
"""Bytes that a board's RAM takes at most while it boots; the rest of it stays a hole."""

_SPARE = 256 << 20
"""Bytes that a copy leaves free on tmpfs: clones' own files and other programs live there too."""

_FOLDER_MODE = 0o711 if os.geteuid() == 0 else 0o700
"""QEMU's own user goes through it to a file that it knows where there can be no private view of the file system."""

_OWNER = ".owner"
_PARTIAL = ".partial"

Lock = Callable[[str], AbstractContextManager[None]]
"""Locks a snapshot, given by name, for exclusive use; raises BlockingIOError when it is in use."""


def default_bound() -> int:
    """Return the bytes that one cache's working copies may take: a quarter of this machine's memory, but as much as
    one board that boots; ``MEDCHECK_TMPFS_MIB`` overrides. Raises UsageError when that is no number."""
    return mib_of("MEDCHECK_TMPFS_MIB", max(psutil.virtual_memory().total // 4, MOST_RAM))


def mib_of(variable: str, default: int, former: str = "") -> int:
    """Return the bytes that a variable of the environment, or by its ``former`` name, gives in MiB.

    Raises UsageError when it is no number.
    """
    given = os.environ.get(variable, "") or os.environ.get(former, "")
    if not given:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise UsageError(f"{variable} is '{given}'", hint="expected a number of MiB, such as 4096")
    return int(given) << 20


class TmpfsCache:
    """The working copies of the snapshots in one folder. With ``tmpfs`` None, or one that is not there, there are
    none, and every method says so. ``most`` is the bound in bytes, ``say`` receives remarks for the user."""

    def __init__(
        self, snapshots: Path, tmpfs: Path | None, lock: Lock, say: Callable[[str], None], most: int | None = None
    ) -> None:
        self._snapshots = snapshots.absolute()
        self._tmpfs = tmpfs
        self._folder = Path() if tmpfs is None else tmpfs / _folder_name(self._snapshots)
        self._lock = lock
        self._say = say
        self._most = default_bound() if most is None else most

    @contextmanager
    def used(self) -> Iterator[None]:
        """Mark the cache as in use, so that it is not taken for one that is gone."""
        lock = self._claim()
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def ram(self, name: str) -> Path:
        """Return where a snapshot's working copy is, or would be."""
        return self._folder / name / "ram"

    def size(self, name: str) -> int:
        """Return the bytes that a snapshot's working copy takes; 0 without one."""
        try:
            return 0 if self._tmpfs is None else sparse.allocated(self.ram(name))
        except FileNotFoundError:
            return 0

    def verified(self, name: str, digest: str) -> bool:
        """Whether there is one, and it is known to have this digest."""
        return self._tmpfs is not None and is_verified(self.ram(name), digest)

    def copy(self, name: str, source: Path, digest: str) -> str | None:
        """Make the working copy of a snapshot that the caller has locked. Return the digest of what was copied, which
        stays only if it is the expected one; None without room or tmpfs."""
        if not source.exists() or not self._ours():
            return None
        working = self.ram(name)
        try:
            # One at a time, or two that find the same room would both fill it.
            with flock(self._folder / ".room", exclusive=True):
                if is_verified(working, digest):
                    return digest
                working.unlink(missing_ok=True)
                if not self._make_room(sparse.copied(source)):
                    return None
                working.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
                copied = sparse.copy(source, working)
                if copied == digest:
                    _seal(working, digest)
                else:
                    working.unlink()
                return copied
        except OSError as error:
            self._say(f"no working copy on tmpfs ({error.strerror}); clones read from disk")
            return None

    def begin(self, name: str) -> Path | None:
        """Return a new folder for the RAM of a board that boots to become the snapshot of this name, which the caller
        has locked; None when there is no room for all that it may take, or no tmpfs."""
        if not self._ours():
            return None
        folder = self._folder / f".{name}{_PARTIAL}"
        try:
            with flock(self._folder / ".room", exclusive=True):
                # Ours is the lock: whatever was begun under this name was left by a process that died.
                shutil.rmtree(folder, ignore_errors=True)
                if not self._make_room(MOST_RAM):
                    return None
                folder.mkdir(mode=_FOLDER_MODE)
        except OSError:
            return None
        return folder

    def finish(self, name: str, digest: str) -> None:
        """Turn what was begun into the working copy; it is known to have this digest."""
        self.remove(name)
        (self._folder / f".{name}{_PARTIAL}").rename(self._folder / name)
        _seal(self.ram(name), digest)

    def remove(self, name: str) -> None:
        """Remove the working copy of a snapshot that the caller has locked."""
        if self._tmpfs is not None and (self._folder / name).exists():
            shutil.rmtree(self._folder / name)

    def tidy(self) -> None:
        """Remove the copies whose snapshot is gone, and what killed processes left."""
        for folder in self._folders():
            begun = folder.name.endswith(_PARTIAL)
            name = folder.name[1 : -len(_PARTIAL)] if begun else folder.name
            if begun or not (self._snapshots / name).exists():
                # The lock's holder is alive and uses it; without one it is checked again, for another process may just
                # have made the snapshot.
                with contextlib.suppress(BlockingIOError), self._lock(name):
                    if begun or not (self._snapshots / name).exists():
                        shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used copies for ``size`` more bytes; none if that would not do."""
        assert self._tmpfs is not None
        reclaim(self._tmpfs)
        self.tidy()
        folders = {folder.name: _taken(folder) for folder in self._folders()}
        missing = max(sum(folders.values()) + size - self._most, size + _SPARE - shutil.disk_usage(self._tmpfs).free)
        victims: list[str] = []
        with ExitStack() as held:
            for name in sorted(filter(lambda name: not name.startswith("."), folders), key=self._worth):
                if missing <= 0:
                    break
                with contextlib.suppress(BlockingIOError):
                    held.enter_context(self._lock(name))
                    victims.append(name)
                    missing -= folders[name]
            if missing > 0:
                return False
            for name in victims:
                self.remove(name)
        return True

    def _folders(self) -> list[Path]:
        if self._tmpfs is None or not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if path.is_dir()]

    def _worth(self, name: str) -> tuple[bool, float]:
        """The least goes first: one that has grown to twice a new one (a clone whose RAM was read as a whole filled
        its holes), then by last use."""
        try:
            lean = self.size(name) <= 2 * sparse.copied(self._snapshots / name / "ram")
            return lean, (self._snapshots / name).stat().st_mtime
        except FileNotFoundError:
            return False, 0.0

    def _ours(self) -> bool:
        """Make the folder if need be; return whether it is this user's own and no other user can write there."""
        if self._tmpfs is None or not self._tmpfs.is_dir():
            return False
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            own = _is_own(self._folder)
            if own:
                # Earlier versions let all users read it.
                self._folder.chmod(_FOLDER_MODE)
            return own
        except OSError:
            return False

    def _claim(self) -> int | None:
        note = _note(self._snapshots)
        while self._ours():
            try:
                lock = os.open(self._folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # Another process has just taken the folder away.
            except OSError:
                return None
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock).st_nlink:
                with contextlib.suppress(OSError):
                    if os.pread(lock, len(note) + 1, 0) != note:
                        os.truncate(lock, 0)
                        os.pwrite(lock, note, 0)
                return lock
            os.close(lock)
        return None


def reclaim(tmpfs: Path) -> list[Path]:
    """Remove the working copies of this user's caches that are gone, and return their folders.

    Only where it is certain: the folder says which cache it belongs to, that name means the same to us (our mount
    namespace), nothing is there, and the copies are not in use.
    """
    removed = []
    for folder in tmpfs.glob(f"medcheck-{os.geteuid()}-*"):
        # Checked again under the lock: a process that makes the cache anew makes its folder before it waits for this
        # lock.
        with contextlib.suppress(OSError):
            if _is_own(folder) and _abandoned(folder):
                with flock(folder / _OWNER, exclusive=True, wait=False):
                    if _abandoned(folder):
                        _take_away(folder)
                        removed.append(folder)
    return removed


def _folder_name(snapshots: Path) -> str:
    return f"medcheck-{os.geteuid()}-{hashlib.sha256(str(snapshots).encode()).hexdigest()[:8]}"


def _note(snapshots: Path) -> bytes:
    return json.dumps({"snapshots": str(snapshots), "mounts": str(Path("/proc/self/ns/mnt").readlink())}).encode()


def _is_own(folder: Path) -> bool:
    seen = folder.lstat()
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o022


def _abandoned(folder: Path) -> bool:
    try:
        note = (folder / _OWNER).read_bytes()
        snapshots = Path(json.loads(note)["snapshots"])
        return note == _note(snapshots) and folder.name == _folder_name(snapshots) and not snapshots.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take_away(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != _OWNER:
            item.unlink()
    # Last, for it is locked: who waits for it finds it without a name, and begins anew.
    (folder / _OWNER).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _taken(folder: Path) -> int:
    """The bytes of a working copy; of one that is begun, what it may come to."""
    try:
        now = sparse.allocated(folder / "ram")
    except FileNotFoundError:
        now = 0
    return max(now, MOST_RAM) if folder.name.endswith(_PARTIAL) else now


def _seal(ram: Path, digest: str) -> None:
    sparse.seal(ram)
    mark_verified(ram, digest)

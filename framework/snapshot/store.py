# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots: boards saved at a checkpoint, each as a verified set of files that is cloned many times.

Layout of ``<cache>/snapshots/<label>-<key>/``: ``ram`` (guest RAM, with holes), ``state`` (QEMU's device state),
``consoles/*.log``, ``history.trace`` if the board was traced, ``manifest.json`` (hashes, and what the board's maker
wants to remember). A folder appears by one rename, complete, and is read-only to everything that follows.

Guest RAM is mapped by every clone, so a working copy on tmpfs saves the disk: see
:mod:`framework.snapshot.tmpfs_cache`. RAM is hashed once per boot of the machine; after that its stamp (inode,
size, times) proves it unchanged, because the kernel sets the change time on every write.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.board.board import Board, RestoredFrom
from framework.board.qemu import Ram
from framework.common.content_hash import is_verified, key_of, mark_verified, plain
from framework.common.digest import sha256_file
from framework.common.errors import BoardError
from framework.common.locks import flock
from framework.common.paths import cache_root
from framework.common.progress import Progress, Silent
from framework.snapshot import sparse
from framework.snapshot.save import copy_logs, save_devices
from framework.snapshot.tmpfs_cache import TMPFS, TmpfsCache, mib_of, reclaim

FORMAT = 1
MANIFEST = "manifest.json"
HISTORY = "history.trace"
"""The trace of a board up to where it was saved."""
DEFAULT_BOUND = 12 << 30
"""Bytes that all snapshots may take before the least recently used go; ``MEDCHECK_SNAPSHOTS_MIB`` overrides."""

Maker = Callable[[Ram, Path], AbstractContextManager[tuple[Board, dict[str, Any]]]]
"""Boots a board with this RAM and run folder up to the checkpoint to save, gives it and what to remember about it
(plain JSON), and takes it down afterwards. A trace that it leaves there as :data:`HISTORY` stays with the snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """One saved board. ``about`` holds its maker's notes; ``ram`` is the file that clones map."""

    folder: Path
    label: str
    key: str
    ram: Path
    uptime: float
    about: dict[str, Any]

    @property
    def state(self) -> Path:
        """QEMU's device state."""
        return self.folder / "state"

    @property
    def history(self) -> Path | None:
        """The trace of the board up to where it was saved; None if it was not recorded."""
        path = self.folder / HISTORY
        return path if path.exists() else None

    @property
    def past(self) -> RestoredFrom:
        """Return the history that a clone continues."""
        return RestoredFrom(self.folder / "consoles", self.uptime, f"snapshot {self.label}")


@dataclass(frozen=True)
class Entry:
    """A snapshot in the cache: bytes on disk and on tmpfs, last use in seconds since the epoch."""

    name: str
    disk_bytes: int
    memory_bytes: int
    last_use: float
    intact: bool


class SnapshotStore:
    """All snapshots of one cache. ``tmpfs`` None keeps everything on disk; ``most_memory`` bounds the working copies
    there, in bytes. Raises UsageError for a bound in the environment that is no number."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        tmpfs: Path | None = TMPFS,
        progress: Progress | None = None,
        most_memory: int | None = None,
    ) -> None:
        self.root = (cache_root() if root is None else root) / "snapshots"
        self._progress = progress or Silent()
        self._tmpfs = tmpfs
        self._copies = TmpfsCache(self.root, tmpfs, self._alone, self._progress.say, most_memory)
        self._most = mib_of("MEDCHECK_SNAPSHOTS_MIB", DEFAULT_BOUND, former="MEDCHECK_TEMPLATES_MIB")

    @contextmanager
    def get(self, label: str, inputs: Mapping[str, object], make: Maker) -> Iterator[Snapshot]:
        """Yield the snapshot made from these inputs; it is made if missing or damaged.

        While the context lasts its files are not removed; a clone that runs no longer needs them by name. Two
        processes that want the same snapshot make it once.

        :raises BoardError: no room, or whatever ``make`` raises.
        """
        key = key_of(label, inputs, FORMAT)
        name = f"{label}-{key}"
        # There before the copies are claimed: those of a cache without it are taken for left behind.
        self.root.mkdir(parents=True, exist_ok=True)
        with self._copies.used():
            with self._locked(name, exclusive=False):
                snapshot = self._open(name)
                if snapshot is not None:
                    yield snapshot
                    return
            with self._locked(name, exclusive=True):
                if self._open(name) is None:
                    self._make(name, label, key, inputs, make)
            with self._locked(name, exclusive=False):
                snapshot = self._open(name)
                if snapshot is None:
                    raise BoardError("a snapshot that was just made is damaged", where=str(self.root / name))
                yield snapshot

    def entries(self) -> list[Entry]:
        """Return what is there, least recently used first."""
        found = []
        for folder in self.root.glob("[!.]*-*"):
            files = [path for path in folder.rglob("*") if path.is_file()]
            memory = self._copies.size(folder.name)
            disk = sum(sparse.allocated(path) for path in files)
            found.append(Entry(folder.name, disk, memory, folder.stat().st_mtime, _manifest(folder) is not None))
        return sorted(found, key=lambda entry: entry.last_use)

    def prune(self, max_bytes: int | None = None) -> list[str]:
        """Remove the least recently used snapshots until the others take at most ``max_bytes`` on disk, and
        whatever interrupted work left there or on tmpfs; return the names of the removed. One in use stays."""
        self._remove_remains()
        bound = self._most if max_bytes is None else max_bytes
        entries = self.entries()
        total = sum(entry.disk_bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= bound:
                break
            if self.remove(entry.name):
                total -= entry.disk_bytes
                removed.append(entry.name)
        return removed

    def remove(self, name: str) -> bool:
        """Remove one snapshot; False when it is in use."""
        try:
            with self._alone(name):
                self._discard(name)
        except BlockingIOError:
            return False
        return True

    def reclaim(self) -> list[Path]:
        """Remove what caches that are gone (this one, too, if it is) left on tmpfs; return their folders."""
        return [] if self._tmpfs is None else reclaim(self._tmpfs)

    # One snapshot

    def _open(self, name: str) -> Snapshot | None:
        """The snapshot if all its files are what its manifest says; None if there is none (any more)."""
        folder = self.root / name
        manifest = _manifest(folder)
        if manifest is None:
            if folder.exists():
                self._progress.say(f"snapshot {name}: no manifest; made again")
            return None
        damaged = [file for file, want in manifest["files"].items() if not _same(folder / file, want)]
        ram = None if damaged else self._ram(folder, manifest["ram"])
        if ram is None:
            self._progress.say(f"snapshot {name}: {', '.join(damaged) or 'ram'} damaged; made again")
            return None
        with contextlib.suppress(PermissionError):
            os.utime(folder)
        return Snapshot(folder, manifest["label"], manifest["key"], ram, manifest["uptime"], manifest["about"])

    def _ram(self, folder: Path, want: str) -> Path | None:
        """The verified file to map: on tmpfs if possible, else on disk."""
        source = folder / "ram"
        working = self._copies.ram(folder.name)
        if self._copies.verified(folder.name, want):
            # A disk that lost the original is noticed now, not after the next boot of the machine.
            return working if source.exists() and source.stat().st_size == working.stat().st_size else None
        if copied := self._copies.copy(folder.name, source, want):
            return working if copied == want else None
        if is_verified(source, want):
            return source
        if not source.exists() or sparse.digest(source) != want:
            return None
        mark_verified(source, want)
        return source

    def _make(self, name: str, label: str, key: str, inputs: Mapping[str, object], make: Maker) -> None:
        self._remove_remains()
        self._discard(name)
        self.prune()
        folder = self.root / f".{name}.partial"
        # The lock is ours: whatever was begun under this name was left by a process that died.
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        fast = self._copies.begin(name)
        begin = time.monotonic()
        try:
            with self._progress.task(f"making snapshot {label}"), _room_errors(folder):
                live = (fast or folder) / "ram"
                # Stays when the board does not come up: its consoles say why.
                run_dir = self.root / ".logs" / name
                shutil.rmtree(run_dir, ignore_errors=True)
                with make(Ram(live), run_dir) as (board, about):
                    state, woken = save_devices(board)
                    uptime = board.uptime
                    copy_logs(board, folder / "consoles")
                if (run_dir / HISTORY).exists():
                    shutil.copyfile(run_dir / HISTORY, folder / HISTORY)
                shutil.rmtree(run_dir)
                (folder / "state").write_bytes(state)
                ram = sparse.digest(live) if fast is None else sparse.copy(live, folder / "ram")
                files = {str(path.relative_to(folder)): sha256_file(path) for path in _small_files(folder)}
                document = {
                    "format": FORMAT, "label": label, "key": key, "inputs": plain(inputs), "uptime": uptime,
                    "about": about, "ram": ram, "files": files, "woken": [str(item) for item in woken],
                    "seconds": round(time.monotonic() - begin, 1),
                }  # fmt: skip
                (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
                sparse.seal(folder / "ram")
                (folder / "state").chmod(0o600)
                folder.rename(self.root / name)
                mark_verified(self.root / name / "ram", ram)
                if fast is not None:
                    self._copies.finish(name, ram)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if fast is not None:
                shutil.rmtree(fast, ignore_errors=True)

    # Files

    def _discard(self, name: str) -> None:
        # On disk first: without its manifest, nothing of it counts.
        (self.root / name / MANIFEST).unlink(missing_ok=True)
        if (self.root / name).exists():
            shutil.rmtree(self.root / name)
        self._copies.remove(name)

    def _remove_remains(self) -> None:
        """Remove the remains of a process that was killed while making a snapshot."""
        for folder in self.root.glob(".*.partial"):
            # The lock's holder is alive and uses it.
            with contextlib.suppress(BlockingIOError), self._alone(folder.name[1 : -len(".partial")]):
                shutil.rmtree(folder, ignore_errors=True)
        self._copies.tidy()

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """Hold a snapshot as its only user; raises BlockingIOError when it is in use."""
        return self._locked(name, exclusive=True, wait=False)

    @contextmanager
    def _locked(self, name: str, *, exclusive: bool, wait: bool = True) -> Iterator[None]:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            lock = flock(locks / name, exclusive=exclusive, wait=False)
            lock.__enter__()
        except BlockingIOError:
            if not wait:
                raise
            self._progress.say(f"snapshot {name}: another process is at it; waiting for that")
            lock = flock(locks / name, exclusive=exclusive)
            lock.__enter__()
        try:
            yield
        finally:
            lock.__exit__(None, None, None)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((folder / MANIFEST).read_text())
        good = document["format"] == FORMAT and {"ram", "files", "label", "key", "uptime", "about"} <= set(document)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return document if good else None


def _small_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("ram", MANIFEST))


def _same(path: Path, want: str) -> bool:
    return path.is_file() and sha256_file(path) == want


@contextmanager
def _room_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BoardError(
            f"the snapshot cannot be written: {error.strerror}",
            where=str(error.filename or folder),
            hint="free space with `medcheck snapshot prune`, or set MEDCHECK_CACHE to a folder on a larger disk",
        ) from error

# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache of build results, found by the hash of all their inputs and verified at every use.

Layout below the root: ``builds/<name>-<key>/`` with a ``manifest.json``, ``locks/``, and ``logs/`` with the
logs of builds that failed. A build must not depend on the folder it runs in: it is renamed when complete.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.download import disk_error
from framework.common.digest import (
    NO_ROOM,
    NO_ROOM_HINT,
    READ_ONLY,
    Checker,
    make_writable_parent,
    sha256_file,
    short_key,
)
from framework.common.errors import BuildError, MedcheckError
from framework.common.locks import announced, flock
from framework.common.progress import Progress, Silent

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """One built folder: its size in bytes, and when it was last used (seconds since the epoch)."""

    path: Path
    size: int
    last_use: float

    def __str__(self) -> str:
        return self.path.name


class BuildCache:
    """Folders that are built once for each set of inputs."""

    def __init__(self, root: Path, progress: Progress | None = None) -> None:
        self.root = root
        self._progress = progress or Silent()
        self._checker = Checker()

    def get(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """Return the folder that ``build`` fills, from the cache if it was built from the same inputs before.

        ``inputs`` may hold numbers, texts, bytes, lists, mappings, dataclasses and paths; a path stands for
        the content of the file or folder. ``build`` gets an empty folder; its ``*.log`` files are kept when
        it raises. A folder with a file damaged, missing or added is built again.

        :raises BuildError: the disk is full, or whatever ``build`` raises.
        """
        plain = _plain(inputs)
        folder = self._folder(name, plain)
        if self._intact(folder):
            return folder
        try:
            for parent in (folder.parent, self.root / "locks"):
                make_writable_parent(parent)
            with self._locked(folder.name):
                if self._intact(folder):
                    return folder
                if folder.exists():
                    self._progress.say(f"{folder.name}: damaged in the cache and built again")
                    shutil.rmtree(folder)
                self._build(folder, plain, build)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise BuildError(
                    f"no room to build {name}: {error.strerror}",
                    where=str(error.filename or folder),
                    hint=NO_ROOM_HINT,
                ) from error
            if error.errno in READ_ONLY and Path(str(error.filename)).is_relative_to(self.root):
                raise disk_error(error, folder, 0) from error
            raise
        return folder

    def find(self, name: str, inputs: Mapping[str, object]) -> Path | None:
        """Return the folder that :meth:`get` built from these inputs; None if it is not there, or damaged."""
        folder = self._folder(name, _plain(inputs))
        return folder if self._intact(folder) else None

    @contextmanager
    def workspace(self, name: str, inputs: Mapping[str, object]) -> Iterator[Path]:
        """Yield a folder that stays, for what a build can use again next time; its content is not verified. It is this
        process's alone until the end of the context, and removed like other builds when it was not used for long."""
        folder = self._folder(name, _plain(inputs))
        make_writable_parent(self.root / "locks")
        with self._locked(folder.name):
            make_writable_parent(folder)
            os.utime(folder)
            yield folder

    def entries(self) -> list[Entry]:
        """Return what the cache holds, least recently used first."""
        found = []
        for folder in (self.root / "builds").glob("*-*"):
            if folder.is_dir() and not folder.name.startswith("."):
                size = sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
                found.append(Entry(folder, size, folder.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.last_use)

    def prune(self, max_bytes: int, *, unused_for: float = 0) -> list[Entry]:
        """Remove the least recently used folders until at most ``max_bytes`` are left; return the removed.

        Builds in progress, and those used in the last ``unused_for`` seconds, stay.
        """
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        removed = []
        for entry in entries:
            if total <= max_bytes or entry.last_use > time.time() - unused_for:
                break
            try:
                with flock(self.root / "locks" / f"{entry.path.name}.lock", wait=False):
                    shutil.rmtree(entry.path)
            except BlockingIOError:
                continue
            total -= entry.size
            removed.append(entry)
        return removed

    def _folder(self, name: str, plain: Mapping[str, object]) -> Path:
        return self.root / "builds" / f"{name}-{short_key([name, plain])}"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        waiting = f"{name}: another run builds it; waiting for that"
        with announced(self.root / "locks" / f"{name}.lock", lambda: self._progress.say(waiting)):
            yield

    def _build(self, folder: Path, inputs: Mapping[str, object], build: Callable[[Path], None]) -> None:
        aside = folder.with_name(f".{folder.name}.partial")
        if aside.exists():
            # Left by a run that was killed; no other process uses it, for the lock is ours.
            shutil.rmtree(aside)
        aside.mkdir()
        try:
            build(aside)
            manifest = {"inputs": inputs, "files": _manifest(aside)}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            aside.rename(folder)
        except BaseException as error:
            kept = self._keep_logs(aside, folder.name)
            if isinstance(error, MedcheckError) and kept and (error.where is None or str(aside) in error.where):
                error.where = error.where.replace(str(aside), str(kept)) if error.where else str(kept)
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _keep_logs(self, aside: Path, name: str) -> Path | None:
        """Move the logs of a failed build to ``logs/``; return where, or None if it wrote none."""
        logs = [path for path in sorted(aside.rglob("*.log")) if path.is_file()]
        if not logs:
            return None
        kept = self.root / "logs" / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        for log in logs:
            target = kept / log.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(log, target)
        return kept

    def _intact(self, folder: Path) -> bool:
        """Whether every file is there with the content it had when it was built, and no other."""
        try:
            files = json.loads((folder / MANIFEST).read_bytes())["files"]
            present = {_relative(path, folder) for path in _walk(folder)} - {MANIFEST}
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not isinstance(files, dict) or present != set(files):
            return False
        for name, facts in files.items():
            path = folder / name
            if "link" in facts:
                if not path.is_symlink() or str(path.readlink()) != facts["link"]:
                    return False
                continue
            if not self._checker.matches(path, facts["size"], facts["sha256"]):
                return False
            if bool(path.stat().st_mode & stat.S_IXUSR) != facts["executable"]:
                return False
        try:
            os.utime(folder)
        except OSError:
            # A cache that cannot be written is still good to read from; only the time of last use is lost.
            pass
        return True


def _walk(folder: Path) -> Iterator[Path]:
    """Return all files and links below ``folder``, sorted."""
    for parent, folders, files in os.walk(folder):
        for name in sorted(files) + [name for name in sorted(folders) if (Path(parent) / name).is_symlink()]:
            yield Path(parent) / name
        folders.sort()


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _manifest(folder: Path) -> dict[str, dict[str, object]]:
    files: dict[str, dict[str, object]] = {}
    for path in _walk(folder):
        if path.is_symlink():
            files[_relative(path, folder)] = {"link": str(path.readlink())}
        else:
            status = path.stat()
            files[_relative(path, folder)] = {
                "size": status.st_size,
                "sha256": sha256_file(path),
                "executable": bool(status.st_mode & stat.S_IXUSR),
            }
    return files


def _plain(inputs: Mapping[str, object]) -> dict[str, object]:
    return {key: canonical(value) for key, value in sorted(inputs.items())}


def canonical(value: object) -> object:
    """``value`` as plain JSON in which every path stands for content. Raises TypeError for what a build cannot depend
    on, BuildError for a file that cannot be read."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Path):
        return _content(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    raise TypeError(f"a build's input cannot be a {type(value).__name__}")


def _content(path: Path) -> object:
    if path.is_dir():
        inside = {name: facts for name, facts in _manifest(path).items() if "__pycache__" not in name}
        return {"folder": hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()}
    try:
        return {"file": sha256_file(path)}
    except OSError as error:
        raise BuildError(f"an input of the build cannot be read: {error.strerror}", where=str(path)) from error

# SPDX-License-Identifier: GPL-2.0-or-later
"""A source tree of the user's own, read as it is: uncommitted changes included, and never written to.

A tree is taken into memory once (some 40 MB), patched there, and copied from there by content: a file that has not
changed keeps its time in the copy, so that `make` builds again only what did.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from framework.common.errors import InfrastructureError, UsageError
from framework.common.paths import atomic_write_text

_ATTEMPTS = 3
_MANIFEST = ".medcheck-copied"
_LARGEST = 64 << 20
"""Bytes of one file; the largest of Xen has 1.3 MB."""


@dataclass(frozen=True)
class TreeKind:
    """The project that a tree should be of: its name, the ``option`` that names a tree (``--xen-tree``), files that
    every tree of it has (``must_have``), and the paths of what a build leaves in one (``products``)."""

    project: str
    option: str
    must_have: tuple[str, ...]
    products: re.Pattern[str]

    def refuse(self, folder: Path, rev: str | None, why: str) -> UsageError:
        """The error for a folder that is no such tree."""
        where = f"{folder}" if rev is None else f"{folder} at {rev}"
        tops = sorted({f"`{name.split('/')[0]}`" for name in self.must_have})
        hint = f"give the top folder of a tree of {self.project}: the one with {' and '.join(tops)} in it"
        if (folder.parent / self.must_have[0]).is_file():
            hint = f"give its parent, {folder.parent}"
        return UsageError(f"{self.option}: {where} is no {self.project} source tree ({why})", hint=hint)


class File(NamedTuple):
    """One file of a tree; the data of a ``link`` is where it points to."""

    data: bytes
    executable: bool = False
    link: bool = False

    @property
    def digest(self) -> str:
        """What the file is, in one text."""
        kind = "l" if self.link else "x" if self.executable else "f"
        return kind + hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class SourceTree:
    """The files of one tree by path; ``where`` is the user's folder and ``label`` what git calls the state of it."""

    where: Path
    files: Mapping[str, File]
    label: str

    def only(self, wanted: Callable[[str], bool]) -> Self:
        """The tree with those files only whose path is ``wanted``."""
        return replace(self, files={name: file for name, file in self.files.items() if wanted(name)})

    def digest(self) -> str:
        """One hash over all names and contents."""
        total = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            total.update(f"{name}\0{file.digest}\0".encode())
        return total.hexdigest()

    def copy_to(self, folder: Path) -> None:
        """Make ``folder`` hold these files; those that have their content already are left alone, and so is what else
        a build made there. Files of an earlier copy that are no more are removed."""
        memory = folder / _MANIFEST
        known: dict[str, list[object]] = {}
        if memory.exists():
            known = json.loads(memory.read_text())
        new: dict[str, list[object]] = {}
        for name in known.keys() - self.files.keys():
            (folder / name).unlink(missing_ok=True)
        for name, file in self.files.items():
            target = folder / name
            digest = file.digest
            if name in known and known[name] == [digest, *_stamp(target)]:
                new[name] = known[name]
                continue
            _write(target, file)
            new[name] = [digest, *_stamp(target)]
        atomic_write_text(memory, json.dumps(new))


def read_files(
    kind: TreeKind, folder: Path, rev: str | None = None, say: Callable[[str], None] = lambda _text: None
) -> tuple[dict[str, File], str]:
    """Read a tree's files, and its label: what git knows of and does not ignore there, as it is on the disk; or the
    commit ``rev``. Without git the whole folder counts, without products of a build.

    :raises UsageError: the folder is no such tree, has no such commit, or a file is none that can be read.
    :raises InfrastructureError: files change all the time while they are read.
    """
    files, label = _commit(kind, folder, rev) if rev is not None else _working_tree(kind, folder, say)
    if missing := [name for name in kind.must_have if name not in files]:
        raise kind.refuse(folder, rev, f"no {missing[0]}")
    return files, label


def _working_tree(kind: TreeKind, folder: Path, say: Callable[[str], None]) -> tuple[dict[str, File], str]:
    label = _label(folder)
    for _ in range(_ATTEMPTS):
        files, stamps = _read(kind, folder)
        changed = [name for name, before in stamps.items() if _stamp(folder / name) != before]
        if not changed:
            return files, label
        say(f"{folder / changed[0]} changed while the tree was copied; it is copied again")
    raise InfrastructureError(
        f"the tree keeps changing while it is copied, last {changed[0]}",
        where=str(folder),
        hint="wait until what writes into it has ended (a build, a checkout), then run the same command",
    )


def _read(kind: TreeKind, folder: Path) -> tuple[dict[str, File], dict[str, list[int]]]:
    """The files of a tree on the disk, and what told their state before they were read."""
    files: dict[str, File] = {}
    stamps: dict[str, list[int]] = {}
    for name in sorted(_names(kind, folder)):
        path = folder / name
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            stamps[name] = _stamp(path)
            if stat.S_ISLNK(mode):
                files[name] = File(os.fsencode(path.readlink()), link=True)
            elif not stat.S_ISREG(mode) or path.lstat().st_size > _LARGEST:
                raise UsageError(f"{kind.option}: {path} is no source file", hint="remove it, or have git ignore it")
            else:
                files[name] = File(path.read_bytes(), bool(mode & stat.S_IXUSR))
        except FileNotFoundError:
            # Tracked, and deleted in the tree: so it is deleted in the copy.
            stamps.pop(name, None)
        except OSError as error:
            raise UsageError(f"{kind.option}: {path} cannot be read: {error.strerror}") from error
    return files, stamps


def _names(kind: TreeKind, folder: Path, *, inner: bool = False) -> Iterator[str]:
    """The paths of the source files of a tree, or of a submodule (``inner``) of one: as git sees it where there is
    git."""
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None or not (inner or kind.must_have[0].encode() in listed.split(b"\0")):
        # No repository, or one that ignores the tree as a whole.
        yield from _names_without_git(kind, folder)
        return
    modules = _git(folder, "ls-files", "-z", "--stage") or b""
    submodules = {line.split(b"\t", 1)[1] for line in modules.split(b"\0") if line.startswith(b"160000 ")}
    for raw in dict.fromkeys(listed.split(b"\0")):
        name = os.fsdecode(raw)
        if raw in submodules:
            if (folder / name / ".git").exists():
                yield from (f"{name}/{below}" for below in _names(kind, folder / name, inner=True))
        elif name:
            yield name


def _names_without_git(kind: TreeKind, folder: Path) -> Iterator[str]:
    """All files but products of a build. A ``.gitignore`` would not do: a source package ignores what it brings."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (".git", "__pycache__", "autom4te.cache"))
        for name in names:
            path = Path(parent, name).relative_to(folder).as_posix()
            if not kind.products.search(path):
                yield path


def commit_of(folder: Path, rev: str, option: str) -> str:
    """The hash of a commit that ``option`` names.

    :raises UsageError: the repository has no such commit.
    """
    commit = None if rev.startswith("-") else _git(folder, "rev-parse", "--verify", "-q", f"{rev}^{{commit}}")
    if commit is None:
        raise UsageError(f"{option}: {folder} has no commit {rev}", hint="`git fetch` it there, or correct its name")
    return commit.decode().strip()


def _commit(kind: TreeKind, folder: Path, rev: str) -> tuple[dict[str, File], str]:
    """The files of one commit, and its name."""
    option = kind.option.replace("-tree", "-rev")
    name = commit_of(folder, rev, option)
    top = (_git(folder, "rev-parse", "--show-prefix") or b"").decode().strip()
    packed = _git(folder, "archive", "--format=tar", f"{name}:{top}" if top else name)
    if packed is None:
        raise UsageError(f"{option}: git cannot read commit {rev} of {folder}")
    files: dict[str, File] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            if member.issym():
                files[member.name] = File(os.fsencode(member.linkname), link=True)
            elif member.isreg():
                content = tar.extractfile(member)
                assert content is not None, "a regular member has content"
                files[member.name] = File(content.read(), bool(member.mode & stat.S_IXUSR))
    described = _git(folder, "describe", "--always", "--tags", "--abbrev=12", name)
    return files, (described or name[:12].encode()).decode().strip()


def _label(folder: Path) -> str:
    described = _git(folder, "describe", "--always", "--tags", "--abbrev=12")
    # `describe --dirty` would write the index, whatever it is told.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if described is None or changes is None:
        return "no git"
    return described.decode().strip() + (", changed" if changes else "")


def _git(folder: Path, *words: str) -> bytes | None:
    """What git says; None where it refuses or is not there. It writes nothing; filters that the tree's own git
    configuration names may run, as its Makefiles do later."""
    settings = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false"]
    command = ["git", "-C", str(folder), *settings, *words]
    try:
        done = subprocess.run(command, capture_output=True, env=_environment(), check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


def _stamp(path: Path) -> list[int]:
    """What changes when a file does; empty for one that is not there."""
    try:
        seen = path.lstat()
    except OSError:
        return []
    return [seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]


def _write(target: Path, file: File) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.link:
        target.symlink_to(os.fsdecode(file.data))
        return
    target.write_bytes(file.data)
    target.chmod(0o755 if file.executable else 0o644)

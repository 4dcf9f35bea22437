# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations of bundled images and the cache, and atomic file writes."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from framework.common.errors import UsageError

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the package ``framework``."""

ROOT = PACKAGE.parent
"""The checkout, or the folder that the wheel was installed into."""

INSTALLED = (PACKAGE / "images").is_dir()
"""Whether this is an installed wheel, which has images and suite inside its package, and no tests of the project's own.

In a checkout (and an editable installation of it) they lie beside the package.
"""

IMAGES = (PACKAGE if INSTALLED else ROOT) / "images"
"""The project's own inputs: lock file, board descriptions, recipes, configuration, patches."""

SUITE = PACKAGE / "suite" if INSTALLED else ROOT / "testcases" / "suite"
"""The conformance suite: pytest files, run with the configuration ``suite.ini`` beside them."""


CACHE_FOLDERS = (
    "blobs", "boards", "builds", "fuzz", "hashes", "kept", "locks", "logs", "mutants", "partial", "pool", "reports",
    "slots", "snapshots", "ssh", "templates",
)  # fmt: skip
"""Entries of a cache, by their present and their former names; others in a cache are not medcheck's."""

_DOWNLOADS = "blobs"

CACHE_MARK = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"
_MARK = f"""\
{_SIGNATURE}# This folder is a cache made by medcheck; `medcheck clean --all` removes it.
# Programs that make backups leave folders with such a file out.
"""


def cache_root() -> Path:
    """The folder that holds downloads, builds, images and snapshots.

    ``MEDCHECK_CACHE`` wins, then ``XDG_CACHE_HOME/medcheck``, then ``~/.cache/medcheck``. It is made, and marked as a
    cache of medcheck, unless that cannot be done here; then what writes into it says why.

    :raises UsageError: there is no such home; or what is there belongs to another user, can be written by others
        (programs that run here come from it), or is not a cache but holds other files.
    """
    explicit = os.environ.get("MEDCHECK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if explicit:
            root = Path(explicit).expanduser().absolute()
        else:
            root = (Path(base).absolute() if base else Path.home() / ".cache") / "medcheck"
    except RuntimeError as error:
        raise UsageError(
            f"the cache's folder cannot be found: {error}", where=explicit, hint="set MEDCHECK_CACHE to a folder"
        ) from error
    with contextlib.suppress(OSError):
        _make_folder(root)
    if root.is_dir():
        _refuse_others(root)
        if not is_marked(root):
            _mark(root)
    return root


def is_marked(root: Path) -> bool:
    """Whether a folder carries the mark of a cache that medcheck made."""
    try:
        with (root / CACHE_MARK).open("rb") as stream:
            head = stream.read(1024)
    except OSError:
        return False
    return head.startswith(_SIGNATURE.encode()) and b"made by medcheck" in head


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it. Others never write there, whatever the umask says."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(mode=0o755, exist_ok=True)


def _refuse_others(root: Path) -> None:
    """A cache holds programs that run as the user, so it must be the user's own (or the superuser's)."""
    folder = root.resolve()
    for above in folder.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UsageError(
                f"every user of this machine can replace the cache, for {above} is writable for all",
                where=str(root),
                hint=f"set MEDCHECK_CACHE to a folder elsewhere, or chmod o-w {above}",
            )
    for path in (folder, *(folder / name for name in CACHE_FOLDERS)):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if found.st_uid not in (os.geteuid(), 0):
            raise UsageError(
                f"the cache belongs to {_user_name(found.st_uid)}, and its owner decides what runs here as "
                f"{_user_name(os.geteuid())}",
                where=str(path),
                hint="set MEDCHECK_CACHE to a folder of your own, or give this one to yourself with chown -R",
            )
        group = stat.S_IWGRP if not _is_private(found.st_gid) else 0
        if found.st_mode & (stat.S_IWOTH | group):
            raise UsageError(
                "the cache can be written by other users, and programs run from it",
                where=str(path),
                hint=f"chmod -R go-w {root} if you trust what is in it, or name another in MEDCHECK_CACHE",
            )


def _is_private(gid: int) -> bool:
    """Whether a group is one user's own, as many systems make one for each, with a umask that lets it write."""
    try:
        group = grp.getgrgid(gid)
        return {group.gr_name, *group.gr_mem} == {pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        return False


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _mark(root: Path) -> None:
    """Mark a folder that is empty or holds only what a cache holds, downloads among it.

    :raises UsageError: it holds other things.
    """
    temporary = f".{CACHE_MARK}."
    try:
        there = sorted(
            path.name for path in root.iterdir() if path.name != "lost+found" and not path.name.startswith(temporary)
        )
    except OSError:
        return
    # "reports", "logs", "builds" may be anybody's; every cache that lost its mark has downloads.
    foreign = [name for name in there if name not in CACHE_FOLDERS or _DOWNLOADS not in there]
    # Another process may have made the mark meanwhile.
    if foreign and not is_marked(root):
        others = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise UsageError(
            f"this folder holds other files ({others}), and a cache is removed as a whole one day",
            where=str(root),
            hint=f"set MEDCHECK_CACHE to a folder for medcheck alone, such as {root / 'medcheck'}",
        )
    with contextlib.suppress(OSError):
        atomic_write_text(root / CACHE_MARK, _MARK)


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing bytes; rename it to ``path`` only if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write ``text`` as UTF-8 to ``path``, all of it or nothing."""
    with atomic_write(path, mode) as stream:
        stream.write(text.encode())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes the remains of killed runs, and frees disk space."""

from __future__ import annotations

import shutil
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.board.janitor import Janitor
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import CACHE_FOLDERS, CACHE_MARK, cache_root, is_marked
from framework.common.terminal import Output
from framework.snapshot.store import SnapshotStore


def clean(everything: bool, keep_bytes: int, output: Output) -> int:
    """End orphaned boards, remove their files, prune snapshots to their bound and builds to ``keep_bytes``; with
    ``everything`` all that medcheck has in the cache. What this user's caches that are gone left on tmpfs goes as well.

    Raises UsageError if boards still run from a cache that is to go.
    """
    root = cache_root()
    janitor = Janitor()
    swept = janitor.sweep()
    if everything and (running := janitor.boards()):
        raise UsageError(f"{len(running)} boards of this cache are running", hint="end their owners first")
    # What snapshots have on tmpfs lies outside the cache folder and goes with them.
    snapshots = SnapshotStore(root)
    left = snapshots.reclaim()
    removed = snapshots.prune(0 if everything else None)
    if everything:
        removed = ["the whole cache"]
        if others := _remove_cache(root):
            output.say(f"left in {root}, for medcheck did not put it there: {', '.join(others)}")
        left += snapshots.reclaim()
    else:
        removed += [str(entry) for entry in BuildCache(root).prune(keep_bytes)]
    removed += map(str, left)
    output.finish(
        {"orphans": [str(item) for item in swept], "removed": removed},
        f"{len(swept)} orphans ended or removed; removed from the cache: {', '.join(removed) or 'nothing'}",
    )
    return ExitCode.GOOD


def _remove_cache(root: Path) -> list[str]:
    """Remove what medcheck keeps in its cache, and the folder unless something else is in it; return what that is."""
    if not root.is_dir():
        return []
    if not is_marked(root):
        raise UsageError(f"the folder has no {CACHE_MARK} of medcheck, so it is not removed", where=str(root))
    for folder in (root / name for name in CACHE_FOLDERS):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    others = sorted(path.name for path in root.iterdir() if path.name != CACHE_MARK)
    if not others:
        # Last of all: what is left of a removal that was cut short is still known to be a cache.
        (root / CACHE_MARK).unlink()
        root.rmdir()
    return others

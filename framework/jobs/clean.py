"""Ends what a killed run may have left behind, and frees disk space."""

from __future__ import annotations

import shutil

from framework.artifacts.cache import BuildCache
from framework.board.janitor import Janitor
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import cache_root
from framework.common.terminal import Output
from framework.snapshot.store import SnapshotStore


def clean(everything: bool, keep_bytes: int, output: Output) -> int:
    """End orphaned boards, remove their files, prune snapshots to their bound and builds to ``keep_bytes``; with
    ``everything`` the whole cache. What this user's caches that are gone left on tmpfs goes as well.

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
        if root.exists():
            shutil.rmtree(root)
        removed = ["the whole cache"]
        left += snapshots.reclaim()
    else:
        removed += [str(entry) for entry in BuildCache(root).prune(keep_bytes)]
    removed += map(str, left)
    output.finish(
        {"orphans": [str(item) for item in swept], "removed": removed},
        f"{len(swept)} orphans ended or removed; removed from the cache: {', '.join(removed) or 'nothing'}",
    )
    return ExitCode.GOOD

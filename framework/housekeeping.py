"""Ends what a killed run may have left behind, and frees disk space."""

from __future__ import annotations

import shutil

from framework.artifacts.cache import BuildCache
from framework.board.janitor import Janitor
from framework.console_ui import Output
from framework.errors import ExitCode
from framework.paths import cache_root


def clean(everything: bool, keep_bytes: int, output: Output) -> int:
    """End orphaned boards, remove their files, prune builds to ``keep_bytes``; with ``everything`` the whole cache."""
    root = cache_root()
    swept = Janitor().sweep()
    if everything:
        shutil.rmtree(root, ignore_errors=False) if root.exists() else None
        removed = ["the whole cache"]
    else:
        removed = [str(entry) for entry in BuildCache(root).prune(keep_bytes)]
    output.finish(
        {"orphans": [str(item) for item in swept], "removed": removed},
        f"{len(swept)} orphans ended or removed; removed from the cache: {', '.join(removed) or 'nothing'}",
    )
    return ExitCode.GOOD

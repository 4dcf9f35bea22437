# SPDX-License-Identifier: GPL-2.0-or-later
"""The place where the trees of one project are built again and again: only what an edit has changed is compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from framework.artifacts.make import CompileError
from framework.artifacts.source_tree import SourceTree
from framework.common.errors import BuildError
from framework.common.progress import Progress

_UNFINISHED = "unfinished"


def build_again(
    workspace: Path, title: str, source: SourceTree, make: Callable[[Path], None], progress: Progress
) -> None:
    """Copy what has changed of ``source`` into the workspace, and let ``make`` build in the copy, whose folder it gets.

    A build that was killed, or dependencies of an older state that no longer fit, cost one build from the beginning.

    :raises CompileError: the compiler refuses the source. :raises BuildError: it fails even from the beginning.
    """
    marker, tree = workspace / _UNFINISHED, workspace / "tree"
    if marker.exists():
        # A build that was killed may have left half of an object file.
        shutil.rmtree(tree, ignore_errors=True)
    fresh = not tree.exists()
    marker.touch()

    def attempt() -> None:
        tree.mkdir(exist_ok=True)
        source.copy_to(tree)
        make(tree)

    try:
        try:
            attempt()
        except CompileError:
            raise
        except BuildError:
            if fresh:
                raise
            # Such as a header that is no more, which the dependencies of the last build still name.
            progress.say(f"{title}: the last build is of no use for this one; from the beginning")
            shutil.rmtree(tree)
            attempt()
    except BuildError:
        # make ended by itself: what it left is whole.
        marker.unlink()
        raise
    marker.unlink()

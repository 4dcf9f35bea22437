# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a folder, for tests that nothing of it is written."""

from __future__ import annotations

from pathlib import Path


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that would differ if something had been written, git's own files included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (seen.st_mode, seen.st_mtime_ns, content)
    return found

# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths inside a guest's tree, which is a folder of this machine: no name and no link leads out of that folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_MOST_LINKS = 40
"""Links followed on the way to one file, as many as Linux follows."""


def resolve(root: Path, path: str | PurePosixPath) -> Path | None:
    """Return where ``path`` leads below ``root``, component by component as chroot(2) would have it.

    An absolute link means the guest's root and ``..`` at the root stays there. None: a loop of links. The result may
    name nothing at all; no component of it is a link.
    """
    left = list(reversed(PurePosixPath(path).parts))
    done: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part.startswith("/"):
            done = []
        elif part == "..":
            done = done[:-1]
        elif (candidate := root.joinpath(*done, part)).is_symlink():
            links += 1
            if links > _MOST_LINKS:
                return None
            left += reversed(PurePosixPath(candidate.readlink()).parts)
        else:
            done.append(part)
    return root.joinpath(*done)


def climbs_out(root: Path, path: str | PurePosixPath) -> bool:
    """Whether a relative ``path`` below ``root``, with the links that are there now, climbs above ``root``.

    An absolute link ends the walk: it names the root that the tree will have.
    """
    left = list(reversed(PurePosixPath(path).parts))
    done: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part.startswith("/") or links > _MOST_LINKS:
            return False
        if part == "..":
            if not done:
                return True
            done.pop()
        elif (candidate := root.joinpath(*done, part)).is_symlink():
            links += 1
            left += reversed(PurePosixPath(candidate.readlink()).parts)
        else:
            done.append(part)
    return False


def is_plain(path: str) -> bool:
    """Whether ``path`` is relative and every component of it is a name: neither empty, ``.`` nor ``..``."""
    return all(part not in ("", ".", "..") and "\0" not in part for part in path.split("/"))

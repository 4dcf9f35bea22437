# SPDX-License-Identifier: GPL-2.0-or-later
"""The pinned sources as trees that lie on the disk, as a user's would."""

from __future__ import annotations

from pathlib import Path

from framework.artifacts.firmware import Builder
from framework.artifacts.unpack import unpack_source


def pinned_tree(builder: Builder, group: str) -> Path:
    """The unpacked source that a group of the lock file names, its package's patches applied; in the cache."""
    pins = builder.lock.group(group)

    def build(out: Path) -> None:
        paths = builder.store.fetch(pins)
        orig, debian = (
            next(paths[pin.name] for pin in pins if mark in pin.path) for mark in (".orig.tar", ".debian.tar")
        )
        unpack_source(orig, debian, out / "source")

    inputs = {"pins": [pin.sha256 for pin in pins], "recipe": Path(__file__).with_name("unpack.py")}
    return builder.cache.get(group, inputs, build) / "source"

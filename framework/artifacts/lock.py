# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock file: every file that is ever downloaded, by pool path, version, size and SHA-256."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from framework.common.errors import ArtifactError, UsageError
from framework.common.paths import IMAGES, atomic_write_text
from framework.common.yaml_source import Source

FORMAT = "1"
"""Version of the lock file's layout."""

_HINT = "correct the line, or write the file anew with `medcheck lock --update`"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"[1-9][0-9]{0,11}")
_HEADER = """\
# Every file medcheck downloads. Made by `medcheck lock --update` from packages.yaml and an archive's indexes.
# `path` counts from an archive's base URL, which the machine's apt configuration or the user supplies. A pin
# may have `sources:`, a list of folders (relative to this file) or full URLs where that file is found too.
"""


@dataclass(frozen=True)
class Pin:
    """One file: its ``path`` below an archive's base URL, ``size`` in bytes, and hash.

    ``sources`` are further places for this file only: folders or full URLs.
    """

    name: str
    path: str
    version: str
    size: int
    sha256: str
    sources: tuple[str, ...] = ()

    @property
    def filename(self) -> str:
        """The last part of ``path``."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Lock:
    """A lock file that was read and checked. Pin names are unique over all groups."""

    groups: Mapping[str, tuple[Pin, ...]]
    path: Path = field(default=IMAGES / "artifacts.lock.yaml", compare=False)

    @classmethod
    def load(cls, path: Path = IMAGES / "artifacts.lock.yaml", *, resolve_sources: bool = True) -> Lock:
        """Read a lock file; with ``resolve_sources`` folders become absolute ones.

        :raises ConfigError: with ``file:line``, whatever is wrong with it.
        """
        source = Source(path, _HINT)
        top = source.record(source.root(), "the lock file", ("format", "groups"))
        if (given := source.text(top["format"], "format")) != FORMAT:
            raise source.error(top["format"], f"format {given} is not known; this medcheck reads format {FORMAT}")
        groups: dict[str, tuple[Pin, ...]] = {}
        seen: set[str] = set()
        for group, members in source.mapping(top["groups"], "groups").items():
            pins = []
            for name, node in source.mapping(members, f"group {group}").items():
                if name in seen:
                    raise source.error(node, f"{name} is pinned in two groups; names are unique over the whole file")
                seen.add(name)
                pins.append(_pin(source, name, node, resolve_sources))
            groups[group] = tuple(pins)
        return cls(groups, path)

    @property
    def pins(self) -> dict[str, Pin]:
        """Return all pins by name."""
        return {pin.name: pin for group in self.groups.values() for pin in group}

    def group(self, name: str) -> tuple[Pin, ...]:
        """The pins of one group, in the file's order."""
        try:
            return self.groups[name]
        except KeyError:
            known = ", ".join(self.groups)
            raise UsageError(
                f"no group {name} in the lock file", where=str(self.path), hint=f"it has {known}"
            ) from None

    def save(self) -> None:
        """Write the lock file, all of it or nothing."""
        body = {
            "format": int(FORMAT),
            "groups": {group: {pin.name: _plain(pin) for pin in pins} for group, pins in self.groups.items()},
        }
        text = yaml.safe_dump(body, sort_keys=False, width=200, default_flow_style=False)
        atomic_write_text(self.path, _HEADER + text)


def names(groups: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], str]:
    """Unique pin names: the package's own, or ``group/package`` where several groups have that package."""
    count: dict[str, int] = {}
    members = {group: tuple(packages) for group, packages in groups.items()}
    for packages in members.values():
        for package in packages:
            count[package] = count.get(package, 0) + 1
    return {
        (group, package): package if count[package] == 1 else f"{group}/{package}"
        for group, packages in members.items()
        for package in packages
    }


def check_pin(pin: Pin, where: str) -> None:
    """Refuse what an archive's index says of a file if no lock file could hold it.

    :raises ArtifactError: the path leaves the archive, or size or hash are none.
    """
    if not (_is_inside(pin.path) and _SIZE.fullmatch(str(pin.size)) and _SHA256.fullmatch(pin.sha256)):
        raise ArtifactError(
            f"the index has a malformed entry for {pin.name}: {pin.path}, {pin.size} bytes, {pin.sha256}",
            where=where, hint="use another mirror",
        )  # fmt: skip


def _is_inside(path: str) -> bool:
    """Whether ``path`` counts from an archive's base and stays below it."""
    return not ("://" in path or path.startswith("/") or ".." in PurePosixPath(path).parts)


def _plain(pin: Pin) -> dict[str, object]:
    entry: dict[str, object] = {
        "path": pin.path,
        "version": pin.version,
        "size": pin.size,
        "sha256": pin.sha256,
    }
    if pin.sources:
        entry["sources"] = list(pin.sources)
    return entry


def _pin(source: Source, name: str, node: yaml.Node, resolve_sources: bool) -> Pin:
    entry = source.record(node, name, ("path", "version", "size", "sha256"), ("sources",))
    path = source.text(entry["path"], f"{name}: path")
    if not _is_inside(path):
        raise source.error(entry["path"], f"{name}: path must count from an archive's base URL, like pool/main/…")
    size = source.text(entry["size"], f"{name}: size")
    if not _SIZE.fullmatch(size):
        raise source.error(entry["size"], f"{name}: size must be a number of bytes, not {size[:40]}")
    sha256 = source.text(entry["sha256"], f"{name}: sha256")
    if not _SHA256.fullmatch(sha256):
        raise source.error(entry["sha256"], f"{name}: sha256 must be 64 lower-case hexadecimal digits")
    sources: list[str] = []
    if "sources" in entry:
        for item in source.items(entry["sources"], f"{name}: sources"):
            text = source.text(item, f"{name}: a source")
            is_folder = "://" not in text and not text.startswith("file:")
            sources.append(str((source.path.parent / text).resolve()) if is_folder and resolve_sources else text)
    version = source.text(entry["version"], f"{name}: version")
    return Pin(name, path, version, int(size), sha256, tuple(sources))

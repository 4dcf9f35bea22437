# SPDX-License-Identifier: GPL-2.0-or-later
"""Root file systems of dom0 and domUs, assembled from unpacked packages and the project's own files.

No root, no chroot and no foreign binary is needed: programs come with the closure of their DT_NEEDED libraries,
kernel modules with the closure of their dependencies, and everything else is left out, because every byte is
copied under emulation several times before a guest runs.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from framework.artifacts import cpio, elf
from framework.artifacts.guest_path import is_plain, resolve
from framework.artifacts.kernel_modules import ModuleError, Modules
from framework.common.errors import ArtifactError, InfrastructureError, MedcheckError, UsageError
from framework.common.yaml_source import Source

_LIBRARY_FOLDERS = ("usr/lib/aarch64-linux-gnu", "usr/lib")
_MERGED = ("lib", "bin", "sbin")
_MOST = 512 << 20
"""Bytes of one file: the guests have less memory than that."""


@dataclass(frozen=True)
class Recipe:
    """Contents of one root file system; see ``images/rootfs/*.yaml`` for the meaning of each key."""

    name: str
    groups: tuple[str, ...]
    programs: tuple[str, ...] = ()
    library_folders: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    applets: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe; unknown or missing keys are a :class:`ConfigError`."""
        source = Source(path, "see the fields of Recipe in framework/artifacts/rootfs.py")
        required = tuple(f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)
        optional = tuple(f.name for f in fields(cls) if f.name not in required)
        top = source.record(source.root(), "the recipe", required, optional)
        values: dict[str, Any] = {}
        for name, node in top.items():
            if name == "name":
                values[name] = source.text(node, name)
            elif name == "links":
                pairs = source.mapping(node, name).items()
                values[name] = {link: source.text(target, f"links: {link}") for link, target in pairs}
            else:
                values[name] = tuple(source.text(item, f"an entry of {name}") for item in source.items(node, name))
        return cls(**values)


class RootFs:
    """A root file system in the making: paths (without leading slash, /usr merged) to entries.

    What is in the folders of packages may be foreign: no name and no link in them brings in a file from outside of
    the folder, and what is damaged or not for arm64 is refused.
    """

    def __init__(
        self,
        packages: Sequence[Path],
        library_folders: Sequence[str] = (),
        given: Mapping[Path, str] | None = None,
    ) -> None:
        """``packages`` are folders with unpacked packages; an earlier one wins over a later one. ``given`` are those
        among them that the user brought, with the option that named each."""
        self._packages = packages
        self._library_folders = (*library_folders, *_LIBRARY_FOLDERS)
        self._given = given or {}
        self.entries: dict[str, cpio.Entry] = {name: cpio.symlink(f"usr/{name}") for name in _MERGED}

    def find(self, path: str) -> Path:
        """The file of the packages that a path inside the guest names, whether or not /usr is merged there."""
        for root in self._packages:
            for spelling in _spellings(path):
                candidate = resolve(root, spelling)
                if candidate is not None and candidate.is_file():
                    return candidate
        raise InfrastructureError(
            f"no unpacked package holds {path}", where=", ".join(p.name for p in self._packages),
            hint="add the package that holds it to images/packages.yaml, or correct the recipe",
        )  # fmt: skip

    def add_file(self, path: str, destination: str | None = None) -> None:
        """Copy one file out of the packages, following links; ELF files bring their libraries.

        :raises UsageError, ArtifactError: it cannot be used; the former if it is in a folder that the user brought.
        """
        self._add([(path, _merged(destination or path), None)])

    def _add(self, left: list[tuple[str, str | None, Path | None]]) -> None:
        """Copy files and all they need: path, destination (None: the path is a library's name), and what needs it."""
        while left:
            path, target, needs_it = left.pop()
            # Where a library goes is known only when all before it are there: the loader is one, too.
            if target is None:
                if (place := self._library(path)) is None:
                    continue
                path, target = place
            if target in self.entries:
                continue
            try:
                source = self.find(path)
            except InfrastructureError as error:
                if needs_it is None:
                    raise
                raise self._refused(needs_it, f"it needs {path}, which no folder of the guest's files has") from error
            if source.stat().st_size > _MOST:
                raise self._refused(source, f"larger than {_MOST >> 20} MiB")
            data = source.read_bytes()
            executable = source.stat().st_mode & stat.S_IXUSR
            self.entries[target] = cpio.regular(data, 0o755 if executable else 0o644)
            if elf.is_elf(data):
                try:
                    needed = elf.Elf(data).needed()
                    for name in needed:
                        _check_library(name)
                except ValueError as error:
                    raise self._refused(source, str(error)) from error
                left += [(name, None, source) for name in reversed(needed)]

    def add_library(self, name: str) -> None:
        """Copy a library by its DT_NEEDED name (or the interpreter by its path) with all it needs."""
        self._add([(name, None, None)])

    def _library(self, name: str) -> tuple[str, str] | None:
        """Return where a library is and where it goes; None if it was added before."""
        if name.startswith("/"):
            return name, _merged(name)
        if f"usr/lib/{name}" in self.entries:
            return None  # the loader itself, which the C library names as a library too
        for folder in self._library_folders:
            try:
                self.find(f"{folder}/{name}")
            except InfrastructureError:
                continue
            # One folder that the loader searches by default: no ld.so.cache is needed.
            return f"{folder}/{name}", f"usr/lib/aarch64-linux-gnu/{name}"
        return f"{_LIBRARY_FOLDERS[0]}/{name}", f"usr/lib/aarch64-linux-gnu/{name}"

    def add_glob(self, pattern: str) -> None:
        """Copy the files that match ``pattern`` (its last component may hold wildcards) out of the first package
        folder that has any; none is an error."""
        folder, _, names = pattern.rpartition("/")
        for root in self._packages:
            for spelling in _spellings(folder):
                inside = resolve(root, spelling)
                found = [] if inside is None or not inside.is_dir() else sorted(inside.glob(names))
                files = [path.name for path in found if self._is_file(root, inside, path.name)]
                for name in files:
                    self.add_file(f"{folder}/{name}")
                if files:
                    return
        self.find(pattern)

    @staticmethod
    def _is_file(root: Path, folder: Path | None, name: str) -> bool:
        target = None if folder is None else resolve(root, (folder / name).relative_to(root).as_posix())
        return target is not None and target.is_file()

    def add_modules(self, names: Iterable[str], extra_folders: Sequence[Path] = ()) -> None:
        """Copy kernel modules with their dependencies, decompressed, and list them in loading order.

        The list is ``/lib/modules/load``: one path a line, as the guest's init passes them to ``insmod``.
        """
        order: list[str] = []
        modules = Modules.of([*self._packages, *extra_folders])
        if "--kernel-modules" not in self._given.values():
            modules.complete = True
        try:
            for module in modules.closure(names):
                order.append(module.name)
                self.entries[f"usr/lib/modules/{module.name}.ko"] = cpio.regular(module.data)
        except KeyError as error:
            raise InfrastructureError(
                f"the kernel's package has no module {error.args[0]}",
                hint="the module is built in or has another name; correct `modules` in images/rootfs/*.yaml",
            ) from error
        except ModuleError as error:
            raise self._refused(error.path, str(error)) from error
        listing = "".join(f"/usr/lib/modules/{name}.ko\n" for name in order)
        self.entries["usr/lib/modules/load"] = cpio.regular(listing.encode())

    def _refused(self, path: Path, why: str) -> MedcheckError:
        """The error about a file that cannot be used: the user's own, or of a package."""
        for folder, option in self._given.items():
            if path.is_relative_to(folder):
                return UsageError(f"{option}: {path} cannot be used: {why}", hint="build and install it anew for arm64")
        return ArtifactError(f"refused: {why}", where=str(path), hint="the pinned package is not what it should be")

    def add_overlay(self, folder: Path) -> None:
        """Copy the project's own files over everything else."""
        for source in sorted(folder.rglob("*")):
            if source.is_file():
                executable = source.stat().st_mode & stat.S_IXUSR
                path = _merged(str(source.relative_to(folder)))
                self.entries[path] = cpio.regular(source.read_bytes(), 0o755 if executable else 0o644)

    def add(self, path: str, entry: cpio.Entry) -> None:
        """Put one entry at ``path``."""
        self.entries[_merged(path)] = entry


def assemble(
    recipe: Recipe, packages: Sequence[Path], overlay: Path, given: Mapping[Path, str] | None = None
) -> RootFs:
    """Make the root file system of ``recipe`` out of unpacked ``packages`` and the project's ``overlay``; ``given``:
    see :class:`RootFs`."""
    root = RootFs(packages, recipe.library_folders, given)
    for program in recipe.programs:
        root.add_file(program)
    for library in recipe.libraries:
        root.add_library(library)
    for pattern in recipe.files:
        root.add_glob(pattern)
    for applet in recipe.applets:
        root.add(applet, cpio.symlink("/usr/bin/busybox"))
    for folder in recipe.folders:
        root.add(folder, cpio.directory())
    for path, target in recipe.links.items():
        root.add(path, cpio.symlink(target))
    root.add("dev/console", cpio.device("c", 5, 1))
    root.add("dev/null", cpio.device("c", 1, 3, 0o666))
    if recipe.modules:
        root.add_modules(recipe.modules)
    root.add_overlay(overlay)
    return root


def _merged(path: str) -> str:
    clean = str(PurePosixPath("/") / path).lstrip("/")
    first = clean.split("/", 1)[0]
    return f"usr/{clean}" if first in _MERGED and "/" in clean else clean


def _check_library(name: str) -> None:
    """Refuse what is no library's name, nor an interpreter's path: it comes out of a file, and could lead anywhere.

    :raises ValueError: it is none.
    """
    if not is_plain(name.removeprefix("/")) or ("/" in name and not name.startswith("/")):
        raise ValueError(f"it needs a library called {name!r}, which is no name of one")


def _spellings(path: str) -> tuple[str, ...]:
    """A path inside the guest, with /usr merged and, where that differs, without."""
    clean = _merged(path)
    return (clean, clean.removeprefix("usr/")) if clean.startswith("usr/") else (clean,)

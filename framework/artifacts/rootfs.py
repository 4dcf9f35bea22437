"""Root file systems of dom0 and domUs, assembled from unpacked packages and the project's own files.

No root, no chroot and no foreign binary is needed: programs come with the closure of their DT_NEEDED libraries,
kernel modules with the closure of their dependencies, and everything else is left out, because every byte is
copied under emulation several times before a guest runs.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from framework.artifacts import cpio, elf
from framework.common.errors import ConfigError, InfrastructureError

_LIBRARY_FOLDERS = ("usr/lib/aarch64-linux-gnu", "usr/lib")
_MERGED = ("lib", "bin", "sbin")


@dataclass(frozen=True)
class Recipe:
    """What goes into one root file system; see ``images/rootfs/*.yaml`` for the meaning of each key."""

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
        raw = yaml.safe_load(path.read_text())
        if not isinstance(raw, dict):
            raise ConfigError("a recipe is a mapping", where=f"{path}:1")
        try:
            lists = {k: tuple(v) for k, v in raw.items() if k not in ("name", "links")}
            return cls(name=raw["name"], links=raw.get("links", {}), **lists)
        except (TypeError, KeyError) as error:
            raise ConfigError(
                f"unknown or missing key: {error}", where=f"{path}:1", hint="see the fields of Recipe"
            ) from error


class RootFs:
    """A root file system in the making: paths (without leading slash, /usr merged) to entries."""

    def __init__(self, packages: Sequence[Path], library_folders: Sequence[str] = ()) -> None:
        """``packages`` are folders with unpacked packages; an earlier one wins over a later one."""
        self._packages = packages
        self._library_folders = (*library_folders, *_LIBRARY_FOLDERS)
        self.entries: dict[str, cpio.Entry] = {name: cpio.symlink(f"usr/{name}") for name in _MERGED}

    def find(self, path: str) -> Path:
        """The file of the packages that a path inside the guest names, whether or not /usr is merged there."""
        clean = _merged(path)
        spellings = [clean, clean.removeprefix("usr/")] if clean.startswith("usr/") else [clean]
        for root in self._packages:
            for spelling in spellings:
                candidate = _resolve(root, spelling)
                if candidate is not None:
                    return candidate
        raise InfrastructureError(
            f"no unpacked package holds {path}", where=", ".join(p.name for p in self._packages),
            hint="add the package that holds it to images/packages.yaml, or correct the recipe",
        )  # fmt: skip

    def add_file(self, path: str, destination: str | None = None) -> None:
        """Copy one file out of the packages, following links; ELF files bring their libraries."""
        target = _merged(destination or path)
        if target in self.entries:
            return
        source = self.find(path)
        data = source.read_bytes()
        executable = source.stat().st_mode & stat.S_IXUSR
        self.entries[target] = cpio.regular(data, 0o755 if executable else 0o644)
        if elf.is_elf(data):
            for name in elf.needed(data):
                self.add_library(name)

    def add_library(self, name: str) -> None:
        """Copy a library by its DT_NEEDED name (or the interpreter by its path) with all it needs."""
        if name.startswith("/"):
            self.add_file(name)
            return
        if f"usr/lib/{name}" in self.entries:
            return  # the loader itself, which the C library names as a library too
        for folder in self._library_folders:
            try:
                self.find(f"{folder}/{name}")
            except InfrastructureError:
                continue
            # One folder that the loader searches by default: no ld.so.cache is needed.
            self.add_file(f"{folder}/{name}", f"usr/lib/aarch64-linux-gnu/{name}")
            return
        self.find(f"{_LIBRARY_FOLDERS[0]}/{name}")

    def add_glob(self, pattern: str) -> None:
        """Copy the files that match ``pattern`` out of the first package folder that has any; none is an error."""
        for root in self._packages:
            files = [path for path in sorted(root.glob(pattern.lstrip("/"))) if path.is_file()]
            for source in files:
                self.add_file(str(source.relative_to(root)))
            if files:
                return
        self.find(pattern)

    def add_modules(self, names: Iterable[str], extra_folders: Sequence[Path] = ()) -> None:
        """Copy kernel modules with their dependencies, decompressed, and list them in loading order.

        The list is ``/lib/modules/load``: one path a line, as the guest's init feeds them to ``insmod``.
        """
        index: dict[str, Path] = {}
        for root in (*self._packages, *extra_folders):
            for path in root.rglob("*.ko*"):
                index.setdefault(_module_name(path), path)
        order: list[str] = []
        for name in names:
            self._add_module(name, index, order, ())
        listing = "".join(f"/usr/lib/modules/{name}.ko\n" for name in order)
        self.entries["usr/lib/modules/load"] = cpio.regular(listing.encode())

    def _add_module(self, name: str, index: Mapping[str, Path], order: list[str], chain: tuple[str, ...]) -> None:
        key = name.replace("-", "_")
        if key in order or key in chain:
            return
        if key not in index:
            raise InfrastructureError(
                f"the kernel's package has no module {name}",
                hint="the module is built in or has another name; correct `modules` in images/rootfs/*.yaml",
            )
        raw = index[key].read_bytes()
        data = lzma.decompress(raw) if index[key].suffix == ".xz" else raw
        for dependency in filter(None, elf.modinfo(data).get("depends", "").split(",")):
            self._add_module(dependency, index, order, (*chain, key))
        self.entries[f"usr/lib/modules/{key}.ko"] = cpio.regular(data)
        order.append(key)

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


def assemble(recipe: Recipe, packages: Sequence[Path], overlay: Path) -> RootFs:
    """Make the root file system of ``recipe`` out of unpacked ``packages`` and the project's ``overlay``."""
    root = RootFs(packages, recipe.library_folders)
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


def _resolve(root: Path, path: str) -> Path | None:
    """Follow links inside ``root`` only; an absolute link means the guest's root, never this machine's."""
    current = PurePosixPath(path)
    for _ in range(16):
        candidate = root / current
        if not candidate.is_symlink():
            return candidate if candidate.is_file() else None
        target = PurePosixPath(candidate.readlink())
        joined = target if target.is_absolute() else PurePosixPath("/") / current.parent / target
        parts: list[str] = []
        for part in joined.parts[1:]:
            if part == "..":
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        current = PurePosixPath(*parts)
    return None


def _module_name(path: Path) -> str:
    return path.name.split(".ko", 1)[0].replace("-", "_")

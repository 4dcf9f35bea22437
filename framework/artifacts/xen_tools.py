# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's toolstack for dom0: pinned, brought by the user, or cross-built without root from a tree of the user's own.

Whatever its origin, a toolstack is one folder with a neutral layout: the programs in ``usr/lib/xen/bin``, their
libraries in ``usr/lib/xen/lib``. dom0's image searches it before all packages.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.lock import Lock
from framework.artifacts.make import CROSS, MAKE_KEY, compiler_version, run_logged, run_make
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_deb
from framework.artifacts.xen_source import XenSource
from framework.common.errors import InfrastructureError, UsageError
from framework.common.progress import Progress

PROGRAMS = ("xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "xenstore", "libxl-save-helper")
"""What dom0's image starts, or xl on its behalf."""
_BIN, _LIB = "usr/lib/xen/bin", "usr/lib/xen/lib"
XL = f"{_BIN}/xl"
"""Of every toolstack's folder, the program that stands for all in a report."""
_BIN_FOLDERS = ("lib/xen*/bin", "libexec/xen/bin", "sbin", "bin")
_LIB_FOLDERS = ("lib/xen*/lib/aarch64-linux-gnu", "lib/xen*/lib", "lib/aarch64-linux-gnu", "lib64", "lib")
_PREFIXES = ("usr/", "usr/local/", "")
_OF_RELEASE = re.compile(r"libxenctrl\.so\.(\d+\.\d+)(?:\.|$)")
_SYSROOT_GROUPS = ("dom0", "dom0-devel")
_HEADERS = (
    "xen/include/public/", "xen/include/acpi/", "xen/include/xen/lib/", "xen/common/libelf/", "xen/common/libfdt/",
    "xen/xsm/flask/policy/",
)  # fmt: skip
_SINGLE = (
    "xen/Makefile", "xen/include/xen/libelf.h", "xen/include/xen/elfstructs.h", "Config.mk", "Makefile", "COPYING",
    "configure", "configure.ac", "config.guess", "config.sub", "install.sh", "version.sh",
)  # fmt: skip
_PARTS = ("include", "libs", "xenstore", "xenstored", "xs-clients", "console", "xl", "helpers")
_CONFIGURE = (
    "--build=x86_64-linux-gnu", "--host=aarch64-linux-gnu", "--prefix=/usr", "--sysconfdir=/etc",
    "--localstatedir=/var", "--libdir=/usr/lib", "--enable-tools",
    "--with-xenstored=xenstored", "--with-system-qemu=/usr/bin/qemu",
    *(
        f"--disable-{name}" for name in (
            "xen", "docs", "stubdom", "golang", "ocamltools", "monitors", "pygrub", "xsmpolicy", "seabios", "ovmf",
            "ipxe", "rombios", "pvshim", "systemd", "werror",
        )
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Toolstack:
    """One toolstack: its folder, the release it belongs to (``4.17``), how the report names its version, and
    ``origin`` as of a :class:`~framework.artifacts.stack.Component`."""

    folder: Path
    release: str
    version: str
    origin: str


def pinned_tools(store: Store, lock: Lock, cache: BuildCache) -> Toolstack:
    """The toolstack of the pinned packages."""
    recipe = FirmwareConfig.load().xen.tools
    pins = lock.group(recipe.group)

    def build(out: Path) -> None:
        paths = store.fetch(pins)
        for pin in pins:
            unpack_deb(paths[pin.name], out / "unpacked")
        arrange(out / "unpacked", out)
        shutil.rmtree(out / "unpacked")

    folder = cache.get("xen-tools-pinned", {"pins": [pin.sha256 for pin in pins], "recipe": Path(__file__)}, build)
    return Toolstack(folder, recipe.release, pins[0].version, "pinned")


def given_tools(folder: Path, lock: Lock, cache: BuildCache) -> Toolstack:
    """A toolstack that the user installed into ``folder`` (``make install-tools DESTDIR=…``, or unpacked packages).

    :raises UsageError: it lacks something, is for another machine, or needs a newer C library than dom0's.
    """
    missing = [name for name in PROGRAMS if _find(folder, name) is None]
    release = release_of(folder)
    if missing or release is None:
        what = f"has no {', '.join(missing)}" if missing else "has no libxenctrl.so.4.x"
        raise UsageError(
            f"--xen-tools: {folder} {what}", hint="give the DESTDIR of `make -C tools install`, built for arm64 Linux"
        )
    libc = next(pin for pin in lock.group("dom0") if pin.path.rsplit("/", 1)[1].startswith("libc6_")).version
    for path in [*(_found(folder, name) for name in PROGRAMS), *_libraries(folder)]:
        _check_program(path, libc)
    files = {path.name: path for path in [*(_found(folder, n) for n in PROGRAMS), *_libraries(folder)]}
    inputs = {"files": files, "recipe": Path(__file__)}
    return Toolstack(
        cache.get("xen-tools-given", inputs, lambda out: arrange(folder, out)), release, f"{release}, {folder}", "user"
    )


def built_tools(source: XenSource, store: Store, lock: Lock, cache: BuildCache, progress: Progress) -> Toolstack:
    """The toolstack of a tree, built once for each content of what goes into it.

    :raises BuildError: it cannot be built; the text has the compiler's words.
    """
    parts = source.only(_goes_in)
    sysroot = _sysroot(store, lock, cache)

    def build(out: Path) -> None:
        for program in ("iasl", "pkg-config"):
            if shutil.which(program) is None:
                raise InfrastructureError(
                    f"the tools' configuration needs {program}",
                    hint="install acpica-tools and pkg-config, or keep to a Xen of the pinned tools' release",
                )
        tree = out / "source"
        tree.mkdir()
        parts.copy_to(tree)
        # By this file configure knows that it stands in a tree; what is in it is the hypervisor's business.
        (tree / "xen/common").mkdir(parents=True, exist_ok=True)
        (tree / "xen/common/kernel.c").touch()
        (out / "cross").mkdir()
        _wrap_compiler(out / "cross", sysroot)
        environment = {
            "PATH": f"{out / 'cross'}:{os.environ.get('PATH', os.defpath)}",
            "PKG_CONFIG_LIBDIR": f"{sysroot}/usr/lib/aarch64-linux-gnu/pkgconfig:{sysroot}/usr/share/pkgconfig",
            "PKG_CONFIG_SYSROOT_DIR": str(sysroot),
        }
        log, title = out / "build.log", f"Xen's tools ({source.version})"
        with progress.task(f"configuring {title}"):
            if not (tree / "tools/configure").exists():
                _make_configure(tree, title, log)
            run_logged(title, ["./configure", *_CONFIGURE], tree, log, environment)
        variables = {"XEN_TARGET_ARCH": "arm64", "CROSS_COMPILE": CROSS, "XEN_OS": "Linux", "debug": "n"}
        present = [f"tools/{part}" for part in _PARTS if (tree / "tools" / part / "Makefile").is_file()]
        steps = [[f"-C{part}", *target] for part in present for target in ([], ["install", f"DESTDIR={out / 'dest'}"])]
        run_make(title, tree, variables, steps, log, progress, environment=environment)
        arrange(out / "dest", out)
        for path in [*(out / _BIN).iterdir(), *(out / _LIB).iterdir()]:
            subprocess.run([f"{CROSS}strip", "--strip-unneeded", str(path)], check=True, capture_output=True)
        for name in ("source", "cross", "dest"):
            shutil.rmtree(out / name)

    inputs = {
        "source": parts.digest(),
        "sysroot": sysroot.name,
        "compiler": compiler_version(),
        "make": MAKE_KEY,
        "recipe": Path(__file__),
    }
    folder = cache.get("xen-tools", inputs, build)
    return Toolstack(folder, source.release, f"{source.version}, {source.label}", "built")


def arrange(source: Path, out: Path) -> None:
    """Copy the programs and libraries of an installed toolstack into the neutral layout below ``out``."""
    (out / _BIN).mkdir(parents=True)
    (out / _LIB).mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy(_found(source, name), out / _BIN / name)
    for path in _libraries(source):
        shutil.copy(path, out / _LIB / path.name)


def release_of(folder: Path) -> str | None:
    """The release that the tools in a folder belong to: their libxenctrl carries it in its name."""
    names = (_OF_RELEASE.match(path.name) for path in _libraries(folder))
    return next((match[1] for match in names if match), None)


def _found(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise InfrastructureError(f"the toolstack has no program {name}", where=str(folder))
    return path


def _find(folder: Path, name: str) -> Path | None:
    for prefix in _PREFIXES:
        for pattern in _BIN_FOLDERS:
            for path in sorted(folder.glob(f"{prefix}{pattern}/{name}")):
                if path.is_file():
                    return path
    return None


def _libraries(folder: Path) -> list[Path]:
    """The Xen libraries below a folder by the names that programs ask for, the first of each name."""
    found: dict[str, Path] = {}
    for prefix in _PREFIXES:
        for pattern in _LIB_FOLDERS:
            for path in sorted(folder.glob(f"{prefix}{pattern}/lib*.so.*")):
                if re.match(r"lib(xen|xlutil)", path.name) and path.is_file():
                    found.setdefault(path.name, path)
    return list(found.values())


def _check_program(path: Path, libc: str) -> None:
    """Raise UsageError for a file that cannot run in dom0."""
    try:
        elf: Any = ELFFile(io.BytesIO(path.read_bytes()))
        machine = elf.header.e_machine
        needs = list(_libc_versions(elf))
    except (ELFError, OSError) as error:
        raise UsageError(f"--xen-tools: {path} is no ELF file that can be read: {error}") from error
    if machine != "EM_AARCH64":
        raise UsageError(f"--xen-tools: {path} is for {machine}, dom0 is arm64", hint="cross-build them for arm64")
    has = _numbers(libc)
    if newer := [text for text in needs if _numbers(text) > has[:2]]:
        raise UsageError(
            f"--xen-tools: {path} needs glibc {max(newer, key=_numbers)}, dom0 has {libc}",
            hint="build them against an older C library, or let medcheck build them: --xen-tree DIR --xen-tools tree",
        )


def _libc_versions(elf: Any) -> Iterator[str]:
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, versions in section.iter_versions():
                yield from (v.name.removeprefix("GLIBC_") for v in versions if re.match(r"GLIBC_\d", v.name))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(text) for text in re.findall(r"\d+", version)[:2])


def _goes_in(name: str) -> bool:
    """Whether a file of a tree is one that its tools are made of."""
    if name.startswith(("tools/", "config/", "m4/")):
        return not name.startswith("tools/tests/")
    return name in _SINGLE or name.startswith(_HEADERS)


def _make_configure(tree: Path, title: str, log: Path) -> None:
    """A tree of a distribution's source package has neither configure scripts nor what they call."""
    if shutil.which("autoconf") is None:
        raise InfrastructureError(
            "this tree has no configure scripts and this machine no autoconf", hint="install autoconf"
        )
    for name in ("config.guess", "config.sub"):
        if not (tree / name).exists():
            # They turn a machine's short name into the long one, and only two names ever come.
            (tree / name).write_text("#!/bin/sh\necho \"$1\" | sed 's/-linux-gnu/-unknown-linux-gnu/'\n")
            (tree / name).chmod(0o755)
    for folder, command in ((tree, "autoconf"), (tree / "tools", "autoconf"), (tree / "tools", "autoheader")):
        run_logged(title, [command, "-f"], folder, log)


def _wrap_compiler(folder: Path, sysroot: Path) -> None:
    """The cross compiler with dom0's headers, start files and C library before its own."""
    libraries, headers = f"{sysroot}/usr/lib/aarch64-linux-gnu", f"{sysroot}/usr/include"
    script = folder / f"{CROSS}gcc"
    script.write_text(
        f"#!/bin/sh\nexec {shutil.which(f'{CROSS}gcc')} --sysroot={sysroot} -B{libraries} "
        f'-isystem {headers} -isystem {headers}/aarch64-linux-gnu -L{libraries} "$@"\n'
    )
    script.chmod(0o755)


def _sysroot(store: Store, lock: Lock, cache: BuildCache) -> Path:
    """dom0's libraries with their headers, as a compiler sees them."""
    pins = [pin for group in _SYSROOT_GROUPS for pin in lock.group(group)]

    def build(out: Path) -> None:
        paths = store.fetch(pins)
        for pin in pins:
            unpack_deb(paths[pin.name], out, _is_for_compiler)
        for link in (path for path in out.rglob("*") if path.is_symlink()):
            target = str(link.readlink())
            if target.startswith("/"):
                link.unlink()
                link.symlink_to(os.path.relpath(out / target.lstrip("/"), link.parent))

    inputs = {"pins": [pin.sha256 for pin in pins], "recipe": Path(__file__).with_name("unpack.py")}
    return cache.get("dom0-sysroot", inputs, build)


def _is_for_compiler(name: str) -> bool:
    return name.startswith(("lib", "usr/lib", "usr/include", "usr/share/pkgconfig"))


def groups_of_builds() -> Sequence[str]:
    """The lock file's groups that are fetched only for tools from a tree."""
    return _SYSROOT_GROUPS

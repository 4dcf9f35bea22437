# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the files that a user brings: is each what its option says, whole, and for this board?

All of it happens before anything is fetched or built. Whatever is wrong is a UsageError that names the file and what
to give instead; no error of a library, and no surprise a minute after power-on.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from framework.artifacts import elf
from framework.artifacts.elf import Elf, ElfError
from framework.artifacts.firmware import OPTEE_FILES
from framework.artifacts.firmware_config import XEN_VARIANTS, FirmwareConfig
from framework.artifacts.guest_path import resolve
from framework.artifacts.kernel_modules import ModuleError, Modules
from framework.common.errors import UsageError

if TYPE_CHECKING:
    from framework.artifacts.overrides import Overrides

XTEST = "usr/bin/xtest"
_TAS = "usr/lib/optee_armtz"
_FOLDERS = ("optee", "optee_tree", "kernel_modules", "xtest_root", "xen_tree", "xen_tools")
_LIMITS = {"xen": 64 << 20, "kernel": 512 << 20, "xen_syms": 512 << 20, "xen_config": 1 << 20, "xen_patch": 64 << 20}
"""Bytes; several times what the largest build of each has."""
OPTEE_CONF = "conf.mk"
"""What OP-TEE's build leaves beside its folder ``core``: the configuration that resulted."""
_MOST_OPTEE = 64 << 20
_MOST_CONF = 1 << 20
_MOST_PROGRAM = 256 << 20

_IMAGE = struct.Struct("<8xQQQ24x4s4x")
"""text_offset, image_size, flags, magic: Linux, Documentation/arch/arm64/booting.rst."""
_IMAGE_MAGIC = b"ARMd"
_PAGE_KIB = {1: 4, 2: 16, 3: 64}
_NO_16K = ("cortex-a53", "cortex-a57", "cortex-a72", "a64fx")
"""CPU models without the 16 KiB granule (ID_AA64MMFR0_EL1.TGran16 is 0); all have 4 and 64 KiB."""
_PACKED = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4", b"\x5d\0\0": "lzma",
}  # fmt: skip

_OPTEE_HEADER = struct.Struct("<4sBBHI")
_OPTEE_IMAGE = struct.Struct("<IIII")
"""load address (high, low), which image, size: OP-TEE OS, scripts/gen_tee_bin.py."""
_OPTEE_ARM64 = 1
_PAGER = 0


def check(overrides: Overrides, modules: Iterable[str] = (), cpu: str | None = None) -> None:
    """Check every file of ``overrides``.

    ``modules`` are the kernel modules that the guests load, ``cpu`` is the board's CPU as QEMU names it (with options
    behind a comma); None leaves out what depends on it.

    :raises UsageError: a file is not what it should be, or does not fit the others or the board.
    """
    if overrides.xen_variant not in XEN_VARIANTS:
        raise UsageError(f"no Xen variant {overrides.xen_variant}", hint=f"one of {', '.join(XEN_VARIANTS)}")
    for name, given in overrides.__dict__.items():
        for path in given if isinstance(given, tuple) else (given,):
            if isinstance(path, Path):
                _check_kind(name, path, most=_LIMITS.get(name))
    if overrides.xen is not None:
        _check_image("--xen", overrides.xen, "xen/xen of a Xen build")
    if overrides.kernel is not None:
        _check_page_size(overrides.kernel, _check_image("--kernel", overrides.kernel, "arch/arm64/boot/Image"), cpu)
    if overrides.optee is not None:
        check_optee(overrides.optee)
    if overrides.xtest_root is not None:
        _check_xtest(overrides.xtest_root)
    if overrides.kernel_modules is not None:
        _check_modules(overrides.kernel, overrides.kernel_modules, modules)
    if overrides.xen_syms is not None:
        if overrides.xen is None:
            raise UsageError("--xen-syms goes with --xen", hint="the pinned Xen brings its own symbols")
        _check_symbols(overrides.xen, overrides.xen_syms)


def _check_kind(name: str, path: Path, *, most: int | None) -> None:
    option, folder = f"--{name.replace('_', '-')}", name in _FOLDERS
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UsageError(f"{option}: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {path} cannot be read: {error}") from None
    mode = found.st_mode
    # A device or a pipe is neither, and reading one may never end.
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither file nor folder"
        raise UsageError(f"{option}: expected {'a folder' if folder else 'a file'}, {path} is {kind}")
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise UsageError(f"{option}: {path} cannot be read", hint="make it readable for this user")
    if most is not None and found.st_size > most:
        raise UsageError(f"{option}: {path} has {found.st_size >> 20} MiB, which no such file has")
    if not folder and found.st_size == 0:
        raise UsageError(f"{option}: {path} is empty", hint="did its build finish?")
    # A source tree is read file by file, and may hold whatever its repository ignores.
    for parent, _, names in os.walk(path) if not name.endswith("_tree") else ():
        for below in (Path(parent, name) for name in names):
            if not (below.is_file() or below.is_symlink()):
                raise UsageError(f"{option}: {below} is a device, pipe or socket")


def _check_image(option: str, path: Path, which: str) -> int:
    """Return the flags of an arm64 Image's header."""
    with path.open("rb") as stream:
        head = stream.read(_IMAGE.size)
    hint = f"give the uncompressed image: {which}"
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise UsageError(f"{option}: {path} is compressed with {name}, not an arm64 Image", hint=hint)
    if head[4:8] == b"zimg":
        raise UsageError(f"{option}: {path} is a compressed EFI image (vmlinuz.efi), not an arm64 Image", hint=hint)
    if elf.is_elf(head):
        raise UsageError(f"{option}: {path} is an ELF file (xen-syms, vmlinux), not an arm64 Image", hint=hint)
    if len(head) < _IMAGE.size or head[0x38:0x3C] != _IMAGE_MAGIC:
        raise UsageError(f"{option}: {path} is not an arm64 Image (no magic at offset 0x38)", hint=hint)
    flags: int = _IMAGE.unpack(head)[2]
    if flags & 1:
        raise UsageError(f"{option}: {path} is built big-endian", hint="build it little-endian, as the board is")
    return flags


def _check_page_size(kernel: Path, flags: int, cpu: str | None) -> None:
    """Refuse a kernel whose page size the CPU does not have: it would spin before its first output."""
    size = _PAGE_KIB.get(flags >> 1 & 3)
    model = (cpu or "").partition(",")[0]
    if size == 16 and model in _NO_16K:
        raise UsageError(
            f"--kernel: {kernel} is built for pages of 16 KiB, and the board's CPU {model} has 4 and 64 KiB only",
            hint="build it with CONFIG_ARM64_4K_PAGES=y, or give the distribution's kernel without 16k in its name",
        )


def check_optee(folder: Path, option: str = "--optee") -> None:
    """Check OP-TEE's images in a folder.

    :raises UsageError: one is not what it should be, or they do not fit this board.
    """
    _check_holds(option, folder, OPTEE_FILES, "out/core of an OP-TEE OS build")
    header, pager, pageable = (folder / name for name in OPTEE_FILES)
    hint = "give out/core of a finished OP-TEE OS build for arm64 (CFG_ARM64_core=y)"
    for path in (header, pager, pageable):
        if path.stat().st_size > _MOST_OPTEE:
            raise UsageError(f"{option}: {path} has more than {_MOST_OPTEE >> 20} MiB, which no OP-TEE has")
    # The pageable part is empty in every OP-TEE without a pager.
    for path in (header, pager):
        if path.stat().st_size == 0:
            raise UsageError(f"{option}: {path} is empty", hint=hint)
    data = header.read_bytes()
    if len(data) < _OPTEE_HEADER.size or data[:4] != b"OPTE":
        raise UsageError(f"{option}: {header} is no header of OP-TEE OS (it does not begin with OPTE)", hint=hint)
    _, version, machine, _, count = _OPTEE_HEADER.unpack_from(data)
    if version != 2:
        raise UsageError(f"{option}: {header} has format {version}, the firmware reads format 2", hint=hint)
    if machine != _OPTEE_ARM64:
        raise UsageError(f"{option}: {header} is of an OP-TEE for 32-bit Arm", hint=hint)
    images = list(_OPTEE_IMAGE.iter_unpack(data[_OPTEE_HEADER.size :][: (len(data) - _OPTEE_HEADER.size) // 16 * 16]))
    found = next(((high << 32 | low, size) for high, low, which, size in images[:count] if which == _PAGER), None)
    if found is None:
        raise UsageError(f"{option}: {header} is cut off, it names no image to load", hint=hint)
    address, size = found
    if size != pager.stat().st_size:
        raise UsageError(
            f"{option}: {pager} has {pager.stat().st_size} bytes, and {header.name} says {size}",
            hint="the files are of different builds, or one was cut: " + hint,
        )
    _check_window(option, header, address, size)
    _check_virtualization(option, folder)


def _check_window(option: str, header: Path, address: int, size: int) -> None:
    """Refuse an OP-TEE whose load address is outside of the window in which our firmware accepts it."""
    begin, length = FirmwareConfig.load().secure_window
    if not begin <= address <= address + size <= begin + length:
        raise UsageError(
            f"{option}: {header} asks to be loaded at {address:#x} ({size} bytes), "
            f"and the firmware's secure RAM is {begin:#x} to {begin + length:#x}",
            hint=f"build it with CFG_TZDRAM_START={begin:#x} CFG_TZDRAM_SIZE={length:#x}",
        )


def _check_virtualization(option: str, folder: Path) -> None:
    """Refuse an OP-TEE for one guest only, as far as the configuration of its build is at hand."""
    for path in (folder / OPTEE_CONF, folder.parent / OPTEE_CONF):
        if path.is_file() and path.stat().st_size <= _MOST_CONF:
            lines = path.read_text(errors="replace").splitlines()
            if not {"CFG_NS_VIRTUALIZATION=y", "CFG_VIRTUALIZATION=y"} & set(lines):
                raise UsageError(
                    f"{option}: {folder} was built without virtualization ({path}): it knows no guests",
                    hint="build it with CFG_NS_VIRTUALIZATION=y (CFG_VIRTUALIZATION=y up to OP-TEE 3.21)",
                )
            return


def _check_xtest(root: Path) -> None:
    for path in (XTEST, XTEST.removeprefix("usr/"), _TAS, _TAS.removeprefix("usr/")):
        found = resolve(root, path)
        if os.path.lexists(root / path) and (found is None or not found.exists()):
            raise UsageError(
                f"--xtest-root: {root / path} leads through a link to what is not below {root}",
                hint="copy what it names into the folder: the guest gets nothing from outside",
            )
    xtest = next(filter(None, map(_file, (resolve(root, p) for p in (XTEST, XTEST.removeprefix("usr/"))))), None)
    if xtest is None:
        # Otherwise the pinned one would be tested under the user's name.
        raise UsageError(f"--xtest-root: {root} has no {XTEST}", hint="give the folder that xtest is installed into")
    if xtest.stat().st_size > _MOST_PROGRAM:
        raise UsageError(f"--xtest-root: {xtest} has more than {_MOST_PROGRAM >> 20} MiB, which no xtest has")
    try:
        Elf(xtest.read_bytes()).needed()
    except ElfError as error:
        raise UsageError(
            f"--xtest-root: {xtest} is {error}", hint="build optee_test for aarch64, as the guests are"
        ) from error


def _file(path: Path | None) -> Path | None:
    return path if path is not None and path.is_file() else None


def _check_modules(kernel: Path | None, folder: Path, names: Iterable[str]) -> None:
    if kernel is None:
        raise UsageError("--kernel-modules goes with --kernel", hint="the pinned kernel brings its own modules")
    image = kernel.read_bytes()
    try:
        for module in Modules.of([folder]).closure(names):
            magic = module.info.get("vermagic", "").split()
            # With modversions the symbols' checksums decide, not the release.
            if magic and "modversions" not in magic and f"Linux version {magic[0]} ".encode() not in image:
                raise UsageError(
                    f"--kernel-modules: {module.name} was built for Linux {magic[0]}, and {kernel} is another",
                    hint="give the modules that were built and installed together with --kernel",
                )
    except KeyError as error:
        raise UsageError(
            f"--kernel-modules: {folder} has no module {error.args[0]}, and its modules.builtin does not name it",
            hint="build the kernel with it, as a module or built in",
        ) from error
    except ModuleError as error:
        raise UsageError(
            f"--kernel-modules: {error.path} is not usable: {error}", hint="install the kernel's modules anew"
        ) from error


def _check_holds(option: str, folder: Path, names: Sequence[str], which: str) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UsageError(f"{option}: {folder} has no {', '.join(missing)}", hint=f"give the folder {which}")


def _check_symbols(xen: Path, symbols: Path) -> None:
    """Refuse symbols of another Xen: the trace's hooks would be set in unrelated code."""
    option = f"--xen-syms: {symbols}"
    try:
        found = Elf(symbols.read_bytes())
        identity = found.build_id()
        link = found.content(".gnu_debuglink")
    except ElfError as error:
        raise UsageError(f"{option} is {error}", hint="give the xen-syms of the build") from error
    if identity is not None and identity not in xen.read_bytes():
        raise UsageError(
            f"{option} has the build id {identity.hex()}, which {xen} has not",
            hint="give the xen-syms that was linked together with --xen",
        )
    lacking = [what for what, name in (("symbol table", ".symtab"), ("debug information", ".debug_info"))
               if name not in found.sections or not found.sections[name].stored]  # fmt: skip
    if lacking and link:
        name = link.partition(b"\0")[0].decode(errors="replace")
        raise UsageError(
            f"{option} has no {' and no '.join(lacking)}: it was moved into another file, {name}",
            hint=f"give xen-syms as the build left it, or put the two together: eu-unstrip {symbols} {name}",
        )
    if lacking:
        raise UsageError(
            f"{option} has no {' and no '.join(lacking)}: it was stripped, or built without",
            hint="build Xen with CONFIG_DEBUG_INFO=y and give the xen-syms of that build, or leave --xen-syms out",
        )

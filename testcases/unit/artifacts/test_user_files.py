# SPDX-License-Identifier: GPL-2.0-or-later
"""Each file of a user is looked at when it is given: its content, whole, for this board; no library's exception."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from framework.artifacts.kernel_modules import MOST, ModuleError, Modules, read
from framework.artifacts.stack import Overrides, prepare
from framework.common.errors import ExitCode, UsageError
from testcases.unit.artifacts.elf_files import ARM, X86, elf, image, module, note, optee

NOTHING: Any = None
"""For what is not reached: what passes the check asks the (absent) store next."""
IDENTITY = bytes(range(20))
DEBUG = {".symtab": b"s" * 24, ".debug_info": b"d" * 8}


def refused(cpu: str | None = "cortex-a53", **given: Any) -> str:
    """What is said of files that are refused, with the hint."""
    with pytest.raises(UsageError) as caught:
        prepare(NOTHING, NOTHING, NOTHING, Overrides(**given), cpu=cpu)
    assert caught.value.exit_code == ExitCode.USAGE
    assert any(str(path) in str(caught.value) for path in given.values() if isinstance(path, Path))
    return str(caught.value)


def passes(cpu: str | None = "cortex-a53", **given: Any) -> None:
    with pytest.raises(AttributeError, match="fetch"):
        prepare(NOTHING, NOTHING, NOTHING, Overrides(**given), cpu=cpu)


# OP-TEE


def test_an_optee_as_it_is_built_passes(tmp_path: Path) -> None:
    passes(optee=optee(tmp_path / "core"))


@pytest.mark.parametrize("address", [0x0E10_0000, 0xEFFF_F000, 0xF800_0000, 0xF7FF_F800, 1 << 40])
def test_an_optee_for_another_window_is_refused_with_both_addresses(tmp_path: Path, address: int) -> None:
    told = refused(optee=optee(tmp_path / "core", address))
    assert f"{address:#x}" in told and "0xf0000000 to 0xf8000000" in told and "CFG_TZDRAM_START=0xf0000000" in told


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_empty, "tee-header_v2.bin is empty"),
        (lambda folder: (folder / "tee-pager_v2.bin").write_bytes(b""), "tee-pager_v2.bin is empty"),
        (lambda folder: (folder / "tee-pager_v2.bin").write_bytes(b"p" * 100), "100 bytes, and tee-header_v2.bin says"),
        (lambda folder: (folder / "tee-header_v2.bin").write_bytes(b"OPTE\2\1\0\0"), "does not begin with OPTE"),
        (lambda folder: (folder / "tee-header_v2.bin").write_bytes(b"OPTE\2\1\0\0\1\0\0\0" + bytes(15)), "cut off"),
        (lambda folder: (folder / "tee-header_v2.bin").write_bytes(b"\x7fELF" * 7), "does not begin with OPTE"),
        (lambda folder: optee(folder, version=1), "has format 1"),
        (lambda folder: optee(folder, machine=0), "32-bit Arm"),
    ],
)  # fmt: skip
def test_an_optee_that_is_none(tmp_path: Path, damage: Callable[[Path], Any], what: str) -> None:
    damage(optee(tmp_path / "core"))
    assert what in refused(optee=tmp_path / "core")


def test_an_optee_without_virtualization_is_refused_where_its_build_tells(tmp_path: Path) -> None:
    folder = optee(tmp_path / "core")
    (tmp_path / "conf.mk").write_text("CFG_ARM64_core=y\n# CFG_NS_VIRTUALIZATION is not set\n")
    assert "built without virtualization" in refused(optee=folder)
    (tmp_path / "conf.mk").write_text("CFG_VIRTUALIZATION=y\n")
    passes(optee=folder)


# Kernel and Xen


@pytest.mark.parametrize(
    ("pages", "cpu", "good"),
    [
        (1, "cortex-a53", True), (3, "cortex-a53", True), (0, "cortex-a53", True), (2, "cortex-a53", False),
        (2, "cortex-a72,pmu=off", False), (2, "max", True), (2, "neoverse-n1", True), (2, None, True),
    ],
)  # fmt: skip
def test_a_kernels_pages_are_held_against_the_boards_cpu(
    tmp_path: Path, pages: int, cpu: str | None, good: bool
) -> None:
    kernel = image(tmp_path / "Image", pages=pages)
    if good:
        passes(cpu=cpu, kernel=kernel)
    else:
        told = refused(cpu=cpu, kernel=kernel)
        assert "16 KiB" in told and str(cpu).split(",")[0] in told and "CONFIG_ARM64_4K_PAGES" in told


@pytest.mark.parametrize("option", ["kernel", "xen"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"Image" * 100, mtime=0), "compressed with gzip"),
        (zstandard.compress(b"Image" * 100), "with zstd"),
        (lzma.compress(b"Image" * 100), "with xz"), (bz2.compress(b"Image" * 100), "with bzip2"),
        (b"MZ\0\0zimg".ljust(512, b"\0"), "compressed EFI image"), (elf(), "is an ELF file"), (b"", "is empty"),
        (b"MZ", "no magic"), (bytes(4096), "no magic"),
    ],
)  # fmt: skip
def test_an_image_in_another_form_is_named(tmp_path: Path, option: str, content: bytes, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert what in refused(**{option: path})


def test_a_big_endian_image(tmp_path: Path) -> None:
    assert "big-endian" in refused(kernel=image(tmp_path / "Image", big_endian=True))


@pytest.mark.parametrize("option", ["kernel", "xen"])
def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path, option: str) -> None:
    path = image(tmp_path / "file")
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)
    assert "1048576 MiB" in refused(**{option: path})


# Xen's symbols


def symbols(folder: Path, sections: dict[str, bytes]) -> dict[str, Path]:
    path = folder / "xen-syms"
    path.write_bytes(elf({".note.gnu.build-id": note(IDENTITY), **sections}, kind=2))
    return {"xen": image(folder / "xen", note(IDENTITY)), "xen_syms": path}


def test_whole_symbols_pass(tmp_path: Path) -> None:
    passes(**symbols(tmp_path, DEBUG))


def test_symbols_that_were_stripped(tmp_path: Path) -> None:
    told = refused(**symbols(tmp_path, {}))
    assert "no symbol table and no debug information" in told and "CONFIG_DEBUG_INFO=y" in told


def test_symbols_without_debug_information(tmp_path: Path) -> None:
    told = refused(**symbols(tmp_path, {".symtab": b"s" * 24}))
    assert "no debug information" in told and "no symbol table" not in told


def test_symbols_whose_debug_information_lies_elsewhere(tmp_path: Path) -> None:
    told = refused(**symbols(tmp_path, {".gnu_debuglink": b"xen-syms.debug\0\0\1\2\3\4"}))
    assert "xen-syms.debug" in told and "eu-unstrip" in told


@pytest.mark.parametrize("cut", [20, 63, 200, -1, -70])
def test_symbols_that_are_cut(tmp_path: Path, cut: int) -> None:
    given = symbols(tmp_path, DEBUG)
    given["xen_syms"].write_bytes(given["xen_syms"].read_bytes()[:cut])
    assert "not a readable ELF file" in refused(**given)


def test_symbols_of_another_machine(tmp_path: Path) -> None:
    given = symbols(tmp_path, DEBUG)
    given["xen_syms"].write_bytes(elf(DEBUG, machine=X86))
    assert "for x86-64, not for arm64" in refused(**given)


# xtest


def xtest(folder: Path, content: bytes) -> Path:
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/xtest").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (elf(machine=X86), "for x86-64"), (elf(machine=ARM, wide=False), "for 32-bit Arm"), (b"", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"), (elf()[:300], "not a readable ELF file"),
    ],
)  # fmt: skip
def test_an_xtest_for_another_machine(tmp_path: Path, content: bytes, what: str) -> None:
    assert what in refused(xtest_root=xtest(tmp_path / "root", content))


def test_an_xtest_for_arm64_passes(tmp_path: Path) -> None:
    passes(xtest_root=xtest(tmp_path / "root", elf(needed=["libteec.so.2"], interpreter="/lib/ld-linux-aarch64.so.1")))


@pytest.mark.parametrize("link", ["usr/lib/optee_armtz", "usr/bin"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_folder_of_the_xtest_root_that_is_a_link_out_of_it(tmp_path: Path, link: str, absolute: bool) -> None:
    root = xtest(tmp_path / "root", elf())
    (root / "usr/lib").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    if link == "usr/bin":
        (root / "usr/bin/xtest").rename(outside / "xtest")
        (root / "usr/bin").rmdir()
    (root / link).symlink_to(outside if absolute else Path("../" * 3, "outside"))
    told = refused(xtest_root=root)
    assert "leads through a link" in told or "has no usr/bin/xtest" in told


def test_a_link_that_stays_in_the_xtest_root_passes(tmp_path: Path) -> None:
    root = xtest(tmp_path / "root", elf())
    (root / "tas").mkdir()
    (root / "usr/lib").mkdir()
    (root / "usr/lib/optee_armtz").symlink_to("/tas")
    passes(xtest_root=root)


# Kernel modules

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.compress,
}  # fmt: skip
WANTED = ("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "virtio_mmio", "virtio_console",
          "virtio_net", "virtio-rng", "bridge", "xen-netback", "xen-netfront", "tee", "optee")  # fmt: skip


def modules(folder: Path, suffix: str = "", **facts: Any) -> dict[str, Path]:
    """All modules that the guests want, and the kernel they are for."""
    below = folder / "modules/kernel"
    below.mkdir(parents=True)
    for name in WANTED:
        content = module(name, "tee" if name == "optee" else "", **facts)
        (below / f"{name}.ko{suffix}").write_bytes(PACK[suffix](content))
    kernel = image(folder / "Image", b"Linux version 6.1.0 (x@y) ")
    return {"kernel": kernel, "kernel_modules": folder / "modules"}


@pytest.mark.parametrize("suffix", PACK)
def test_modules_pass_however_they_are_compressed(tmp_path: Path, suffix: str) -> None:
    given = modules(tmp_path, suffix)
    passes(**given)
    found = list(Modules.of([given["kernel_modules"]]).closure(["optee"]))
    assert [(item.name, item.data) for item in found] == [("tee", module("tee")), ("optee", module("optee", "tee"))]


@pytest.mark.parametrize("suffix", PACK)
def test_the_content_decides_and_not_the_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "tee.ko.xz"
    path.write_bytes(PACK[suffix](module("tee")))
    assert read(path).data == module("tee")


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut", "half", "zeros", "empty", "text"])
def test_a_damaged_module_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    given = modules(tmp_path, suffix)
    path = given["kernel_modules"] / f"kernel/optee.ko{suffix}"
    whole = path.read_bytes()
    content = {"cut": whole[:-9], "half": whole[: len(whole) // 2], "empty": b"", "text": b"text"}
    path.write_bytes(content.get(damage, whole[:40] + bytes(len(whole) - 40)))
    assert "optee.ko" in refused(**given)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (module("optee", machine=X86), "for x86-64"), (elf(), "not a kernel module"),
        (bz2.compress(module("optee")), "bzip2"), (b"\x04\x22\x4d\x18" + bytes(60), "lz4"),
    ],
)  # fmt: skip
def test_a_module_that_no_arm64_guest_can_load(tmp_path: Path, content: bytes, what: str) -> None:
    given = modules(tmp_path)
    (given["kernel_modules"] / "kernel/optee.ko").write_bytes(content)
    assert what in refused(**given)


def test_modules_of_another_kernel(tmp_path: Path) -> None:
    told = refused(**modules(tmp_path, vermagic="6.1.1 SMP aarch64"))
    assert "Linux 6.1.1" in told and "Image is another" in told


def test_a_missing_module_is_built_in_or_missing(tmp_path: Path) -> None:
    given = modules(tmp_path)
    (given["kernel_modules"] / "kernel/tee.ko").unlink()
    # Without a list of what is built in, that is what it is taken for.
    passes(**given)
    listing = given["kernel_modules"] / "modules.builtin"
    listing.write_text("kernel/drivers/tee/tee.ko\n")
    passes(**given)
    listing.write_text("kernel/drivers/tty/tty.ko\n")
    assert "no module tee" in refused(**given)


def test_modules_without_their_kernel(tmp_path: Path) -> None:
    assert "goes with --kernel" in refused_modules(modules(tmp_path)["kernel_modules"])


def refused_modules(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(NOTHING, NOTHING, NOTHING, Overrides(kernel_modules=folder))
    return caught.value.what


def test_modules_that_depend_on_each_other_in_a_circle(tmp_path: Path) -> None:
    for name, depends in (("a", "b"), ("b", "a,b")):
        (tmp_path / f"{name}.ko").write_bytes(module(name, depends))
    assert [item.name for item in Modules.of([tmp_path]).closure(["a"])] == ["b", "a"]


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_what_a_small_module_unpacks_to_is_bounded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1 << 18
    monkeypatch.setattr("framework.artifacts.kernel_modules.MOST", most)
    assert most < MOST
    path = tmp_path / f"tee.ko{suffix}"
    path.write_bytes(PACK[suffix](bytes(32 * most)))
    begin = time.monotonic()
    with pytest.raises(ModuleError, match="more than"):
        read(path)
    assert time.monotonic() - begin < 5


def test_an_elf_file_with_a_million_sections_is_refused_at_once(tmp_path: Path) -> None:
    data = bytearray(module("tee"))
    struct.pack_into("<H", data, 60, 0)  # e_shnum: the first section's size has the number
    at = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<Q", data, at + 32, 1 << 60)
    path = tmp_path / "tee.ko"
    path.write_bytes(data)
    with pytest.raises(ModuleError, match="sections"):
        read(path)

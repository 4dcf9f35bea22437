# SPDX-License-Identifier: GPL-2.0-or-later
"""The readers of foreign files with damaged ones: an error of medcheck's own or none, soon, and in little memory.

Every input follows from its seed, so a failure names the seed to begin again with; seeds that found something once
are kept in KEPT. The long run goes on from where the short one ends.
"""

from __future__ import annotations

import io
import lzma
import os
import random
import resource
import struct
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from framework.artifacts import cpio
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.kernel_modules import ModuleError, read
from framework.artifacts.lock import Lock
from framework.artifacts.rootfs import Recipe, RootFs
from framework.artifacts.stack import Overrides
from framework.artifacts.unpack import unpack_deb
from framework.artifacts.user_files import check
from framework.board.spec import BOARDS, BoardSpec
from framework.common.errors import MedcheckError
from framework.common.paths import IMAGES
from testcases.unit.artifacts.archive import special, tar
from testcases.unit.artifacts.elf_files import elf, image, module, note, optee

SHORT, LONG = 120, 5_000
"""Inputs for each reader."""
SECONDS = 10.0
"""For one input, on a busy machine; all take milliseconds."""
MEMORY = 1 << 30
"""Address space in bytes that one input may add."""
KEPT: dict[str, tuple[int, ...]] = {"ramdisk": (49,)}
"""Seeds that found something once."""

_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 32, 1 << 62, (1 << 64) - 1)
_WORDS = (
    b"0b_", b"0x_", b"9" * 5000, b"1:" * 2000 + b"1", b"&a [*a]", b"*a", b"<<: {}", b"!!python/object:os.system x",
    b"[" * 2000, b"- " * 3000, b"{a: " * 500, b"\xff\xfe", b"\0", b"? ", b"|\n", b"2001-01-01", b".inf", b"~", b"-0",
    b"1e999", b"%YAML 9.9\n---\n", b"---\n...\n---\n", b"\t", b"'", b'"\\x', b"../../../x", b"/etc/passwd",
    b"\xc3\xa9", b"\xe2\x80\xae",
)  # fmt: skip


def damaged(data: bytes, dice: random.Random) -> bytes:
    """``data`` with one to eight places changed."""
    result = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(result) + 1)
        match dice.randrange(7):
            case 0:
                result[at : at + 1] = dice.randbytes(1)
            case 1:
                width = dice.choice("BHIQ")
                number = dice.choice((*_NUMBERS, len(result), dice.getrandbits(64)))
                piece = struct.pack(f"<{width}", number & ((1 << 8 * struct.calcsize(width)) - 1))
                result[at : at + len(piece)] = piece
            case 2:
                del result[at : at + dice.choice((1, 8, 64, 1024))]
            case 3:
                piece = bytes(result[at : at + dice.choice((1, 16, 64, 512))])
                result[at:at] = piece * dice.choice((1, 2, 50))
            case 4:
                result[at:at] = dice.choice(_WORDS)
            case 5:
                end = at + dice.choice((1, 4, 16, 100))
                result[at:end] = dice.choice(_WORDS)
            case 6:
                if dice.random() < 0.2:
                    del result[at:]
    return bytes(result)


ELF = elf(
    {".symtab": bytes(48), ".debug_info": bytes(16), ".note.gnu.build-id": note(bytes(20)), ".modinfo": b"a=b\0"},
    needed=["liba.so", "libb.so"], interpreter="/lib/ld-linux.so.1", kind=2,
)  # fmt: skip


def _symbols(folder: Path, dice: random.Random) -> None:
    path = folder / "xen-syms"
    path.write_bytes(damaged(ELF, dice))
    check(Overrides(xen=image(folder / "xen", bytes(20)), xen_syms=path))


def _program(folder: Path, dice: random.Random) -> None:
    libraries = folder / "root/usr/lib"
    libraries.mkdir(parents=True, exist_ok=True)
    for name in ("liba.so", "libb.so", "ld-linux.so.1"):
        (libraries / name).write_bytes(damaged(ELF, dice) if dice.random() < 0.3 else elf())
    (libraries / "xtest").write_bytes(damaged(ELF, dice))
    rootfs = RootFs([folder / "root"])
    rootfs.add_file("usr/lib/xtest")
    cpio.write(rootfs.entries, io.BytesIO())


def _module(folder: Path, dice: random.Random) -> None:
    path = folder / "tee.ko"
    data = module("tee", "a,b")
    path.write_bytes(damaged(lzma.compress(data), dice) if dice.random() < 0.5 else damaged(data, dice))
    try:
        read(path)
    except ModuleError as error:
        assert str(error) and error.path == path


def _firmware(folder: Path, dice: random.Random) -> None:
    optee(folder / "core")
    header = folder / "core/tee-header_v2.bin"
    header.write_bytes(damaged(header.read_bytes(), dice))
    check(Overrides(optee=folder / "core"))


def _yaml(folder: Path, dice: random.Random) -> None:
    source, load = dice.choice(_YAML)
    path = folder / "file.yaml"
    path.write_bytes(damaged(source.read_bytes()[:6000] if dice.random() < 0.5 else source.read_bytes(), dice))
    load(path)


_YAML: tuple[tuple[Path, Callable[[Path], object]], ...] = (
    (BOARDS / "default.yaml", BoardSpec.load),
    (BOARDS / "three.yaml", BoardSpec.load),
    (IMAGES / "firmware.yaml", FirmwareConfig.load),
    (IMAGES / "artifacts.lock.yaml", Lock.load),
    (IMAGES / "rootfs/dom0.yaml", Recipe.load),
)

TAR = tar(
    {
        "./usr/bin/tool": b"#!" * 40, "./d": special(tarfile.SYMTYPE, "usr"), "./.rc": b"x",
        "./d/bin/link": special(tarfile.SYMTYPE, "../lib"), "./usr/lib/": special(tarfile.DIRTYPE),
        "./usr/same": special(tarfile.LNKTYPE, "./usr/bin/tool"),
        "./" + "long/" * 40 + "name": b"pax",
    }
)  # fmt: skip


def _archive(folder: Path, dice: random.Random) -> None:
    """A package whose parts are damaged before or after they are packed; nothing may appear beside its folder."""
    outer = folder / "outer"
    outer.mkdir()
    inner = damaged(TAR, dice) if dice.random() < 0.7 else TAR
    package = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", lzma.compress(inner, preset=0))):
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        package += b"\n" * (len(content) % 2)
    (outer / "x.deb").write_bytes(damaged(package, dice) if inner is TAR else package)
    try:
        unpack_deb(outer / "x.deb", outer / "dest")
    finally:
        assert {path.name for path in outer.iterdir()} <= {"x.deb", "dest"}
        for parent, folders, files in os.walk(outer / "dest"):
            for name in (*folders, *files):
                path = Path(parent, name)
                if path.is_symlink() and not path.readlink().is_absolute():
                    assert path.resolve().is_relative_to(folder), f"{path} -> {path.readlink()}"


def _ramdisk(_folder: Path, dice: random.Random) -> None:
    """What is written is read back by the format's own rules: the same names, none of which leaves the tree."""
    parts = ["a", "b", "..", ".", "", "\0", "é", "x" * 300, "/", "TRAILER!!!"]
    entries = {
        "/".join(dice.choices(parts, k=dice.randint(1, 4))): cpio.regular(dice.randbytes(dice.randrange(9)))
        for _ in range(dice.randint(1, 4))
    }
    stream = io.BytesIO()
    cpio.write(entries, stream)
    data, at, names = stream.getvalue(), 0, []
    while not names or names[-1] != "TRAILER!!!":
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        names.append(data[at + 110 : at + 110 + fields[11] - 1].decode())
        at += -(-(110 + fields[11]) // 4) * 4 + -(-fields[6] // 4) * 4
    assert set(entries) <= set(names)
    assert not any(part in ("", ".", "..") for name in names for part in name.split("/"))


READERS = {
    reader.__name__.strip("_"): reader for reader in (_symbols, _program, _module, _firmware, _yaml, _archive, _ramdisk)
}


@contextmanager
def bounded(seed: int) -> Iterator[None]:
    """One input takes little time and little memory, and ends well or with an error that says what to do."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    begin = time.monotonic()
    try:
        yield
    except MedcheckError as error:
        assert error.what
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - begin < SECONDS, f"seed {seed}"


def _read(reader: str, seeds: Iterable[int], folder: Path) -> None:
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        with bounded(seed):
            READERS[reader](place, random.Random(f"{reader} {seed}"))


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_errors_that_say_what_to_do(reader: str, tmp_path: Path) -> None:
    _read(reader, dict.fromkeys((*KEPT.get(reader, ()), *range(SHORT))), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files(reader: str, tmp_path: Path) -> None:
    _read(reader, range(SHORT, LONG), tmp_path)

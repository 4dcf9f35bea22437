# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are no good xen-syms: an error with the file's name, in bounded time."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.common.errors import TraceError
from framework.trace.xen_symbols import XenLayout
from testcases.unit.trace.test_plugin_parts import XEN

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="this machine has no C compiler")

CPU_S = 1.0
KEPT = 80
"""Seeds in every run; the nightly one goes on from there."""
SECTION = struct.Struct("<IIQQQQIIQQ")
"""name, type, flags, addr, offset, size, link, info, addralign, entsize."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library with the names of Xen; without its start-up files, so that nearly all of it matters."""
    folder = tmp_path_factory.mktemp("xen") / "tee"
    folder.mkdir()
    source = folder / "optee.c"
    source.write_text(XEN + "typedef struct list_head again_t; again_t again;")
    output = folder / "xen-syms"
    subprocess.run(["cc", "-g", "-shared", "-fPIC", "-nostdlib", "-o", output, source], check=True)
    return output.read_bytes()


def sections(data: bytes) -> dict[str, int]:
    """Where each section's header lies."""
    table, size, count, names = (*struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HHH", data, 58))
    headers = [table + size * n for n in range(count)]
    strings = SECTION.unpack_from(data, headers[names])[4]
    found = {}
    for at in headers:
        start = strings + SECTION.unpack_from(data, at)[0]
        found[data[start : data.index(b"\0", start)].decode()] = at
    return found


def changed(data: bytes, name: str, **fields: int) -> bytes:
    """The file with some fields of a section's header changed."""
    names = ("name", "type", "flags", "addr", "offset", "size", "link", "info", "addralign", "entsize")
    at = sections(data)[name]
    values = [fields.get(field, value) for field, value in zip(names, SECTION.unpack_from(data, at), strict=True)]
    return data[:at] + SECTION.pack(*values) + data[at + SECTION.size :]


def at(data: bytes, offset: int, text: bytes) -> bytes:
    return data[:offset] + text + data[offset + len(text) :]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "no-section-size": lambda d: at(d, 58, bytes(2)),
    "many-sections": lambda d: at(changed(d, "", size=1 << 60), 60, bytes(2)),
    "symbols-of-no-size": lambda d: changed(d, ".symtab", entsize=0),
    "symbols-without-end": lambda d: changed(d, ".symtab", size=1 << 60, entsize=1),
    "symbols-are-no-table": lambda d: changed(d, ".symtab", type=1),
    "no-names": lambda d: changed(d, ".symtab", link=0),
    "names-outside": lambda d: changed(d, ".strtab", offset=1 << 63),
    "names-without-end": lambda d: changed(d, ".strtab", size=5),
    "huge-debug-info": lambda d: changed(d, ".debug_info", size=(1 << 64) - 1),
    "compressed": lambda d: changed(d, ".debug_info", flags=0x800),
    "no-abbreviations": lambda d: changed(d, ".debug_abbrev", size=0),
    "another-machine": lambda d: at(d, 4, b"\x01"),
    "big-endian": lambda d: at(d, 5, b"\x02"),
    "only-the-beginning": lambda d: d[:64],
    "empty": lambda _: b"",
}


def check(path: Path, data: bytes) -> str | None:
    """What parsing says, if it does; it may raise nothing else and take not much longer than it was given."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    begin = time.process_time()
    try:
        XenLayout.parse(path, cpu_s=CPU_S)
    except TraceError as error:
        assert error.where == str(path)
        return error.what
    finally:
        assert time.process_time() - begin < CPU_S + 2
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_made_to_harm_its_reader_is_refused(good: bytes, tmp_path: Path, name: str) -> None:
    assert check(tmp_path / "xen-syms", HOSTILE[name](good)) is not None


def test_the_good_file_is_good(good: bytes, tmp_path: Path) -> None:
    assert check(tmp_path / "xen-syms", good) is None


def test_names_that_name_each_other_end(good: bytes, tmp_path: Path) -> None:
    """Every 4-byte word of the debug information that may be a reference, made to name each other place in turn."""
    offset, size = SECTION.unpack_from(good, sections(good)[".debug_info"])[4:6]
    said = set()
    for place in range(offset + 12, offset + size - 4, 13):
        said.add(check(tmp_path / "xen-syms", at(good, place, struct.pack("<I", (place - offset) % 200))))
    assert len(said) > 1


def mutated(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    headers = sections(data)
    wanted = [".debug_info", ".debug_abbrev", ".debug_str", ".symtab", ".strtab", ".shstrtab", ".debug_line_str"]
    for _ in range(draw.choice([1, 1, 2, 8])):
        name = draw.choice([name for name in wanted if name in headers])
        begin, size = SECTION.unpack_from(data, headers[name])[4:6]
        inside, header = begin + draw.randrange(size), headers[name] + draw.randrange(64)
        place = draw.choice([draw.randrange(64), header, inside, draw.randrange(len(found))])
        number = draw.choice([0, 1, 0x7F, 0xFFFF, 1 << 31, (1 << 64) - 1, draw.getrandbits(64)])
        texts = (bytes([draw.randrange(256)]), struct.pack("<Q", number), struct.pack("<I", number & 0xFFFF))
        text = draw.choice(texts)
        found[place : place + len(text)] = text
    return bytes(found if draw.random() < 0.9 else found[: draw.randrange(len(found))])


def fuzz(path: Path, good: bytes, seed: int) -> None:
    try:
        check(path, mutated(good, random.Random(seed)))
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def test_mutated_files_raise_nothing_of_others(good: bytes, tmp_path: Path) -> None:
    for seed in range(KEPT):
        fuzz(tmp_path / "xen-syms", good, seed)


@pytest.mark.nightly
def test_many_mutated_files_raise_nothing_of_others(good: bytes, tmp_path: Path) -> None:
    for seed in range(KEPT, 10_000):
        fuzz(tmp_path / "xen-syms", good, seed)


def test_the_process_that_reads_has_limits(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "xen-syms"
    path.write_bytes(good)
    assert XenLayout.load(path) == XenLayout.parse(path)
    with pytest.raises(TraceError, match="takes more than 0 s") as caught:
        XenLayout.load(path, cpu_s=0)
    assert caught.value.where == str(path)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(TraceError, match="takes more than 60 s or 2 GiB"):
        XenLayout.load(path)


def test_nothing_is_imported_from_the_working_folder(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    (tmp_path / "xen-syms").write_bytes(good)
    monkeypatch.chdir(tmp_path)
    assert XenLayout.load(Path("xen-syms")).tee


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "xen-syms"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(TraceError, match="no such file"):
        XenLayout.load(path)

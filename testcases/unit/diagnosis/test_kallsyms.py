# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own symbol tables, found in an image that was built for the test; the real kernel's: test_standstill.py."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from framework.common.errors import BoardError
from framework.diagnosis.kallsyms import KernelImage, LinuxNames

SYMBOLS = [(0x40 * number, "t" if number % 3 else "D", f"function_{number}") for number in range(600)]
SYMBOLS[7] = (SYMBOLS[6][0], "t", "second_name_of_6")
SYMBOLS[100] = (SYMBOLS[100][0], "T", "long_" * 40)
CODE_BYTES = 0x40 * len(SYMBOLS)


def image(path: Path, *, last_offset: int | None = None, digits_before: bool = False) -> Path:
    """An image as scripts/kallsyms.c lays it out: every character is a token of its own, "function" is one too."""
    tokens = [bytes([n]) if chr(n).isalnum() or n == ord("_") else b"function" if n == 1 else b"?" for n in range(256)]
    names, markers = b"", []
    for number, (_, kind, name) in enumerate(SYMBOLS):
        if number % 256 == 0:
            markers.append(len(names))
        coded = (kind + name).encode().replace(b"function", b"\1")
        length = bytes([len(coded)]) if len(coded) < 128 else bytes([len(coded) & 127 | 128, len(coded) >> 7])
        names += length + coded
    table, index = b"", []
    for token in tokens:
        index.append(len(table))
        table += token + b"\0"
    offsets = [offset for offset, _, _ in SYMBOLS]
    if last_offset is not None:
        offsets[-1] = last_offset
    data = random.Random(1).randbytes(CODE_BYTES)
    if digits_before:
        data = data[:-64] + b"0\01\02\03\04\05\06\07\08\09\0".ljust(64, b"x")
    for part in (
        struct.pack("<I", len(SYMBOLS)), names, struct.pack(f"<{len(markers)}I", *markers), table,
        struct.pack("<256H", *index), struct.pack(f"<{len(offsets)}I", *offsets), bytes(64),
    ):  # fmt: skip
        data = data.ljust((len(data) + 7) & ~7, b"\0") + part
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("digits_before", [False, True])
def test_functions_are_named_by_their_offset(tmp_path, digits_before):
    kernel = KernelImage(image(tmp_path / "Image", digits_before=digits_before))
    assert kernel.name(0x40 * 256 + 0x3C) == "function_256+0x3c"
    assert kernel.name(0x40 * 599) is not None
    assert kernel.name(0x40 * 100 + 8) == "long_" * 40 + "+0x8"
    for number in (1, 2, 254, 257, 511, 512, 599):
        assert kernel.name(0x40 * number) == (f"function_{number}+0x0" if number % 3 else None)


def test_data_has_no_function_and_the_first_of_two_names_wins(tmp_path):
    kernel = KernelImage(image(tmp_path / "Image"))
    assert kernel.name(0x40 * 3) is None
    assert kernel.name(SYMBOLS[7][0] + 4) is None  # The first name of this address is data's.
    assert kernel.name(1 << 40) is None


def test_a_kernel_is_recognised_wherever_it_lies(tmp_path):
    path = image(tmp_path / "Image")
    code = path.read_bytes()
    names = LinuxNames(path)
    first, second = 0xFFFF_C79D_C4C0_0000, 0xFFFF_8000_8000_0000
    assert names.name(first + 0x40) is None
    # One of its instructions was patched at run time.
    patched = bytearray(code[0x1000:0x1100])
    patched[4:8] = b"\x1f\x20\x03\xd5"
    names.learn(first + 0x1000, bytes(patched))
    names.learn(second + 0x2000, code[0x2000:0x2100])
    assert names.name(first + 0x40 * 256 + 4) == "function_256+0x4"
    assert names.name(second + 0x40 * 257) == "function_257+0x0"
    assert names.name(second - 0x40) is None
    assert names.trouble == ""


def test_foreign_code_teaches_nothing(tmp_path):
    names = LinuxNames(image(tmp_path / "Image"))
    names.learn(0x1000, random.Random(2).randbytes(256))
    names.learn(0x1000, b"")
    names.learn(0x1000, bytes(64))
    assert names.name(0x1040) is None


@pytest.mark.parametrize("content", [b"", b"no kernel", b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00" * 3])
def test_a_file_without_tables_is_said(tmp_path, content):
    (tmp_path / "Image").write_bytes(content)
    with pytest.raises(BoardError, match="its symbols cannot be read"):
        KernelImage(tmp_path / "Image")
    names = LinuxNames(tmp_path / "Image")
    names.learn(0x1000, bytes(256))
    assert "cannot be read" in names.trouble
    assert names.name(0x1000) is None


def test_offsets_that_are_none_are_refused(tmp_path):
    with pytest.raises(BoardError, match="no table of symbols"):
        KernelImage(image(tmp_path / "Image", last_offset=0))

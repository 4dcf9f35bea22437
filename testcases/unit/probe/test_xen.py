# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypercall structures of the probe, and its image."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from framework.common.errors import BuildError, GuestError
from framework.probe.build import build_probe, compile_probe
from framework.probe.client import Probe
from framework.probe.ops import HEAP, Hypercall, Op, Write
from framework.probe.xen import (
    FREE_SPACE,
    Grant,
    balloon_in,
    balloon_out,
    grant,
    map_grant,
    unmap_grant,
)


class Xen:
    """Plays the probe: keeps what was written, answers hypercalls with ``result`` and reads with what was written."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.memory: dict[int, bytes] = {}
        self.calls: list[tuple[int, ...]] = []
        self.patch: Callable[[bytes], bytes] = bytes

    def execute(self, program: bytes, timeout_s: float) -> bytes:  # noqa: ARG002
        words = struct.unpack(f"<{len(program) // 8}Q", program)
        at, out = 0, b""
        while at < len(words):
            op, length = words[at] & 0xFFFF, words[at] >> 32
            if op == Write.opcode:
                self.memory[words[at + 1]] = program[8 * (at + 3) :][: words[at + 2]]
            elif op == Hypercall.opcode:
                self.calls.append(words[at + 1 : at + length])
                out += struct.pack("<3Q", op | 1 << 32, at, self.result)
            else:
                data = self.patch(self.memory[words[at + 1]].ljust(words[at + 2], b"\0"))
                out += struct.pack("<2Q", op | (len(data) // 8) << 32, at) + data
            at += length
        return out

    def close(self) -> None:
        pass


def test_ballooning_names_one_page() -> None:
    xen = Xen(result=1)
    probe = Probe(xen)
    balloon_out(probe, HEAP + 0x5000)
    balloon_in(probe, HEAP + 0x5000)
    assert [call[:2] for call in xen.calls] == [(12, 1), (12, 6)]
    pointer, count, order, flags, domid = struct.unpack("<QQIIH6x", xen.memory[xen.calls[0][2]])
    assert (count, order, flags, domid) == (1, 0, 0, 0x7FF0)
    assert struct.unpack("<Q", xen.memory[pointer]) == ((HEAP + 0x5000) >> 12,)


@pytest.mark.parametrize("change", [balloon_out, balloon_in])
def test_refused_ballooning_is_an_error(change: Callable[[Probe, int], None]) -> None:
    with pytest.raises(GuestError, match="Xen answered 0x0"):
        change(Probe(Xen(result=0)), HEAP)


def test_grant_entry() -> None:
    xen = Xen()
    given = grant(Probe(xen, domid=3), HEAP, 7, index=2, readonly=True)
    assert given == Grant(3, 18)
    assert struct.unpack("<HHI", xen.memory[0x38000000 + 8 * 18]) == (5, 7, HEAP >> 12)


def test_mapping_a_grant_and_back() -> None:
    xen = Xen()
    xen.patch = lambda data: data[:18] + struct.pack("<hI", 0, 77) + data[24:]
    probe = Probe(xen)
    mapping = map_grant(probe, Grant(3, 18), FREE_SPACE, readonly=True)
    assert mapping.handle == 77
    assert struct.unpack("<QIIH", xen.memory[xen.calls[0][2]][:18]) == (FREE_SPACE, 6, 18, 3)
    xen.patch = bytes
    unmap_grant(probe, mapping)
    assert struct.unpack("<QQI", xen.memory[xen.calls[1][2]][:20]) == (FREE_SPACE, 0, 77)


def test_refused_mapping_is_an_error() -> None:
    xen = Xen()
    xen.patch = lambda data: data[:18] + struct.pack("<h", -8) + data[20:]
    with pytest.raises(GuestError, match="-8"):
        map_grant(Probe(xen), Grant(3, 18), FREE_SPACE)


def test_granting_needs_a_domid() -> None:
    with pytest.raises(GuestError, match="domid"):
        grant(Probe(Xen()), HEAP, 1)


def test_the_image_is_an_arm64_image(tmp_path: Path) -> None:
    image = compile_probe(tmp_path).read_bytes()
    assert image[56:60] == b"ARM\x64"
    assert struct.unpack_from("<Q", image, 8) == (0,), "no text offset"
    assert len(image) < 64 * 1024


def test_a_build_depends_on_every_source(tmp_path: Path) -> None:
    seen: list[Mapping[str, object]] = []

    class Cache:
        def get(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
            assert name == "probe"
            seen.append(inputs)
            build(tmp_path)
            return tmp_path

    assert build_probe(Cache()).is_file()
    assert {"start.S", "exec.c", "rpc.c", "xen.c", "main.c", "probe.h", "layout.h", "link.lds"} <= set(seen[0])


def test_a_missing_compiler_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no-such-"):
        compile_probe(tmp_path, cross="no-such-")


def test_op_is_abstract() -> None:
    with pytest.raises(NotImplementedError):
        Op().operands()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The board's device tree: what dom0 must not see is gone, what Xen needs is there, and room is left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import libfdt
import pytest

from framework.board import devicetree
from framework.board.spec import BoardSpec
from framework.common.errors import BoardError

MODULES = [
    devicetree.Module("kernel", 0x5400_0000, 0x1234),
    devicetree.Module("ramdisk", 0x5800_0000, 0x5678),
]


def raw_tree() -> bytes:
    """A tree with the nodes that QEMU's `virt` machine has and that matter here."""
    tree = libfdt.FdtSw()
    tree.finish_reservemap()

    @contextmanager
    def node(name: str) -> Iterator[None]:
        tree.begin_node(name)
        yield
        tree.end_node()

    with node(""):
        for name in (
            "pl031@9010000",
            "pl061@9030000",
            "pl061@90b0000",
            "gpio-keys",
            "pcie@10000000",
            "timer",
        ):
            with node(name):
                tree.property_string("compatible", "x")
        for name in ("pl011@9000000", "pl011@9040000", "secram@e000000"):
            with node(name):
                if name != "pl011@9000000":
                    tree.property_string("status", "disabled")
                    tree.property_string("secure-status", "okay")
        with node("chosen"):
            tree.property_string("stdout-path", "/pl011@9000000")
    return bytes(tree.as_fdt().as_bytearray())


@pytest.fixture
def board() -> BoardSpec:
    return BoardSpec.load("default")


def test_devices_that_dom0_cannot_use_are_gone(board: BoardSpec) -> None:
    assert devicetree.node_names(devicetree.edit(raw_tree(), board, MODULES)) == [
        "timer",
        "pl011@9000000",
        "chosen",
    ]


def test_xen_finds_its_modules_and_command_lines(board: BoardSpec) -> None:
    tree = libfdt.FdtRo(devicetree.edit(raw_tree(), board, MODULES))
    chosen = tree.path_offset("/chosen")
    assert tree.getprop(chosen, "xen,xen-bootargs").as_str() == board.xen_bootargs
    assert tree.getprop(chosen, "xen,dom0-bootargs").as_str() == board.dom0.args
    assert tree.getprop(chosen, "#address-cells").as_uint32() == 2
    kernel = tree.path_offset("/chosen/module@54000000")
    assert bytes(tree.getprop(kernel, "compatible")) == b"multiboot,kernel\0multiboot,module\0"
    assert bytes(tree.getprop(kernel, "reg")) == bytes.fromhex("00000000540000000000000000001234")


def test_firmware_has_room_for_its_own_nodes(board: BoardSpec) -> None:
    tree = libfdt.Fdt(devicetree.edit(raw_tree(), board, MODULES))
    used = tree.off_dt_strings() + tree.size_dt_strings()
    assert tree.totalsize() - used >= 60 * 1024


def test_something_that_is_no_tree(board: BoardSpec) -> None:
    with pytest.raises(BoardError, match="cannot be edited"):
        devicetree.edit(b"not a tree" * 10, board, MODULES)


def test_qemus_refusal_comes_through() -> None:
    refuse = "import sys; sys.exit('unsupported machine type')"
    with pytest.raises(BoardError, match=r"exit status 1.*unsupported machine type"):
        devicetree.dump((sys.executable, "-c", refuse), "virt", "cortex-a53", 2, 1024)

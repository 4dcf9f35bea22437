# SPDX-License-Identifier: GPL-2.0-or-later
"""The board's device tree: QEMU's own, without what dom0 must not see, with what Xen needs to boot.

TF-A receives this tree from QEMU at the base of RAM, OP-TEE adds ``/firmware/optee`` and its reserved
memory, and Xen finds dom0's kernel and ramdisk in ``/chosen`` (docs/misc/arm/device-tree/booting.txt of the
Xen source).
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import libfdt

from framework.board.spec import BoardSpec
from framework.common.errors import BoardError

_PADDING = 64 * 1024
"""Bytes of room for what TF-A and OP-TEE add to the tree in place."""

# dom0 takes an external abort in amba_read_periphid on the PrimeCell devices that Xen does not map for it,
# and pcie and platform-bus only cost it time. Secure-only nodes are caught by their status, whatever their
# name.
_UNWANTED = re.compile(r"(pl031|pl061|gpio-keys|gpio-poweroff|gpio-restart|pcie|platform-bus|flash|fw-cfg)(@|$)")


@dataclass(frozen=True)
class Module:
    """A file that QEMU loads into RAM for Xen: ``kind`` is ``kernel`` or ``ramdisk``, address and size in
    bytes."""

    kind: str
    address: int
    size: int


@lru_cache(maxsize=32)
def dump(argv: tuple[str, ...], machine: str, cpu: str, smp: int, memory_mib: int) -> bytes:
    """Ask QEMU (started by ``argv``) for the tree of a machine line; one run per machine line and process.

    Raises BoardError with QEMU's own words when it refuses the line.
    """
    with tempfile.TemporaryDirectory(prefix="medcheck-dtb-") as folder:
        target = Path(folder) / "machine.dtb"
        command = [
            *argv, "-machine", f"{machine},dumpdtb={target}", "-cpu", cpu, "-smp", str(smp),
            "-m", str(memory_mib), "-nodefaults", "-display", "none",
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0 or not target.exists():
            text = done.stderr.decode(errors="replace").strip()
            raise BoardError(
                f"QEMU does not describe the machine (exit status {done.returncode}): {text}",
                where=f"-machine {machine} -cpu {cpu} -smp {smp} -m {memory_mib}",
            )
        return target.read_bytes()


def edit(raw: bytes, spec: BoardSpec, modules: Sequence[Module]) -> bytes:
    """Return the tree a board boots with, made from the machine's own tree ``raw``.

    Raises BoardError when ``raw`` is not a device tree.
    """
    try:
        tree = libfdt.Fdt(raw)
        tree.pack()
        tree.resize(tree.totalsize() + _PADDING)
        _remove_unwanted(tree)
        _describe_boot(tree, spec, modules)
        return bytes(tree.as_bytearray())
    except libfdt.FdtException as error:
        raise BoardError(f"the device tree cannot be edited: {error}", where=f"board {spec.name}") from error


def node_names(blob: bytes) -> list[str]:
    """Return the names of the nodes right below the root, for tests and for people."""
    tree = libfdt.FdtRo(blob)
    return [tree.get_name(offset) for offset in _children(tree, 0)]


def _children(tree: libfdt.FdtRo, parent: int) -> Iterator[int]:
    offset = tree.first_subnode(parent, libfdt.QUIET_NOTFOUND)
    while offset >= 0:
        yield offset
        offset = tree.next_subnode(offset, libfdt.QUIET_NOTFOUND)


def _remove_unwanted(tree: libfdt.Fdt) -> None:
    # Offsets move when a node goes, so names are collected first and looked up one at a time.
    names = [tree.get_name(offset) for offset in _children(tree, 0) if _is_unwanted(tree, offset)]
    for name in names:
        tree.del_node(tree.path_offset(f"/{name}"))


def _is_unwanted(tree: libfdt.FdtRo, offset: int) -> bool:
    if _UNWANTED.match(tree.get_name(offset)):
        return True
    status = tree.getprop(offset, "status", libfdt.QUIET_NOTFOUND)
    # Secure-only nodes carry status="disabled" beside secure-status="okay" (QEMU hw/arm/virt.c).
    return not isinstance(status, int) and status.as_str() == "disabled"


def _describe_boot(tree: libfdt.Fdt, spec: BoardSpec, modules: Sequence[Module]) -> None:
    chosen = tree.path_offset("/chosen")
    tree.setprop_str(chosen, "xen,xen-bootargs", spec.xen_bootargs)
    tree.setprop_str(chosen, "xen,dom0-bootargs", spec.dom0.args)
    tree.setprop_u32(chosen, "#address-cells", 2)
    tree.setprop_u32(chosen, "#size-cells", 2)
    for module in modules:
        node = tree.add_subnode(tree.path_offset("/chosen"), f"module@{module.address:x}")
        tree.setprop(node, "compatible", f"multiboot,{module.kind}\0multiboot,module\0".encode())
        tree.setprop(node, "reg", struct.pack(">QQ", module.address, module.size))

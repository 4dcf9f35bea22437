# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen source tree of the user's own: its version, the numbers of its interfaces, and patches to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from framework.artifacts.source_tree import File, SourceTree, TreeKind, read_files
from framework.artifacts.xen_patch import apply_patch

_KIND = TreeKind(
    "Xen",
    "--xen-tree",
    ("xen/Makefile", "xen/include/public/domctl.h", "xen/include/public/sysctl.h", "xen/arch/arm/Makefile"),
    re.compile(
        r"(^|/)(\.[^/]*\.(d|d2|cmd|tmp)|[^/]*\.(o|a|opic|pyc|gcno)|[^/]*\.so(\.\d+)*|config\.(log|status|cache))$"
        r"|^xen/(include/(generated|config)/|xen-syms[^/]*$|xen(\.gz|\.efi)?$|\.config)"
    ),
)


@dataclass(frozen=True)
class XenSource(SourceTree):
    """The files of one Xen tree."""

    @property
    def release(self) -> str:
        """The release, such as ``4.17``."""
        return ".".join(self._make_variable(name) for name in ("XEN_VERSION", "XEN_SUBVERSION"))

    @property
    def version(self) -> str:
        """The whole version, such as ``4.17.5`` or ``4.23-unstable``."""
        return self.release + self._make_variable("XEN_EXTRAVERSION").split("$", 1)[0]

    @property
    def interfaces(self) -> tuple[int, int]:
        """The numbers of the domctl and sysctl interfaces; 0 for one that cannot be found."""
        found = []
        for name in ("domctl", "sysctl"):
            text = self.files[f"xen/include/public/{name}.h"].data.decode(errors="replace")
            match = re.search(rf"^#define XEN_{name.upper()}_INTERFACE_VERSION\s+(0x[0-9a-fA-F]+)", text, re.M)
            found.append(int(match[1], 16) if match else 0)
        return found[0], found[1]

    def patched(self, patches: Sequence[Path]) -> XenSource:
        """The tree with patches applied, in memory.

        :raises UsageError: one does not apply; the text says where, and what stands there instead.
        """
        files = dict(self.files)
        for patch in patches:
            files = apply_patch(files, patch, File)
        return replace(self, files=files)

    def _make_variable(self, name: str) -> str:
        text = self.files["xen/Makefile"].data.decode(errors="replace")
        match = re.search(rf"^export\s+{name}\s*\??:?=\s*(\S*)", text, re.M)
        return match[1] if match else ""


def read_tree(folder: Path, rev: str | None = None, say: Callable[[str], None] = lambda _text: None) -> XenSource:
    """Read a tree as :func:`~framework.artifacts.source_tree.read_files` does.

    :raises UsageError: the folder is no Xen tree, or has no such commit.
    :raises InfrastructureError: files change all the time while they are read.
    """
    source = XenSource(folder, *read_files(_KIND, folder, rev, say))
    if not re.fullmatch(r"\d+\.\d+", source.release):
        raise _KIND.refuse(folder, rev, "no version in xen/Makefile")
    return source

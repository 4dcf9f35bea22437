# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen tree small enough for a test: what tells one, a mediator, and a git repository if it is wanted."""

from __future__ import annotations

import subprocess
from pathlib import Path

OPTEE = "/* mediator */\nint optee(int a)\n{\n    if ( a )\n        return -22;\n    return 0;\n}\n"
_FILES = {
    "xen/Makefile": "export XEN_VERSION       = 4\nexport XEN_SUBVERSION    = 17\n"
    "export XEN_EXTRAVERSION ?= .5$(XEN_VENDORVERSION)\n",
    "xen/include/public/domctl.h": "#define XEN_DOMCTL_INTERFACE_VERSION 0x00000015\n",
    "xen/include/public/sysctl.h": "#define XEN_SYSCTL_INTERFACE_VERSION 0x00000015\n",
    "xen/arch/arm/Makefile": "obj-y += tee/\n",
    "xen/arch/arm/configs/arm64_defconfig": "",
    "xen/arch/arm/tee/optee.c": OPTEE,
    "tools/xl/Makefile": "all:\n",
    "docs/index": "\n",
    "Config.mk": "\n",
    ".gitignore": "*.o\n",
}


def make_tree(folder: Path, **changes: str | None) -> Path:
    """Write the tree; ``changes`` are other contents by path with ``__`` for ``/``; None leaves a file out."""
    files: dict[str, str | None] = {**_FILES, **{name.replace("__", "/"): text for name, text in changes.items()}}
    for name, text in files.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def git(folder: Path, *words: str) -> str:
    """Run git in the tree."""
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout


def commit(folder: Path, *, tag: str | None = None) -> Path:
    """Make the tree a repository, or its state the next commit of one."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "state")
    if tag:
        git(folder, "tag", tag)
    return folder

# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU with its own C library and loader: runs on any x86-64 Linux, whatever the host has installed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.artifacts.lock import Lock
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_deb
from framework.common.errors import ArtifactError

GROUP = "qemu"
PACKAGE = "qemu-system-arm"
PROGRAM = "qemu-system-aarch64"

_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_WANTED = re.compile(rf"usr/bin/{PROGRAM}|usr/lib64/.*|{_LIBRARIES}(?:/[^/]+\.so[^/]*)?")


@dataclass(frozen=True)
class QemuBundle:
    """A QEMU below ``root``; ``version`` is upstream's, such as ``11.1.3``.

    Its process is named after the loader, so track it by process id, never by name.
    """

    root: Path
    version: str

    def argv(self, program: str = PROGRAM) -> list[str]:
        """The beginning of a command line that runs ``program``: only the bundle's libraries are used."""
        executable = self.root / "usr/bin" / program
        if not executable.is_file():
            raise ArtifactError(f"the QEMU bundle has no {program}", where=str(self.root))
        loader, libraries = self.root / _LOADER, self.root / _LIBRARIES
        own = ["--inhibit-cache", "--library-path", str(libraries), "--argv0", program]
        return [str(loader), *own, str(executable)]

    @staticmethod
    def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """``environ`` without what makes the loader take the host's libraries into the process."""
        return {key: value for key, value in environ.items() if not key.startswith("LD_")}


def qemu_bundle(store: Store, lock: Lock, cache: BuildCache) -> QemuBundle:
    """The pinned QEMU, unpacked into the cache when it is not there yet.

    :raises ArtifactError: a package cannot be had, or is no QEMU.
    """
    pins = lock.group(GROUP)
    version = next((pin.version for pin in pins if pin.name.split("/")[-1] == PACKAGE), None)
    if version is None:
        raise ArtifactError(f"group {GROUP} of the lock file has no {PACKAGE}", where=str(lock.path))

    def build(folder: Path) -> None:
        paths = store.fetch(pins)
        for pin in pins:
            unpack_deb(paths[pin.name], folder, lambda name: _WANTED.fullmatch(name) is not None)
        for needed in (_LOADER, f"usr/bin/{PROGRAM}"):
            if not (folder / needed).exists():
                raise ArtifactError(f"the pinned packages have no {needed}", where=str(lock.path))

    inputs = {"packages": [pin.sha256 for pin in pins], "members": _WANTED.pattern}
    return QemuBundle(cache.get("qemu", inputs, build), _upstream(version))


def _upstream(version: str) -> str:
    """``11.1.3`` of ``1:11.1.3+ds-1~bpo13+1``."""
    return re.sub(r"[+~-].*", "", version.split(":", 1)[-1])

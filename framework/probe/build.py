# SPDX-License-Identifier: GPL-2.0-or-later
"""Build of the probe guest's image from ``images/probe`` by the cross compiler."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from framework.common.errors import BuildError
from framework.common.paths import IMAGES

SOURCES = IMAGES / "probe"
IMAGE_NAME = "probe.img"
SYMBOLS_NAME = "probe.elf"
_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-builtin",
    # Or the compiler makes memset() call itself.
    "-fno-tree-loop-distribute-patterns",
    "-fno-stack-protector",
    "-fno-pic",
    "-no-pie",
    "-mgeneral-regs-only",
    "-mcpu=cortex-a53",
    "-mno-outline-atomics",
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-T,link.lds",
)


class Cache(Protocol):
    """The part of :class:`framework.artifacts.cache.BuildCache` that is used here."""

    def get(self, name: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The folder that ``build`` fills, from the cache when the inputs are the same."""
        ...


def build_probe(cache: Cache, *, cross: str = "aarch64-linux-gnu-") -> Path:
    """The flat arm64 Image of the probe guest, a few KiB. Raises BuildError when the compiler is missing."""

    def build(folder: Path) -> None:
        compile_probe(folder, cross=cross)

    sources = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCES.iterdir())}
    inputs = {"compiler": _run([f"{cross}gcc", "--version"]).split("\n")[0], "flags": list(_FLAGS), **sources}
    return cache.get("probe", inputs, build) / IMAGE_NAME


def compile_probe(folder: Path, *, cross: str = "aarch64-linux-gnu-") -> Path:
    """Compile into ``folder``: the image, and beside it the ELF file with symbols. The image's path."""
    sources = sorted(path.name for path in SOURCES.iterdir() if path.suffix in (".c", ".S"))
    symbols, image = folder.absolute() / SYMBOLS_NAME, folder.absolute() / IMAGE_NAME
    _run([f"{cross}gcc", *_FLAGS, "-o", str(symbols), *sources])
    _run([f"{cross}objcopy", "-O", "binary", str(symbols), str(image)])
    return image


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"cannot run {command[0]}: {error.strerror}",
            hint="install gcc-aarch64-linux-gnu; `./medcheck doctor` lists all that is needed",
        ) from error
    if done.returncode:
        raise BuildError(f"the probe guest does not compile:\n{done.stderr.strip()}", where=command[0])
    return done.stdout

# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds of OP-TEE OS, TF-A and Xen from their pinned sources, as ``images/firmware.yaml`` describes them.

Each build is a function of (sources, configuration, patches, compiler) and is cached under the hash of all of them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.lock import Lock, Pin
from framework.artifacts.make import CROSS, MAKE_KEY, XEN_IDENTITY, compiler_version, run_make
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_source
from framework.common.errors import BuildError
from framework.common.paths import IMAGES
from framework.common.progress import Progress

OPTEE_FILES = ("tee-header_v2.bin", "tee-pager_v2.bin", "tee-pageable_v2.bin")
_FIP_OFFSET = 256 * 1024
_FLASH_SIZE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Builder:
    """Builds firmware and hypervisor; every method returns a folder that holds finished files."""

    store: Store
    lock: Lock
    cache: BuildCache
    progress: Progress

    def optee(self, **changes: object) -> Path:
        """OP-TEE OS: the three ``tee-*_v2.bin`` files that TF-A packs. ``changes`` are make variables that differ."""
        recipe = FirmwareConfig.load().optee
        make = {**recipe.make, **changes}

        def build(out: Path) -> None:
            source = self._source(recipe.group, out, recipe.patches)
            variables = {
                **make,
                "O": str(out / "o"),
                "CROSS_COMPILE64": CROSS,
                "CROSS_COMPILE_core": CROSS,
                "CROSS_COMPILE_ta_arm64": CROSS,
            }
            self._make("OP-TEE OS", source, variables, [["all"]], out)
            for name in OPTEE_FILES:
                shutil.move(out / "o/core" / name, out / name)
            shutil.move(out / "o/core/tee.elf", out / "tee.elf")
            _drop(source, out / "o")

        return self._cached("optee-os", recipe.group, {"make": make}, recipe.patches, build)

    def flash(self, optee: Path) -> Path:
        """The secure flash: TF-A's BL1 and, at 256 KiB, the FIP with BL2, BL31 and the OP-TEE of folder ``optee``."""
        recipe = FirmwareConfig.load().tfa
        blobs = {name: optee / name for name in OPTEE_FILES}

        def build(out: Path) -> None:
            source = self._source(recipe.group, out, recipe.patches)
            variables = {
                **recipe.make,
                "BUILD_BASE": str(out / "b"),
                "CROSS_COMPILE": CROSS,
                "BUILD_MESSAGE_TIMESTAMP": '"reproducible"',
                **dict(zip(("BL32", "BL32_EXTRA1", "BL32_EXTRA2"), map(str, blobs.values()), strict=True)),
            }
            self._make("TF-A", source, variables, [["all", "fip"]], out)
            built = next((out / "b/qemu").iterdir())
            with (out / "flash.bin").open("wb") as flash:
                flash.write((built / "bl1.bin").read_bytes())
                flash.seek(_FIP_OFFSET)
                flash.write((built / "fip.bin").read_bytes())
                flash.truncate(_FLASH_SIZE)
            _drop(source, out / "b")

        return self._cached("tfa-flash", recipe.group, {"make": recipe.make, "optee": blobs}, recipe.patches, build)

    def xen(self, variant: str) -> Path:
        """Xen: the image ``xen`` and ``xen-syms`` with symbols and DWARF; ``variant`` is debug or release."""
        recipe = FirmwareConfig.load().xen
        lines = [*recipe.config, *recipe.variants[variant]]

        def build(out: Path) -> None:
            source = self._source(recipe.group, out)
            defconfig = source / "xen/arch/arm/configs/medcheck_defconfig"
            defconfig.write_text("".join(f"{line}\n" for line in lines))
            variables = {
                "XEN_TARGET_ARCH": "arm64",
                "CROSS_COMPILE": CROSS,
                **XEN_IDENTITY,
            }
            self._make(f"Xen ({variant})", source / "xen", variables, [["medcheck_defconfig"], ["xen"]], out)
            shutil.move(source / "xen/xen", out / "xen")
            shutil.move(source / "xen/xen-syms", out / "xen-syms")
            _drop(source)

        return self._cached(f"xen-{variant}", recipe.group, {"config": lines}, (), build)

    def version(self, group: str) -> str:
        """The version of the pinned source that ``group`` names."""
        return self.lock.group(group)[0].version

    def _cached(
        self, name: str, group: str, config: Mapping[str, object], patches: Sequence[str], build: Callable[[Path], None]
    ) -> Path:
        inputs = {
            "sources": [pin.sha256 for pin in self.lock.group(group)],
            "config": config,
            "patches": [IMAGES / patch for patch in patches],
            "epoch": FirmwareConfig.load().epoch,
            "compiler": compiler_version(),
            "make": MAKE_KEY,
            "recipe": Path(__file__),
        }
        return self.cache.get(name, inputs, build)

    def _source(self, group: str, out: Path, patches: Sequence[str] = ()) -> Path:
        pins = self.lock.group(group)
        paths = self.store.fetch(pins)
        orig, debian = (
            next(paths[pin.name] for pin in pins if mark in pin.path) for mark in (".orig.tar", ".debian.tar")
        )
        unpack_source(orig, debian, out / "source")
        for patch in patches:
            _patch(out / "source", IMAGES / patch)
        return out / "source"

    def _make(
        self, title: str, folder: Path, variables: Mapping[str, object], steps: Sequence[Sequence[str]], out: Path
    ) -> None:
        run_make(title, folder, variables, steps, out / "build.log", self.progress)


def pins_of_builds(lock: Lock) -> list[Pin]:
    """All pins that the builds need."""
    return [pin for group in FirmwareConfig.load().groups for pin in lock.group(group)]


def _patch(source: Path, patch: Path) -> None:
    result = subprocess.run(
        ["patch", "-s", "-p1", "-i", str(patch)], cwd=source, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise BuildError(f"the patch does not apply: {result.stdout.strip()}", where=str(patch))


def _drop(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder)

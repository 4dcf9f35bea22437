"""Builds of OP-TEE OS, TF-A and Xen from their pinned sources, as ``images/firmware.yaml`` describes them.

Each build is a function of (sources, configuration, patches, compiler) and is cached under the hash of all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from framework.artifacts.cache import BuildCache
from framework.artifacts.lock import Lock, Pin
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_source
from framework.errors import BuildError, ConfigError, InfrastructureError
from framework.paths import IMAGES
from framework.progress import Progress

CROSS = "aarch64-linux-gnu-"
XEN_VARIANTS = ("debug", "release")
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
        pinned = _configuration()["optee"]
        config = {**pinned, "make": {**pinned["make"], **changes}}

        def build(out: Path) -> None:
            source = self._source(config["group"], out)
            variables = {
                **config["make"],
                "O": str(out / "o"),
                "CROSS_COMPILE64": CROSS,
                "CROSS_COMPILE_core": CROSS,
                "CROSS_COMPILE_ta_arm64": CROSS,
            }
            self._make("OP-TEE OS", source, variables, ["all"], out)
            for name in OPTEE_FILES:
                shutil.move(out / "o/core" / name, out / name)
            shutil.move(out / "o/core/tee.elf", out / "tee.elf")
            _drop(source, out / "o")

        return self._cached("optee-os", config, build)

    def flash(self, optee: Path) -> Path:
        """The secure flash: TF-A's BL1 and, at 256 KiB, the FIP with BL2, BL31 and the OP-TEE of folder ``optee``."""
        config = _configuration()["tfa"]
        missing = [name for name in OPTEE_FILES if not (optee / name).is_file()]
        if missing:
            raise InfrastructureError(
                f"no {', '.join(missing)}", where=str(optee),
                hint="--optee takes the folder out/core of an OP-TEE OS build (tee-header_v2.bin and its siblings)",
            )  # fmt: skip
        blobs = {name: optee / name for name in OPTEE_FILES}

        def build(out: Path) -> None:
            source = self._source(config["group"], out)
            for patch in config["patches"]:
                _patch(source, IMAGES / patch)
            variables = {
                **config["make"],
                "BUILD_BASE": str(out / "b"),
                "CROSS_COMPILE": CROSS,
                "BUILD_MESSAGE_TIMESTAMP": '"reproducible"',
                **dict(zip(("BL32", "BL32_EXTRA1", "BL32_EXTRA2"), map(str, blobs.values()), strict=True)),
            }
            self._make("TF-A", source, variables, ["all", "fip"], out)
            built = next((out / "b/qemu").iterdir())
            with (out / "flash.bin").open("wb") as flash:
                flash.write((built / "bl1.bin").read_bytes())
                flash.seek(_FIP_OFFSET)
                flash.write((built / "fip.bin").read_bytes())
                flash.truncate(_FLASH_SIZE)
            _drop(source, out / "b")

        return self._cached("tfa-flash", {**config, "optee": blobs}, build)

    def xen(self, variant: str) -> Path:
        """Xen: the image ``xen`` and ``xen-syms`` with symbols and DWARF; ``variant`` is debug or release."""
        config = _configuration()["xen"]
        lines: Sequence[str] = [*config["config"], *config["variants"][variant]]

        def build(out: Path) -> None:
            source = self._source(config["group"], out)
            defconfig = source / "xen/arch/arm/configs/medcheck_defconfig"
            defconfig.write_text("".join(f"{line}\n" for line in lines))
            variables = {
                "XEN_TARGET_ARCH": "arm64",
                "CROSS_COMPILE": CROSS,
                "XEN_BUILD_DATE": "reproducible",
                "XEN_BUILD_TIME": "00:00:00",
                "XEN_BUILD_HOST": "medcheck",
                "XEN_WHOAMI": "medcheck",
                "XEN_DOMAIN": "medcheck",
            }
            self._make(f"Xen ({variant})", source / "xen", variables, ["medcheck_defconfig"], out)
            self._make(f"Xen ({variant})", source / "xen", variables, ["xen"], out)
            shutil.move(source / "xen/xen", out / "xen")
            shutil.move(source / "xen/xen-syms", out / "xen-syms")
            _drop(source)

        return self._cached(f"xen-{variant}", {"group": config["group"], "config": lines}, build)

    def version(self, group: str) -> str:
        """The version of the pinned source that ``group`` names."""
        return self.lock.group(group)[0].version

    def _cached(self, name: str, config: Mapping[str, object], build: Any) -> Path:
        pins = self.lock.group(str(config["group"]))
        inputs = {
            "sources": [pin.sha256 for pin in pins],
            "config": {key: value for key, value in config.items() if key != "patches"},
            "patches": [IMAGES / str(patch) for patch in config.get("patches", [])],  # type: ignore[attr-defined]
            "epoch": _configuration()["source_date_epoch"],
            "compiler": compiler_version(),
            "recipe": Path(__file__),
        }
        return self.cache.get(name, inputs, build)

    def _source(self, group: str, out: Path) -> Path:
        paths = self.store.fetch(self.lock.group(group))
        archives = [paths[pin.name] for pin in self.lock.group(group) if not pin.path.endswith(".dsc")]
        names = {path: pin for pin in self.lock.group(group) for path in [paths[pin.name]]}
        orig = next(path for path in archives if ".orig.tar" in names[path].path)
        debian = next(path for path in archives if ".debian.tar" in names[path].path)
        unpack_source(orig, debian, out / "source")
        return out / "source"

    def _make(
        self, title: str, folder: Path, variables: Mapping[str, object], targets: Sequence[str], out: Path
    ) -> None:
        words = [f"{key}={value}" for key, value in variables.items()]
        jobs = len(os.sched_getaffinity(0))
        command = ["make", "-s", f"-j{jobs}", *words, *targets]
        environment = {
            **os.environ,
            # OP-TEE's scripts run `python3` and need this environment's pyelftools and cryptography.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "SOURCE_DATE_EPOCH": str(_configuration()["source_date_epoch"]),
            "LC_ALL": "C",
        }
        environment.pop("MAKEFLAGS", None)
        log = out / "build.log"
        with self.progress.task(f"building {title}"), log.open("ab") as sink:
            result = subprocess.run(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False
            )
        if result.returncode != 0:
            tail = log.read_bytes()[-2000:].decode(errors="replace").splitlines()[-12:]
            raise BuildError(
                f"building {title} failed (make exited with {result.returncode}):\n    " + "\n    ".join(tail),
                hint="`./medcheck doctor` checks the compilers; the log is kept in the cache's logs folder",
            )


def compiler_version() -> str:
    """The first line that the cross compiler prints about itself; part of every build's key."""
    try:
        result = subprocess.run([f"{CROSS}gcc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"the cross compiler {CROSS}gcc does not run: {error}",
            hint="install gcc-aarch64-linux-gnu; `./medcheck doctor` lists all that is needed",
        ) from error
    return result.stdout.splitlines()[0]


def pins_of_builds(lock: Lock) -> list[Pin]:
    """All pins that the builds need."""
    config = _configuration()
    return [pin for part in ("optee", "tfa", "xen") for pin in lock.group(config[part]["group"])]


def _configuration() -> dict[str, Any]:
    path = IMAGES / "firmware.yaml"
    loaded = yaml.safe_load(path.read_text())
    if not isinstance(loaded, dict):
        raise ConfigError("expected a mapping", where=f"{path}:1")
    return loaded


def _patch(source: Path, patch: Path) -> None:
    result = subprocess.run(
        ["patch", "-s", "-p1", "-i", str(patch)], cwd=source, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise BuildError(f"the patch does not apply: {result.stdout.strip()}", where=str(patch))


def _drop(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The stack under test: every file that a board loads, with its version, hash and origin.

:func:`prepare` fetches, builds and assembles whatever is missing; what the user brings replaces the pinned part.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts import cpio
from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import Builder, pins_of_builds
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.keys import GuestKeys, guard, guest_keys
from framework.artifacts.lock import Lock, Pin
from framework.artifacts.optee import Optee, frozen_optee, provide_optee
from framework.artifacts.overrides import Overrides as Overrides
from framework.artifacts.qemu_bundle import QemuBundle, qemu_bundle
from framework.artifacts.rootfs import Recipe, RootFs, assemble
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_deb
from framework.artifacts.user_files import XTEST, check
from framework.artifacts.xen import Xen, frozen, provide
from framework.artifacts.xen_tools import XL
from framework.common.digest import sha256_file
from framework.common.paths import IMAGES
from framework.common.progress import Progress, Silent

_GUESTS = ("dom0", "domu")
_DOM0 = "dom0.cpio"
_CODE = ("stack.py", "rootfs.py", "cpio.py", "elf.py", "guest_path.py", "kernel_modules.py")
"""What makes the guests' images, beside the recipes."""


@dataclass(frozen=True)
class Component:
    """One part of the stack, for the report. ``origin`` is ``pinned``, ``built`` or ``user``."""

    name: str
    version: str
    sha256: str
    origin: str


@dataclass(frozen=True)
class Stack:
    """All files of one board. ``xen_syms`` is None if the user brought a Xen without symbols."""

    qemu: QemuBundle
    flash: Path
    xen: Path
    xen_syms: Path | None
    kernel: Path
    dom0_ramdisk: Path
    domu_kernel: str
    domu_ramdisk: str
    keys: GuestKeys
    components: tuple[Component, ...]
    hypervisor: Xen
    optee: Optee

    @property
    def said(self) -> tuple[str, ...]:
        """The sentences that a user should read before anything boots."""
        return self.hypervisor.said + self.optee.said

    def frozen(self, overrides: Overrides) -> Overrides:
        """The ``overrides`` that this stack was made of, by files instead of trees: whatever becomes of those."""
        return frozen_optee(frozen(overrides, self.hypervisor), self.optee)

    @property
    def ssh_key(self) -> Path:
        """The client's private key for every guest."""
        return self.keys.client


def all_pins(lock: Lock) -> list[Pin]:
    """Every pin that a run needs: what ``medcheck fetch`` downloads."""
    groups = [Recipe.load(IMAGES / f"rootfs/{name}.yaml").groups for name in _GUESTS]
    tools = FirmwareConfig.load().xen.tools.group
    names = dict.fromkeys(["qemu", tools, *(name for group in groups for name in group)])
    return list(dict.fromkeys([pin for name in names for pin in lock.group(name)] + pins_of_builds(lock)))


def prepare(
    root: Path,
    store: Store,
    lock: Lock,
    overrides: Overrides | None = None,
    progress: Progress | None = None,
    *,
    cpu: str | None = None,
) -> Stack:
    """Fetch, build and assemble the stack below the cache folder ``root``. ``cpu`` is the CPU of the board that it is
    for, as QEMU names it; None: not known yet.

    :raises UsageError: a file the user brought is not what it should be.
    :raises ArtifactError, BuildError: something cannot be fetched or built.
    """
    progress = progress or Silent()
    overrides = overrides or Overrides()
    recipes = {name: Recipe.load(IMAGES / f"rootfs/{name}.yaml") for name in _GUESTS}
    check(overrides, [module for recipe in recipes.values() for module in recipe.modules], cpu)
    store.fetch(all_pins(lock))
    cache = BuildCache(root)
    builder = Builder(store, lock, cache, progress)
    bundle = qemu_bundle(store, lock, cache)
    optee = provide_optee(overrides, builder)
    flash = builder.flash(optee.folder) / "flash.bin"
    xen = provide(overrides, builder)
    keys = guest_keys(root / "ssh")
    images = _images(recipes, store, lock, cache, overrides, xen.tools.folder, keys, progress)
    components = (
        Component("QEMU", bundle.version, sha256_file(Path(bundle.argv()[-1])), "pinned"),
        Component("TF-A", builder.version("tfa-source"), sha256_file(flash), "built"),
        Component("OP-TEE OS", optee.version, sha256_file(optee.folder / "tee-pager_v2.bin"), optee.origin),
        Component(xen.title, xen.version, sha256_file(xen.image), xen.origin),
        Component("Xen's tools", xen.tools.version, sha256_file(xen.tools.folder / XL), xen.tools.origin),
        _component("Linux", lock.group("kernel")[0].version, images / "Image", overrides.kernel, "pinned"),
        _component("xtest", lock.pins["optee-test-qemu"].version, images / "xtest", overrides.xtest_root, "pinned"),
        Component("dom0 image", "recipe", sha256_file(images / _DOM0), "built"),
    )
    return Stack(
        bundle, flash, xen.image, xen.symbols, images / "Image", images / _DOM0,
        "/boot/domu/Image", "/boot/domu/ramdisk", keys, components, xen, optee,
    )  # fmt: skip


def _images(
    recipes: Mapping[str, Recipe], store: Store, lock: Lock, cache: BuildCache, overrides: Overrides, tools: Path,
    keys: GuestKeys, progress: Progress,
) -> Path:  # fmt: skip
    """The kernel, dom0's ramdisk (with the domUs' kernel and ramdisk in it) and xtest, in one cached folder."""
    groups = dict.fromkeys(group for recipe in recipes.values() for group in recipe.groups)
    pins = {group: lock.group(group) for group in groups}

    def build(out: Path) -> None:
        with progress.task("assembling dom0 and domU", total=3) as task:
            unpacked = {group: _unpack(store, pins[group], out / "unpacked" / group) for group in groups}
            task.advance()
            kernel = overrides.kernel or next(unpacked["kernel"].glob("boot/vmlinuz-*"))
            shutil.copyfile(kernel, out / "Image")
            domu = _rootfs(recipes["domu"], unpacked, overrides, keys)
            (out / "xtest").write_bytes(domu.entries[XTEST].data)
            domu_ramdisk = io.BytesIO()
            cpio.write(domu.entries, domu_ramdisk)
            task.advance()
            dom0 = _rootfs(recipes["dom0"], unpacked, overrides, keys, [tools])
            dom0.add("boot/domu/Image", cpio.regular((out / "Image").read_bytes()))
            dom0.add("boot/domu/ramdisk", cpio.regular(domu_ramdisk.getvalue()))
            # It has the guests' private host key in it from the first byte on.
            (out / _DOM0).touch(0o600)
            with (out / _DOM0).open("wb") as stream:
                cpio.write(dom0.entries, stream)
            shutil.rmtree(out / "unpacked")
            task.advance()

    here = Path(__file__).parent
    inputs = {
        "pins": {group: [pin.sha256 for pin in pins[group]] for group in groups},
        "recipes": IMAGES / "rootfs",
        "code": [here / name for name in _CODE],
        "tools": tools / "usr",
        "keys": [keys.client_public, keys.host_public],
        "user": [path for path in (overrides.kernel, overrides.kernel_modules, overrides.xtest_root) if path],
    }
    images = cache.get("images", inputs, build)
    guard(images / _DOM0)
    return images


def _rootfs(
    recipe: Recipe, unpacked: dict[str, Path], overrides: Overrides, keys: GuestKeys, first: Sequence[Path] = ()
) -> RootFs:
    """``first`` are folders that are searched before all packages."""
    groups = [group for group in recipe.groups if group != "kernel" or overrides.kernel is None]
    packages = [*first, *(unpacked[group] for group in groups)]
    if overrides.xtest_root and "xtest" in recipe.groups:
        packages.insert(0, overrides.xtest_root)
    if overrides.kernel_modules:
        packages.append(overrides.kernel_modules)
    if overrides.kernel and not overrides.kernel_modules:
        # A kernel of one's own with no modules beside it has all that it needs built in.
        recipe = Recipe(**{**recipe.__dict__, "modules": ()})
    brought = ((overrides.xtest_root, "--xtest-root"), (overrides.kernel_modules, "--kernel-modules"))
    given = {folder: option for folder, option in brought if folder is not None}
    root = assemble(recipe, packages, IMAGES / "rootfs" / recipe.name, given)
    root.add("root", cpio.directory(0o700))
    root.add("root/.ssh", cpio.directory(0o700))
    root.add("root/.ssh/authorized_keys", cpio.regular(keys.client_public.read_bytes(), 0o600))
    root.add("etc/dropbear/dropbear_ed25519_host_key", cpio.regular(keys.host.read_bytes(), 0o600))
    return root


def _unpack(store: Store, pins: Sequence[Pin], folder: Path) -> Path:
    paths = store.fetch(pins)
    for pin in pins:
        unpack_deb(paths[pin.name], folder)
    return folder


def _component(name: str, version: str, path: Path, user: object | None, pinned: str = "built") -> Component:
    return Component(name, "user's" if user else version, sha256_file(path), "user" if user else pinned)

"""The stack under test: every file that a board loads, with its version, hash and origin.

:func:`prepare` fetches, builds and assembles whatever is missing; what the user brings replaces the pinned part.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts import cpio, elf
from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import OPTEE_FILES, Builder, pins_of_builds
from framework.artifacts.firmware_config import XEN_VARIANTS, FirmwareConfig
from framework.artifacts.keys import GuestKeys, guest_keys
from framework.artifacts.lock import Lock, Pin
from framework.artifacts.overrides import Overrides as Overrides
from framework.artifacts.qemu_bundle import QemuBundle, qemu_bundle
from framework.artifacts.rootfs import Recipe, RootFs, assemble
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_deb
from framework.artifacts.xen import Xen, provide
from framework.artifacts.xen_tools import XL
from framework.common.digest import sha256_file
from framework.common.errors import UsageError
from framework.common.paths import IMAGES
from framework.common.progress import Progress, Silent

_GUESTS = ("dom0", "domu")
_IMAGE_MAGIC = (0x38, b"ARMd")
_FOLDERS = ("optee", "kernel_modules", "xtest_root", "xen_tree", "xen_tools")

_XTEST = "usr/bin/xtest"


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
    root: Path, store: Store, lock: Lock, overrides: Overrides | None = None, progress: Progress | None = None
) -> Stack:
    """Fetch, build and assemble the stack below the cache folder ``root``.

    :raises UsageError: a file the user brought is not what it should be.
    :raises ArtifactError, BuildError: something cannot be fetched or built.
    """
    progress = progress or Silent()
    overrides = overrides or Overrides()
    _check(overrides)
    store.fetch(all_pins(lock))
    cache = BuildCache(root)
    builder = Builder(store, lock, cache, progress)
    bundle = qemu_bundle(store, lock, cache)
    optee = overrides.optee or builder.optee()
    flash = builder.flash(optee) / "flash.bin"
    xen = provide(overrides, builder)
    keys = guest_keys(root / "ssh")
    images = _images(store, lock, cache, overrides, xen.tools.folder, keys, progress)
    components = (
        Component("QEMU", bundle.version, sha256_file(Path(bundle.argv()[-1])), "pinned"),
        Component("TF-A", builder.version("tfa-source"), sha256_file(flash), "built"),
        _component("OP-TEE OS", builder.version("optee-source"), optee / "tee-pager_v2.bin", overrides.optee),
        Component(xen.title, xen.version, sha256_file(xen.image), xen.origin),
        Component("Xen's tools", xen.tools.version, sha256_file(xen.tools.folder / XL), xen.tools.origin),
        _component("Linux", lock.group("kernel")[0].version, images / "Image", overrides.kernel, "pinned"),
        _component("xtest", lock.pins["optee-test-qemu"].version, images / "xtest", overrides.xtest_root, "pinned"),
        Component("dom0 image", "recipe", sha256_file(images / "dom0.cpio"), "built"),
    )
    return Stack(
        bundle, flash, xen.image, xen.symbols, images / "Image", images / "dom0.cpio",
        "/boot/domu/Image", "/boot/domu/ramdisk", keys, components, xen,
    )  # fmt: skip


def _images(
    store: Store, lock: Lock, cache: BuildCache, overrides: Overrides, tools: Path, keys: GuestKeys,
    progress: Progress,
) -> Path:  # fmt: skip
    """The kernel, dom0's ramdisk (with the domUs' kernel and ramdisk in it) and xtest, in one cached folder."""
    recipes = {name: Recipe.load(IMAGES / f"rootfs/{name}.yaml") for name in _GUESTS}
    groups = dict.fromkeys(group for recipe in recipes.values() for group in recipe.groups)
    pins = {group: lock.group(group) for group in groups}

    def build(out: Path) -> None:
        with progress.task("assembling dom0 and domU", total=3) as task:
            unpacked = {group: _unpack(store, pins[group], out / "unpacked" / group) for group in groups}
            task.advance()
            kernel = overrides.kernel or next(unpacked["kernel"].glob("boot/vmlinuz-*"))
            shutil.copyfile(kernel, out / "Image")
            domu = _rootfs(recipes["domu"], unpacked, overrides, keys)
            (out / "xtest").write_bytes(domu.entries[_XTEST].data)
            with (out / "domu.cpio").open("wb") as stream:
                cpio.write(domu.entries, stream)
            task.advance()
            dom0 = _rootfs(recipes["dom0"], unpacked, overrides, keys, [tools])
            dom0.add("boot/domu/Image", cpio.regular((out / "Image").read_bytes()))
            dom0.add("boot/domu/ramdisk", cpio.regular((out / "domu.cpio").read_bytes()))
            with (out / "dom0.cpio").open("wb") as stream:
                cpio.write(dom0.entries, stream)
            shutil.rmtree(out / "unpacked")
            task.advance()

    here = Path(__file__).parent
    inputs = {
        "pins": {group: [pin.sha256 for pin in pins[group]] for group in groups},
        "recipes": IMAGES / "rootfs",
        "code": [here / name for name in ("stack.py", "rootfs.py", "cpio.py", "elf.py")],
        "tools": tools / "usr",
        "keys": [keys.client_public, keys.host_public],
        "user": [path for path in (overrides.kernel, overrides.kernel_modules, overrides.xtest_root) if path],
    }
    return cache.get("images", inputs, build)


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
    root = assemble(recipe, packages, IMAGES / "rootfs" / recipe.name)
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


def _check(overrides: Overrides) -> None:
    if overrides.xen_variant not in XEN_VARIANTS:
        raise UsageError(f"no Xen variant {overrides.xen_variant}", hint=f"one of {', '.join(XEN_VARIANTS)}")
    for name, path in overrides.__dict__.items():
        for item in path if isinstance(path, tuple) else (path,):
            if isinstance(item, Path):
                _check_kind(f"--{name.replace('_', '-')}", item, folder=name in _FOLDERS, inside=name != "xen_tree")
    for option, image in (("--xen", overrides.xen), ("--kernel", overrides.kernel)):
        if image is not None:
            offset, magic = _IMAGE_MAGIC
            with image.open("rb") as stream:
                head = stream.read(64)
            if head[offset : offset + 4] != magic:
                raise UsageError(
                    f"{option}: {image} is not an arm64 Image (no magic at offset 0x38)",
                    hint="give the uncompressed image: xen/xen of a Xen build, arch/arm64/boot/Image of Linux",
                )
    if overrides.optee is not None:
        _check_holds("--optee", overrides.optee, OPTEE_FILES, "out/core of an OP-TEE OS build")
    if (root := overrides.xtest_root) is not None and not (root / _XTEST.removeprefix("usr/")).is_file():
        # Otherwise the pinned one would be tested under the user's name.
        _check_holds("--xtest-root", root, (_XTEST,), "that xtest is installed into")
    if overrides.xen_syms is not None:
        if overrides.xen is None:
            raise UsageError("--xen-syms goes with --xen", hint="the pinned Xen brings its own symbols")
        _check_symbols(overrides.xen, overrides.xen_syms)


def _check_kind(option: str, path: Path, *, folder: bool, inside: bool) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UsageError(f"{option}: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {path} cannot be read: {error}") from None
    # A device or a pipe is neither, and reading one may never end.
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither file nor folder"
        raise UsageError(f"{option}: expected {'a folder' if folder else 'a file'}, {path} is {kind}")
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise UsageError(f"{option}: {path} cannot be read", hint="make it readable for this user")
    # A source tree is read file by file, and may hold whatever its repository ignores.
    for parent, _, names in os.walk(path) if inside else ():
        for below in (Path(parent, name) for name in names):
            if not (below.is_file() or below.is_symlink()):
                raise UsageError(f"{option}: {below} is a device, pipe or socket")


def _check_holds(option: str, folder: Path, names: Sequence[str], which: str) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UsageError(f"{option}: {folder} has no {', '.join(missing)}", hint=f"give the folder {which}")


def _check_symbols(xen: Path, symbols: Path) -> None:
    """Symbols of another Xen would put the trace's hooks where other code stands."""
    try:
        identity = elf.build_id(symbols.read_bytes())
    except ValueError as error:
        raise UsageError(f"--xen-syms: {symbols} is {error}", hint="give the xen-syms of the build") from error
    if identity is not None and identity not in xen.read_bytes():
        raise UsageError(
            f"--xen-syms: {symbols} has the build id {identity.hex()}, which {xen} has not",
            hint="give the xen-syms that was linked together with --xen",
        )


def _component(name: str, version: str, path: Path, user: object | None, pinned: str = "built") -> Component:
    return Component(name, "user's" if user else version, sha256_file(path), "user" if user else pinned)

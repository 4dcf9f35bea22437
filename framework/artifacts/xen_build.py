# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypervisors from a tree of the user's own: only what an edit has changed is compiled again."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.make import CROSS, MAKE_KEY, XEN_IDENTITY, compiler_version, cross_compiler, run_make
from framework.artifacts.workspace import build_again
from framework.artifacts.xen_source import XenSource
from framework.common.errors import UsageError
from framework.common.progress import Progress

_MEDIATOR = ("CONFIG_TEE=y", "CONFIG_OPTEE=y")
_CONFIGURED = "configured"


@dataclass(frozen=True)
class XenConfig:
    """Lines of a configuration, whole or in part, and where they come from in the report's words."""

    text: str
    origin: str


def choose_config(given: Path | None, tree: Path | None, variant: str) -> XenConfig:
    """The configuration to build with: the given one, else the tree's own if it has OP-TEE's mediator, else that of
    the pinned build's ``variant``.

    :raises UsageError: the given one cannot be read.
    """
    if given is not None:
        try:
            return XenConfig(given.read_text(), str(given))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--xen-config: {given} cannot be read: {error}") from error
    own = None if tree is None else tree / "xen/.config"
    if own is not None and own.is_file():
        text = own.read_text(errors="replace")
        if all(line in text.splitlines() for line in ("CONFIG_ARM_64=y", *_MEDIATOR)):
            return XenConfig(text, "the tree's own .config")
    recipe = FirmwareConfig.load().xen
    lines = [*recipe.config, *recipe.variants[variant]]
    return XenConfig("".join(f"{line}\n" for line in lines), f"medcheck's, {variant}")


def build_hypervisor(
    source: XenSource, config: XenConfig, compiler: str | None, cache: BuildCache, progress: Progress
) -> Path:
    """Xen's image ``xen``, ``xen-syms`` and the ``config`` that resulted, in a cached folder.

    ``compiler`` is a gcc or clang other than the pinned cross compiler.

    :raises UsageError: the configuration has no OP-TEE mediator, or the compiler does not run.
    :raises CompileError: the compiler refuses the source. :raises BuildError: the build fails otherwise.
    """
    compiler = None if compiler is None else cross_compiler(compiler)

    def build(out: Path) -> None:
        with built_tree(source, config, compiler, cache, progress, out):
            return

    return cache.get("xen-own", {"source": _parts(source).digest(), **_identity(config, compiler)}, build)


@contextmanager
def built_tree(
    source: XenSource, config: XenConfig, compiler: str | None, cache: BuildCache, progress: Progress, out: Path
) -> Iterator[Path]:
    """Build in the tree that the hypervisors of one release share, copy what a board needs to ``out``, and give the
    tree, with its objects and the commands that made them; no other process builds there while the context lasts.

    Errors as of :func:`build_hypervisor`.
    """
    compiler = None if compiler is None else cross_compiler(compiler)
    parts, title = _parts(source), f"Xen {source.version}"
    # One for all trees of a release: another worktree, or a commit beside, differs in a few files.
    with cache.workspace("xen-tree", {"release": source.release, **_identity(config, compiler)}) as workspace:
        make = _Make(workspace, title, config, compiler, progress)
        build_again(workspace, title, parts, lambda tree: make.build(tree, parts, out), progress)
        yield workspace / "tree"


def _parts(source: XenSource) -> XenSource:
    """The files that a hypervisor is built from."""
    return source.only(lambda name: name.startswith(("xen/", "config/")) or "/" not in name)


def _identity(config: XenConfig, compiler: str | None) -> dict[str, object]:
    """What decides how a tree is built, apart from its files."""
    return {
        "config": config.text,
        "compiler": compiler_version(compiler or f"{CROSS}gcc"),
        "named": compiler,
        "epoch": FirmwareConfig.load().epoch,
        "make": MAKE_KEY,
        "recipe": Path(__file__),
    }


@dataclass(frozen=True)
class _Make:
    """One configuration of the hypervisor, built in a workspace."""

    folder: Path
    title: str
    config: XenConfig
    compiler: str | None
    progress: Progress

    def build(self, tree: Path, source: XenSource, out: Path) -> None:
        """Configure the tree if need be, build it, and copy what a board needs of it to ``out``."""
        log = out / "build.log"
        kconfig = source.only(lambda name: Path(name).name.startswith("Kconfig")).digest()
        wanted = hashlib.sha256(f"{kconfig} {self.config.text}".encode()).hexdigest()
        stamp = self.folder / _CONFIGURED
        if not (stamp.exists() and stamp.read_text() == wanted and (tree / "xen/.config").exists()):
            # Only then: writing the configuration anew would compile every file again.
            defconfig = tree / "xen/arch/arm/configs/medcheck_defconfig"
            defconfig.write_text(self.config.text)
            self._make(tree, ["medcheck_defconfig"], log)
            _check_mediator((tree / "xen/.config").read_text(), self.config)
            stamp.write_text(wanted)
        self._make(tree, ["xen"], log)
        for name, place in (("xen", "xen/xen"), ("xen-syms", "xen/xen-syms"), ("config", "xen/.config")):
            shutil.copyfile(tree / place, out / name)

    def _make(self, tree: Path, targets: list[str], log: Path) -> None:
        variables = {"XEN_TARGET_ARCH": "arm64", "CROSS_COMPILE": CROSS, **XEN_IDENTITY}
        if self.compiler is not None:
            variables["CC"] = self.compiler
            if "clang" in Path(self.compiler).name:
                # Its own assembler refuses the SMC instruction in Xen 4.17 (seen with clang 14).
                variables |= {"clang": "y", "CC": f"{self.compiler} --target=aarch64-linux-gnu -fno-integrated-as"}
                # With clang=y the build's own programs would want a clang of no version.
                variables |= {"HOSTCC": "gcc", "HOSTCXX": "g++"}
        run_make(self.title, tree / "xen", variables, [targets], log, self.progress, below="xen/")


def _check_mediator(result: str, config: XenConfig) -> None:
    """Raise UsageError for a configuration without OP-TEE's mediator, and say which line it misses."""
    lines = result.splitlines()
    if all(line in lines for line in _MEDIATOR):
        return
    needs = ("CONFIG_EXPERT=y", "CONFIG_UNSUPPORTED=y", *_MEDIATOR)
    known = {match[1] for line in lines if (match := re.match(r"(?:# )?(CONFIG_\w+)", line))}
    missing = [line for line in needs if line not in lines and (line.split("=")[0] in known or line in _MEDIATOR)]
    raise UsageError(
        f"this configuration of Xen ({config.origin}) builds no OP-TEE mediator: {', '.join(missing)} missing",
        hint=f"add {' '.join(missing)} to it, or leave out --xen-config: medcheck's own has the mediator",
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""The OP-TEE OS under test: pinned, built by the user, or built here from a tree of the user's own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from framework.artifacts.firmware import OPTEE_FILES, Builder
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.make import CROSS, MAKE_KEY, compiler_version, run_make
from framework.artifacts.overrides import Overrides
from framework.artifacts.pinned_tree import pinned_tree
from framework.artifacts.source_tree import SourceTree, TreeKind, read_files
from framework.artifacts.user_files import OPTEE_CONF, check_optee
from framework.artifacts.workspace import build_again
from framework.common.errors import UsageError

_KIND = TreeKind(
    "OP-TEE OS",
    "--optee-tree",
    ("mk/config.mk", "core/core.mk", "core/arch/arm/plat-vexpress/conf.mk"),
    re.compile(r"^out/|(^|/)[^/]*\.(o|d|cmd|a|pyc)$"),
)
_CONFIG = "mk/config.mk"
_SWITCH = "CFG_NS_VIRTUALIZATION"
_FORMER_SWITCH = "CFG_VIRTUALIZATION"
"""The name of the switch up to OP-TEE 3.21."""
_TOOLCHAIN = dict.fromkeys(("CROSS_COMPILE64", "CROSS_COMPILE_core", "CROSS_COMPILE_ta_arm64"), CROSS)
_OUT = "medcheck-out"
_KEY = "keys/default_ta.pem"


@dataclass(frozen=True)
class Optee:
    """The OP-TEE of one board: the folder with its images, version and origin for the report, and the sentences that a
    user should read before anything boots."""

    folder: Path
    version: str
    origin: str
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpteeSource(SourceTree):
    """The files of one OP-TEE OS tree."""

    @property
    def release(self) -> str:
        """The release, such as ``4.10``; empty where the tree does not tell."""
        found = [re.search(rf"^CFG_OPTEE_REVISION_{part}\s*\??=\s*(\d+)", self._config, re.M) for part in _PARTS]
        return ".".join(match[1] for match in found if match)

    @property
    def switch(self) -> str | None:
        """The make variable that gives OP-TEE several guests; None: this version has no such thing."""
        return next((name for name in (_SWITCH, _FORMER_SWITCH) if re.search(rf"\b{name}\b", self._config)), None)

    @property
    def _config(self) -> str:
        return self.files[_CONFIG].data.decode(errors="replace")


_PARTS = ("MAJOR", "MINOR")


def read_optee_tree(folder: Path, say: Callable[[str], None] = lambda _text: None) -> OpteeSource:
    """Read a tree as :func:`~framework.artifacts.source_tree.read_files` does.

    :raises UsageError: the folder is no tree of OP-TEE OS, or one that knows nothing of several guests.
    """
    source = OpteeSource(folder, *read_files(_KIND, folder, None, say))
    if not re.fullmatch(r"\d+\.\d+", source.release):
        raise _KIND.refuse(folder, None, f"no version in {_CONFIG}")
    if source.switch is None:
        raise UsageError(
            f"--optee-tree: {folder} is OP-TEE {source.release}, which has no virtualization: it can serve no guests",
            hint=f"give a tree whose {_CONFIG} has {_SWITCH} (or {_FORMER_SWITCH}, as it was called up to 3.21)",
        )
    return source


def provide_optee(overrides: Overrides, builder: Builder) -> Optee:
    """Fetch or build what the user chose.

    :raises UsageError: options contradict each other, or a tree is none that can work on this board.
    :raises BuildError: it cannot be built; the text has the compiler's words.
    """
    if overrides.optee is not None:
        if overrides.optee_tree is not None:
            raise UsageError("--optee and --optee-tree: give one of the two")
        return Optee(overrides.optee, "user's", "user")
    if overrides.optee_tree is None:
        return Optee(builder.optee(), builder.version(FirmwareConfig.load().optee.group), "built")
    source = read_optee_tree(overrides.optee_tree, builder.progress.say)
    said = [f"OP-TEE {source.release}, {source.label}, built with the board's make variables"]
    xtest = builder.lock.pins["optee-test-qemu"].version
    if overrides.xtest_root is None and not xtest.startswith(f"{source.release}."):
        said.append(f"xtest is of OP-TEE {xtest}: cases of what {source.release} does not have fail")
    return Optee(build_optee(source, builder), f"{source.release}, {source.label}", "user", tuple(said))


def frozen_optee(overrides: Overrides, optee: Optee) -> Overrides:
    """The same OP-TEE by its files: whatever becomes of the tree meanwhile."""
    return overrides if overrides.optee_tree is None else replace(overrides, optee=optee.folder, optee_tree=None)


def build_optee(source: OpteeSource, builder: Builder) -> Path:
    """The images of OP-TEE, its ``tee.elf`` and ``conf.mk``, in a cached folder; only what an edit has changed is
    compiled. TAs that the pinned xtest brings pass its check of signatures.

    :raises UsageError: what was built does not fit the board. :raises BuildError: it cannot be built.
    """
    assert source.switch is not None, "a tree without it is refused when it is read"
    board = FirmwareConfig.load().optee.make
    variables = {source.switch if name == _SWITCH else name: value for name, value in board.items()}
    # The pinned xtest's TAs were signed with it.
    key = pinned_tree(builder, FirmwareConfig.load().optee.group) / _KEY
    identity = {
        "variables": variables,
        "key": key,
        "compiler": compiler_version(),
        "epoch": FirmwareConfig.load().epoch,
        "make": MAKE_KEY,
        "recipe": Path(__file__),
    }
    title, log_name = f"OP-TEE OS {source.release}", "build.log"

    def build(out: Path) -> None:
        def make(tree: Path) -> None:
            more = {"O": _OUT, "TEE_IMPL_VERSION": source.release, "TA_PUBLIC_KEY": key, **_TOOLCHAIN}
            run_make(title, tree, {**variables, **more}, [["all"]], out / log_name, builder.progress)
            for name in (*OPTEE_FILES, "tee.elf"):
                shutil.copyfile(tree / _OUT / "core" / name, out / name)
            shutil.copyfile(tree / _OUT / OPTEE_CONF, out / OPTEE_CONF)

        with builder.cache.workspace("optee-tree", {"release": source.release, **identity}) as workspace:
            build_again(workspace, title, source, make, builder.progress)
        check_optee(out, "--optee-tree")

    return builder.cache.get("optee-own", {"source": source.digest(), **identity}, build)

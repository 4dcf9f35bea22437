# SPDX-License-Identifier: GPL-2.0-or-later
"""The Xen under test: hypervisor and toolstack, pinned or of the user's own, and whether they fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from framework.artifacts.firmware import Builder
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.make import compiler_version, cross_compiler
from framework.artifacts.overrides import Overrides
from framework.artifacts.pinned_tree import pinned_tree
from framework.artifacts.xen_build import XenConfig, build_hypervisor, choose_config
from framework.artifacts.xen_image import XenImage, arguments_for, unchecked
from framework.artifacts.xen_source import XenSource, read_tree
from framework.artifacts.xen_tools import Toolstack, built_tools, given_tools, pinned_tools
from framework.common.errors import UsageError


@dataclass(frozen=True)
class Xen:
    """Hypervisor and toolstack of one board.

    ``title``, ``version`` and ``origin`` are the report's; ``said`` are the sentences that a user should read before
    anything boots.
    """

    image: Path
    symbols: Path | None
    title: str
    version: str
    origin: str
    tools: Toolstack
    said: tuple[str, ...]


def provide(overrides: Overrides, builder: Builder) -> Xen:
    """Fetch or build what the user chose.

    :raises UsageError: options contradict each other, a tree is none, or hypervisor and tools do not fit.
    :raises InfrastructureError: this Xen has no OP-TEE mediator. :raises BuildError: something cannot be built.
    """
    _check_options(overrides)
    source = _source(overrides, builder)
    image, symbols, title, version, origin = _hypervisor(overrides, source, builder)
    facts = XenImage.read(image)
    release = facts.release or (source.release if source else None)
    if source is not None and overrides.xen is not None and release != source.release:
        raise UsageError(
            f"--xen: {image} is Xen {release}, the tree of --xen-tree is {source.release}",
            hint="give the tree that the image was built from",
        )
    tools = _tools(overrides, source, release, builder)
    if release is not None and release != tools.release:
        raise UsageError(
            f"this Xen is {release} and dom0's tools are {tools.release}: it would refuse every order of theirs",
            where=str(image),
            hint="give the tree it was built from (--xen-tree DIR), or tools of its release (--xen-tools DIR)",
        )
    said = [f"Xen {version}, dom0's tools {tools.version} ({tools.origin}), mediator {' and '.join(facts.mediators)}"]
    if facts.knows_tee:
        words = arguments_for(image)
        said.append(f"this Xen chooses among mediators: {words} goes on its command line, unless the board has a tee=")
    if release is None:
        said.append(f"{image} does not tell its release: whether dom0's tools fit will show when a domain is created")
    if (lost := unchecked(symbols)) is not None:
        said.append(lost)
    return Xen(image, symbols, title, version, origin, tools, tuple(said))


def frozen(overrides: Overrides, xen: Xen) -> Overrides:
    """The same Xen by its files: whatever becomes of the tree meanwhile."""
    return replace(
        overrides, xen=xen.image, xen_syms=xen.symbols, xen_tree=None, xen_rev=None, xen_patch=(), xen_config=None,
        xen_tools=xen.tools.folder, cc=None,
    )  # fmt: skip


def version_of(overrides: Overrides, say: Callable[[str], None]) -> str | None:
    """The version of the Xen that ``overrides`` name, without building anything; None if they name none, or an image
    that does not tell.

    :raises UsageError: a folder is no Xen tree. :raises InfrastructureError: an image has no OP-TEE mediator.
    """
    _check_options(overrides)
    if overrides.xen_tree is not None:
        return read_tree(overrides.xen_tree, overrides.xen_rev, say).version
    return None if overrides.xen is None else XenImage.read(overrides.xen).release


def inputs_of(overrides: Overrides, builder: Builder) -> dict[str, object]:
    """All that decides which hypervisor and tools :func:`provide` makes, by content: where a tree lies, and what a
    commit is called, are no part of it.

    :raises UsageError: options contradict each other, a tree is none, or a patch does not apply.
    """
    _check_options(overrides)
    source = _source(overrides, builder)
    config = None if source is None else _config(overrides).text
    return {
        "source": None if source is None else source.digest(),
        "config": config,
        "compiler": [overrides.cc, compiler_version(cross_compiler(overrides.cc or "gcc"))],
        **{name: getattr(overrides, name) for name in ("xen", "xen_syms", "xen_tools", "xen_variant")},
    }


def _check_options(overrides: Overrides) -> None:
    if overrides.xen_rev is not None and overrides.xen_tree is None:
        raise UsageError("--xen-rev goes with --xen-tree", hint="name the repository that has the commit")
    if overrides.xen is not None:
        for name in ("xen_rev", "xen_patch", "xen_config", "cc"):
            if getattr(overrides, name):
                raise UsageError(f"--xen and --{name.replace('_', '-')}: the image of --xen is built already")


def _source(overrides: Overrides, builder: Builder) -> XenSource | None:
    """The tree that something is built from; None where the pinned builds do."""
    if overrides.xen_tree is not None:
        tree = read_tree(overrides.xen_tree, overrides.xen_rev, builder.progress.say)
        return tree.patched(overrides.xen_patch)
    if not (overrides.xen_patch or overrides.xen_config or overrides.cc or overrides.xen_tools == "tree"):
        return None
    if overrides.xen is not None:
        raise UsageError("--xen-tools tree needs --xen-tree", hint="give the tree that --xen was built from")
    return pinned_source(builder).patched(overrides.xen_patch)


def source_of(overrides: Overrides, builder: Builder) -> tuple[XenSource, XenConfig]:
    """The tree and the configuration that the user chose, or the pinned ones.

    :raises UsageError: a hypervisor's image was chosen, which has no source; or the tree or configuration is none.
    """
    _check_options(overrides)
    if overrides.xen is not None:
        raise UsageError("--xen is an image; its source is needed", hint="name the tree with --xen-tree DIR instead")
    source = _source(overrides, builder) or pinned_source(builder)
    return source, _config(overrides)


def pinned_source(builder: Builder) -> XenSource:
    """The pinned source as a tree."""
    group = FirmwareConfig.load().xen.group
    return replace(read_tree(pinned_tree(builder, group)), label=f"pinned {builder.version(group)}")


def _hypervisor(
    overrides: Overrides, source: XenSource | None, builder: Builder
) -> tuple[Path, Path | None, str, str, str]:
    """Image, symbols, and title, version and origin for the report."""
    if overrides.xen is not None:
        release = XenImage.read(overrides.xen).release
        return overrides.xen, overrides.xen_syms, "Xen", f"{release or 'unknown'}, user's", "user"
    builds_own = overrides.xen_tree or overrides.xen_patch or overrides.xen_config or overrides.cc
    if source is None or not builds_own:
        built = builder.xen(overrides.xen_variant)
        version = builder.version(FirmwareConfig.load().xen.group)
        return built / "xen", built / "xen-syms", f"Xen ({overrides.xen_variant})", version, "built"
    config = _config(overrides)
    built = build_hypervisor(source, config, overrides.cc, builder.cache, builder.progress)
    words = [source.version, source.label, f"configuration {config.origin}"]
    words += [f"with {patch.name}" for patch in overrides.xen_patch]
    words += [overrides.cc] if overrides.cc else []
    return built / "xen", built / "xen-syms", "Xen", ", ".join(words), "user"


def _config(overrides: Overrides) -> XenConfig:
    tree = overrides.xen_tree if overrides.xen_rev is None else None
    return choose_config(overrides.xen_config, tree, overrides.xen_variant)


def _tools(overrides: Overrides, source: XenSource | None, release: str | None, builder: Builder) -> Toolstack:
    store, lock, cache = builder.store, builder.lock, builder.cache
    choice, pinned = overrides.xen_tools, FirmwareConfig.load().xen.tools
    if isinstance(choice, Path):
        return given_tools(choice, lock, cache)
    fits = release in (None, pinned.release)
    if source is not None:
        # Within a development cycle the numbers change once only: equal ones prove nothing for another release.
        fits = source.release == pinned.release and source.interfaces == (pinned.domctl, pinned.sysctl)
    if choice == "tree" or (choice == "auto" and source is not None and not fits):
        assert source is not None, "without --xen-tree the pinned source is the tree"
        return built_tools(source, store, lock, cache, builder.progress)
    return pinned_tools(store, lock, cache)

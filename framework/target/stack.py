# SPDX-License-Identifier: GPL-2.0-or-later
"""Preparation of the stack under test in this user's cache, checked before anything boots."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import Builder
from framework.artifacts.lock import Lock
from framework.artifacts.mirror import Mirrors
from framework.artifacts.stack import Overrides, Stack, prepare
from framework.artifacts.store import Store
from framework.artifacts.xen_image import unchecked
from framework.board.spec import BoardSpec, GuestSpec
from framework.common.errors import TraceError, UsageError
from framework.common.paths import cache_root
from framework.common.progress import Progress, Silent
from framework.trace.build import PluginOptions, build_plugin, optee_layout, xen_layout
from framework.trace.optee_symbols import OpteeLayout
from framework.trace.senses import Sense, chosen
from framework.trace.xen_symbols import XenLayout

MEDIATOR_TRACE = b"Using TEE mediator for OP-TEE"
"""Xen's message at boot when its OP-TEE mediator has found OP-TEE (xen/arch/arm/tee/tee.c)."""


def open_store(offline: bool = False, mirrors: str | None = None, progress: Progress | None = None) -> Store:
    """The download cache of this user; ``mirrors`` (comma separated) wins over environment and apt."""
    found = Mirrors.discover(option=mirrors) if mirrors else None
    return Store(cache_root(), mirrors=found, offline=offline, progress=progress or Silent())


def prepare_stack(overrides: Overrides, store: Store, progress: Progress, *, cpu: str | None = None) -> Stack:
    """The stack in the user's cache, for a board with this ``cpu`` if that is known. Remarks about Xen and its tools
    are printed before anything boots."""
    stack = prepare(cache_root(), store, Lock.load(), overrides, progress, cpu=cpu)
    for sentence in stack.said:
        progress.say(sentence)
    return stack


def builder_here(store: Store, progress: Progress) -> Builder:
    """The maker of firmware and hypervisors in this user's cache."""
    return Builder(store, Lock.load(), BuildCache(cache_root(), progress), progress)


def with_guests(spec: BoardSpec, count: int | None) -> BoardSpec:
    """``spec`` with ``count`` Linux domUs, made like its first one; None leaves it as it is."""
    if count is None or count == len(spec.guests):
        return spec
    if not 1 <= count <= spec.guest_slots:
        raise UsageError(
            f"--domus {count}: board {spec.name} has room for 1 to {spec.guest_slots}",
            hint="dom0 takes one of OP-TEE's CFG_VIRT_GUEST_COUNT partitions, each domU another",
        )
    model = spec.guests[0] if spec.guests else GuestSpec("vm1", "linux", 1, 320, True)
    guests = tuple(replace(model, name=f"vm{number}") for number in range(1, count + 1))
    return replace(spec, guests=guests)


def trace_options(
    spec: BoardSpec,
    stack: Stack,
    trace: Path | None,
    lockstep: Path | None = None,
    senses: frozenset[Sense] | None = None,
    history: Path | None = None,
) -> dict[str, Any]:
    """Return a Board's options to record every SMC into ``trace``, and to have ``lockstep``'s consumer attend.

    ``senses``: None stands for those of the environment (:func:`framework.trace.senses.chosen`).
    ``history``: the trace of the same board up to where it begins as this one; ``trace`` becomes its continuation.
    """
    out = None if trace is None else trace.absolute()
    if out is None and lockstep is None:
        return {}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        if history is not None:
            shutil.copyfile(history, out)
    plugin, layout = _plugin(cache_root(), stack.xen_syms, _changed(stack.xen_syms))
    options = PluginOptions(
        out=out,
        continues=out is not None and history is not None,
        lockstep=lockstep,
        xen=layout,
        optee=known_optee(stack.optee.folder),
        label=spec.name,
        senses=chosen() if senses is None else senses,
    )
    return options.for_board(plugin)


@cache
def _plugin(root: Path, xen_syms: Path | None, _changed: int) -> tuple[Path, XenLayout | None]:
    """The plugin and what it has to know of a Xen; found in the cache ``root``, or made, once for all boards."""
    builds = BuildCache(root)
    known = xen_syms is not None and unchecked(xen_syms) is None
    return build_plugin(builds), xen_layout(builds, xen_syms) if known and xen_syms is not None else None


def known_optee(folder: Path) -> OpteeLayout | None:
    """What the plugin has to know of the OP-TEE in ``folder``; None where its ``tee.elf`` is missing, or tells nothing
    of the images beside it."""
    elf = folder / "tee.elf"
    return _optee(cache_root(), elf, elf.stat().st_mtime_ns) if elf.is_file() else None


@cache
def _optee(root: Path, elf: Path, _changed: int) -> OpteeLayout | None:
    try:
        return optee_layout(BuildCache(root), elf)
    except TraceError:
        return None


def _changed(path: Path | None) -> int:
    return 0 if path is None else path.stat().st_mtime_ns

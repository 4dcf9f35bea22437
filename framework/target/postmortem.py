# SPDX-License-Identifier: GPL-2.0-or-later
"""Postmortem snapshots: the state of a board, mostly of a failed test, to be restored with ``medcheck resume``.

Each is complete: device state with all RAM in use, the consoles so far, and the paths of the files in the cache that
the board needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.board.board import Board, RestoredFrom
from framework.board.spec import BoardSpec, Dom0Spec, GuestSpec, LoadMap
from framework.common.errors import BoardError, UsageError
from framework.common.paths import cache_root
from framework.diagnosis.hang import watch
from framework.snapshot.save import copy_logs, fill, save_whole
from framework.target.target import Target

MOST = 5
"""Number of postmortem snapshots; each takes as much disk as its RAM in use, half a gigabyte or more."""


@dataclass(frozen=True)
class _Qemu:
    line: list[str]

    def argv(self, program: str = "qemu-system-aarch64") -> list[str]:  # noqa: ARG002 - there is only one
        """The beginning of the command line."""
        return list(self.line)


@dataclass(frozen=True)
class _Keys:
    host_public: Path


@dataclass(frozen=True)
class _Files:
    """The part of a stack that a restored board needs."""

    qemu: _Qemu
    flash: Path
    ssh_key: Path
    keys: _Keys
    xen: Path = Path("/nonexistent")
    kernel: Path = Path("/nonexistent")
    dom0_ramdisk: Path = Path("/nonexistent")
    xen_syms: Path | None = None


def postmortem_folder() -> Path:
    """Return the folder of all postmortem snapshots."""
    return cache_root() / "kept"


def save(target: Target, name: str) -> str:
    """Stop a target's board and save its state; returns the id for :func:`resume`. The board stays stopped.

    The oldest postmortem snapshots are removed, so that at most :data:`MOST` stay. Raises BoardError when
    it cannot be saved.
    """
    board, stack = target.board, target.stack
    words = re.sub(r"[^\w]+", "-", name).strip("-")[-40:]
    identity = f"{words}-{hashlib.sha256(f'{name} {time.time_ns()}'.encode()).hexdigest()[:6]}"
    folder = postmortem_folder() / f".{identity}.partial"
    folder.mkdir(parents=True)
    try:
        about = target.about()
        save_whole(board, folder / "state")
        copy_logs(board, folder / "consoles")
        document = {
            "name": name, "uptime": board.uptime, "spec": dataclasses.asdict(target.spec), "about": about,
            "qemu": stack.qemu.argv(), "flash": str(stack.flash), "ssh_key": str(stack.ssh_key),
            "host_key": str(stack.keys.host_public),
        }  # fmt: skip
        (folder / "kept.json").write_text(json.dumps(document, indent=1) + "\n")
        folder.rename(postmortem_folder() / identity)
    except OSError as error:
        raise BoardError(f"the postmortem snapshot cannot be saved: {error.strerror}", where=str(folder)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for old in saved_boards()[:-MOST]:
        shutil.rmtree(postmortem_folder() / old, ignore_errors=True)
    return identity


def saved_boards() -> list[str]:
    """Return the ids of all postmortem snapshots, oldest first."""
    folders = [path for path in postmortem_folder().glob("[!.]*") if (path / "kept.json").is_file()]
    return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime)]


def resume(identity: str, run_dir: Path) -> Target:
    """Restore a board from its postmortem snapshot, running; it can be resumed any number of times.

    Raises UsageError for an unknown id, BoardError when its files are damaged or gone.
    """
    folder = postmortem_folder() / identity
    if identity not in saved_boards():
        known = ", ".join(saved_boards()) or "none"
        raise UsageError(f"there is no postmortem snapshot '{identity}'", hint=f"postmortem snapshots: {known}")
    try:
        document = json.loads((folder / "kept.json").read_text())
        spec = _spec(document["spec"])
        stack: Any = _Files(
            _Qemu(document["qemu"]), Path(document["flash"]), Path(document["ssh_key"]),
            _Keys(Path(document["host_key"])),
        )  # fmt: skip
        past = RestoredFrom(folder / "consoles", float(document["uptime"]), f"postmortem snapshot {identity}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BoardError(f"its description is damaged: {error!r}", where=str(folder)) from error
    missing = [path for path in (stack.flash, stack.ssh_key, Path(stack.qemu.line[0])) if not os.path.exists(path)]  # noqa: PTH110
    if missing:
        raise BoardError(f"it needs {missing[0]}, which is gone", where=str(folder))
    board = watch(Board(spec, stack, run_dir, incoming=True, past=past))
    target = Target(spec, stack, run_dir, board=board)
    try:
        board.start()
        fill(board, folder / "state", shared=False)
        board.resume()
        target.adopt(document["about"], wake=False)
    except BaseException:
        target.close()
        raise
    return target


def _spec(values: dict[str, Any]) -> BoardSpec:
    parts = {
        "load_map": LoadMap(**values["load_map"]),
        "dom0": Dom0Spec(**values["dom0"]),
        "guests": tuple(GuestSpec(**guest) for guest in values["guests"]),
    }
    return BoardSpec(**{**values, **parts})

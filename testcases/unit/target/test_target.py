# SPDX-License-Identifier: GPL-2.0-or-later
"""A target that cannot be made leaves no board behind, and what a user should know of a board is said once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.target import target as module
from framework.target.target import Target, say_remarks


class Running:
    """Stands for a clone that runs."""

    def __init__(self) -> None:
        self.killed = 0
        self.stopped = 0
        self.remarks = ["QEMU runs as root"]

    def kill(self) -> None:
        self.killed += 1

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch) -> Running:
    board = Running()
    monkeypatch.setattr(module, "clone", lambda *_args, **_options: board)
    monkeypatch.setattr(module, "Dom0", lambda *_args, **_options: SimpleNamespace(close=lambda: None))
    return board


def from_snapshot(stack: Any) -> Target:
    snapshot: Any = SimpleNamespace(history=None, about={"notes": {}, "guests": [{"name": "vm1"}]})
    spec: Any = SimpleNamespace()
    return Target.from_snapshot(snapshot, spec, stack, Path("/nowhere"))


def test_a_clone_is_ended_when_its_target_cannot_be_made(clone: Running) -> None:
    with pytest.raises(AttributeError, match="ssh_key"):
        from_snapshot(SimpleNamespace())
    assert clone.killed


def test_a_clone_is_ended_when_its_guests_cannot_be_taken_over(clone: Running) -> None:
    keys = SimpleNamespace(host_public=SimpleNamespace(read_text=lambda: "key"))
    with pytest.raises(AttributeError, match="consoles"):
        from_snapshot(SimpleNamespace(ssh_key="key", keys=keys))
    assert clone.stopped and clone.killed


def test_that_qemu_is_root_is_said_once(clone: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_said", set())
    said: list[str] = []
    progress: Any = SimpleNamespace(say=said.append)
    for _ in range(3):
        say_remarks(clone, progress)  # type: ignore[arg-type]
    assert said == ["QEMU runs as root"]

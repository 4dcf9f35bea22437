# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that another user dresses up as a board's are none of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.board import janitor
from framework.board.janitor import Janitor

BOARD = "999999-1-0"
"""Of an owner that does not run."""


@pytest.fixture
def pretender() -> Iterator[int]:
    """A process whose command line is that of an orphaned QEMU."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-name", f"medcheck-{BOARD}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def found(folder: Path) -> set[int]:
    looks = [*Janitor(folder).orphans(), *Janitor(folder).processes_of(BOARD)]
    return {item.process.pid for item in looks}


def test_a_process_of_this_user_is_believed(pretender: int, tmp_path: Path) -> None:
    assert pretender in found(tmp_path)


def test_a_process_of_another_user_is_not(pretender: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert pretender not in found(tmp_path)


def test_root_believes_those_it_starts_qemu_as(pretender: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr(janitor, "_can_be_ours", lambda uid, real=janitor._can_be_ours: real(uid + 1 - me))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert pretender not in found(tmp_path)
    monkeypatch.setattr(janitor, "QEMU_UIDS", range(1, 2))
    assert pretender in found(tmp_path)

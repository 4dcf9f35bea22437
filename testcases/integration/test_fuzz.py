# SPDX-License-Identifier: GPL-2.0-or-later
"""`medcheck fuzz` on real boards: a seeded fault is found, made small, and printed as a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework.common.paths import ROOT
from framework.fuzz.board import FuzzBoard
from framework.fuzz.program import FuzzProgram

if TYPE_CHECKING:
    from medcheck import TargetProvider

FAULT = ROOT / "testcases" / "faults" / "whole-message-copied-back.patch"


def medcheck(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "framework.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.mc_board
def test_a_live_board_judges_program_after_program(target_provider: TargetProvider) -> None:
    """What a program reached is told apart from what others did, and a domain's death ends the board's use."""
    plain = FuzzProgram("probe", ({"do": "call", "params": [{"is": "tmem"}]},))
    with FuzzBoard(target_provider, "probe") as board:
        first = board.run(plain)
        assert first.fit and not first.found
        assert first.blocks and "outcome forwarded: message with buffers" in first.features
        # An interrupt in OP-TEE shows code that another run of the same program does not.
        assert any(not (again.blocks or again.features) for again in (board.run(plain) for _ in range(20)))
        ends = board.run(FuzzProgram("probe", ({"do": "call", "ta": "missing", "park": 1},), dies=True))
    assert not ends.found and not ends.fit
    assert board.calls >= 8


@pytest.mark.slow
@pytest.mark.nightly
def test_a_seeded_fault_is_found_made_small_and_printed(tmp_path: Path) -> None:
    patch = ("--xen-patch", str(FAULT))
    where = tmp_path / "report"
    words = ["--seed", "1", "--programs", "60", "--reproduce", "3", "--report", str(where)]
    done = medcheck("fuzz", "--offline", "--json", *words, *patch)
    assert done.returncode == 1, done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    found = next(finding for finding in findings if "STD-9" in finding["rules"])
    assert all((finding["seen"], finding["steps"] <= 5) == (3, True) for finding in findings)
    again = medcheck("fuzz", "--offline", "-r", found["file"], "--reproduce", "2", *patch)
    assert again.returncode == 1 and "2 of 2" in again.stdout, again.stderr
    test = ("test", "--offline", found["test"], "-q")
    assert medcheck(*test, *patch).returncode == 1
    good = medcheck(*test)
    assert good.returncode == 0, good.stdout[-2000:]

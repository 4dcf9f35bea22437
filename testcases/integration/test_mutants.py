# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a board from outside, and a small campaign of `medcheck mutants` on a real Xen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.board.physical_memory import physical_memory
from framework.common.paths import ROOT

if TYPE_CHECKING:
    from framework.board.board import Board

_FREE = 0x4800_0000
"""RAM that Xen, dom0's files and OP-TEE leave alone."""


@pytest.mark.mc_checkpoint("dom0")
def test_memory_is_read_and_written_while_a_board_runs(board: Board) -> None:
    with physical_memory(board) as memory:
        image = memory.read(board.spec.load_map.xen, 64)
        before = memory.read(_FREE, 4)
        memory.write(_FREE, b"mark")
        assert memory.read(_FREE, 4) == b"mark"
        memory.write(_FREE, before)
        assert not board.qmp.execute("query-status")["running"]
    # The magic number of an arm64 Image (Linux Documentation/arch/arm64/booting.rst).
    assert image[56:60] == b"ARM\x64"
    assert board.qmp.execute("query-status")["running"]
    # And once more on the same board.
    with physical_memory(board) as memory:
        assert memory.read(board.spec.load_map.xen, 64) == image


@pytest.mark.slow
def test_a_small_campaign_kills_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "framework.cli", "mutants", "--offline", "--json", "--sample", "12", "--most", "1"]
    command += ["-k", "capabilities", "--report", str(tmp_path / "report")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert len(found["verdicts"]) == 12
    assert "undecided" not in found["verdicts"].values()
    document = json.loads((tmp_path / "report/mutants.json").read_text())
    assert len(document["files"]["xen/arch/arm/tee/optee.c"]["mutants"]) == 12
    # All runs are known already: nothing but the collection of tests is done again.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert json.loads(again.stdout)["verdicts"] == found["verdicts"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that only a sense of the trace sees: a Xen with each is named by its rule, at the first call that shows it.

The guest finds the right answers everywhere: xtest passes on these hypervisors.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.artifacts.overrides import Overrides
from framework.common.errors import ExitCode
from framework.common.progress import Silent
from framework.jobs.run import RunOptions, RunResult, run

pytestmark = [pytest.mark.artifacts, pytest.mark.slow, pytest.mark.nightly]

PATCHES = Path(__file__).parent / "payloads" / "xen"


def smoke(folder: Path, *patches: str) -> RunResult:
    """Two xtest cases in one guest, traced and checked, on a Xen with these faults."""
    options = RunOptions(
        profile="smoke", domus=1, xtest=("1001", "1004"), report=folder, offline=True,
        overrides=Overrides(xen_patch=tuple(PATCHES / f"{name}.patch" for name in patches)),
    )  # fmt: skip
    return run(options, Silent())


@pytest.mark.parametrize(
    "patches",
    [
        ("fetch-command-again", "read-beyond-list", "busy-resume"),
        ("fetch-list-again", "write-beyond-results", "busy-copy"),
    ],
    ids=["command", "list"],
)
def test_each_fault_is_named_by_its_rule(tmp_path: Path, patches: tuple[str, ...]) -> None:
    """One fault each for FETCH-1, FETCH-2 and TIME-1, found while dom0's driver comes up."""
    result = smoke(tmp_path / "report", *patches)
    assert result.failure is None and result.code == ExitCode.FAILED
    conformance = result.report.conformance
    assert conformance is not None
    assert {found.rule for found in conformance.nonconformances} == {"FETCH-1", "FETCH-2", "TIME-1"}
    firsts = {found.rule: found for found in reversed(conformance.nonconformances)}
    assert all(found.seq < 100 and found.domid == 0 for found in firsts.values())
    assert all(guest.xtest is not None and guest.xtest.good for guest in result.report.guests)


def test_the_unmodified_mediator_shows_what_is_listed_and_no_more(tmp_path: Path) -> None:
    result = smoke(tmp_path / "report")
    assert result.code == ExitCode.GOOD and result.report.conformance is not None
    rules = {name: result.report.conformance.rule(name) for name in ("FETCH-1", "FETCH-2", "TIME-1")}
    assert {rule.verdict for rule in rules.values()} == {"deviation", "pass"} and rules["FETCH-1"].passed > 0
    assert [d.id for d in result.report.conformance.deviations if d.rule == "FETCH-1"] == ["D18"]
    optee = next(file for file in result.report.coverage if file.file.endswith("tee/optee.c"))
    assert optee.lines_seen > optee.lines // 2 and (tmp_path / "report" / "coverage.info").stat().st_size > 1000

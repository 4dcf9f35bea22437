# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that only OP-TEE's own list shows: what it has is let go of while it works, and taken again before the guest
has its answer, so that nothing at the borders tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.common.errors import ExitCode
from testcases.integration.test_sense_faults import smoke

pytestmark = [pytest.mark.artifacts, pytest.mark.slow, pytest.mark.nightly]


@pytest.mark.parametrize("patch", ["buffers-let-go-meanwhile", "rpc-pages-unlisted-meanwhile"])
def test_only_the_rule_about_optees_list_names_the_fault(tmp_path: Path, patch: str) -> None:
    """Found while dom0's driver comes up; the guests notice nothing."""
    result = smoke(tmp_path / "report", patch)
    assert result.failure is None and result.code == ExitCode.FAILED
    conformance = result.report.conformance
    assert conformance is not None
    assert {found.rule for found in conformance.nonconformances} == {"BOOK-6"}
    assert min(found.seq for found in conformance.nonconformances) < 1000, "not at the first call that shows it"
    assert all(guest.xtest is not None and guest.xtest.good for guest in result.report.guests)


def test_the_unmodified_mediator_holds_what_optee_has(tmp_path: Path) -> None:
    result = smoke(tmp_path / "report")
    assert result.code == ExitCode.GOOD and result.report.conformance is not None
    rule = result.report.conformance.rule("BOOK-6")
    assert (rule.verdict, rule.failed) == ("pass", 0) and rule.passed > 100

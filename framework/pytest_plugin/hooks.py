# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks: markers that follow from fixtures, what a failed test shows, and the deviations that a run saw."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from framework.common.safe_text import visible
from framework.pytest_plugin.fixtures import failed_key, target_key
from framework.pytest_plugin.former import translate_markers
from framework.pytest_plugin.probes import WAITING
from framework.pytest_plugin.verdict import BOARD_FIXTURES

_TAIL_LINES = 25


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the users of boards and probes, before pytest chooses by ``-m``.

    A board's users carry ``mc_board``. A probe's board begins where that probe waits, or where dom0 is ready if it is
    to be made, unless another checkpoint was asked for; and it is traced.
    """
    translate_markers(items)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & BOARD_FIXTURES:
            item.add_marker(pytest.mark.mc_board)
            # Its name of 0.1, for users of -m "not board".
            item.add_marker(pytest.mark.board)
        if "make_probe" in fixtures:
            item.add_marker(pytest.mark.mc_traced)
            if item.get_closest_marker("mc_checkpoint") is None:
                begins = next((WAITING[name] for name in WAITING if name in fixtures), "dom0")
                item.add_marker(pytest.mark.mc_checkpoint(begins))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Complete the report of a test that had a board, and turn that of one without stimulus around."""
    report = yield
    if report.failed:
        item.stash[failed_key] = True
        if call.excinfo is not None and getattr(call.excinfo.value, "hang", False):
            item.user_properties.append(("hang", "yes"))
            report.user_properties = list(item.user_properties)
    _show_consoles(item, report)
    without = item.config.getoption("mc_no_stimulus") and "make_probe" in getattr(item, "fixturenames", ())
    if without and call.when == "call" and not report.skipped:
        # A probe's test that fails without stimulus is as it should be, and one that passes proves nothing.
        if report.passed:
            report.longrepr = f"{item.nodeid} passes although its probe made no call"
        report.outcome = "failed" if report.passed else "passed"
    return report


def _show_consoles(item: pytest.Item, report: pytest.TestReport) -> None:
    """The end of every console and what was recognised there, in the report of a failed board test."""
    target = item.stash.get(target_key, None)
    if target is None or not report.failed or item.get_closest_marker("mc_board") is None:
        return
    for problem in target.board.problem_log.shown():
        report.sections.append((f"console {problem.console}: {problem.kind}", visible(problem.line)))
    for name, console in target.board.consoles.items():
        report.sections.append((f"console {name} ({console.log})", "\n".join(console.tail(_TAIL_LINES))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the deviations that were seen: a passing test must not hide them."""
    seen = {
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "deviation"
    }
    if seen:
        terminalreporter.section("known deviations seen")
        for line in sorted(seen):
            terminalreporter.line(line)

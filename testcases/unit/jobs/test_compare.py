# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between two reports, and which of it is for the worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from framework.common.errors import UsageError
from framework.jobs.compare import Difference
from framework.jobs.compare import compare as compare_facts
from framework.report.facts import facts_of, load_facts

REPORT: dict[str, Any] = {
    "verdict": "pass",
    "reason": None,
    "stack": [{"name": "Xen (debug)", "version": "4.17.5", "sha256": "a" * 64, "origin": "built"}],
    "guests": [{"name": "vm1", "xtest": {"cases": [{"id": "1004", "status": "ok"}]}}, {"name": "vm2", "xtest": None}],
    "timings": [{"name": "dom0", "seconds": 8.0}],
    "conformance": {
        "rules": [{"id": "STD-1", "verdict": "pass"}],
        "deviations": [{"id": "D1", "status": "not seen"}],
    },
    "tests": [{"id": "abi/test_x", "status": "passed"}],
}


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    return compare_facts(facts_of(before), facts_of(after))


def changed(**changes: Any) -> dict[str, Any]:
    """The report with leaves replaced: ``rules`` the verdict of STD-1, and so on."""
    report = deepcopy(REPORT)
    places = {
        "stack": (report["stack"][0], "version"),
        "rule": (report["conformance"]["rules"][0], "verdict"),
        "deviation": (report["conformance"]["deviations"][0], "status"),
        "xtest": (report["guests"][0]["xtest"]["cases"][0], "status"),
        "test": (report["tests"][0], "status"),
        "timing": (report["timings"][0], "seconds"),
        "verdict": (report, "verdict"),
    }
    for kind, value in changes.items():
        place, key = places[kind]
        place[key] = value
    return report


def test_equal_reports_have_no_differences() -> None:
    assert compare(REPORT, deepcopy(REPORT)) == []


@pytest.mark.parametrize(
    ("kind", "value", "worse", "back"),
    [
        ("stack", "4.20.4", False, False),
        ("rule", "fail", True, False),
        ("rule", "not exercised", True, False),
        ("rule", "deviation", True, False),
        ("deviation", "seen", True, False),
        ("xtest", "failed", True, False),
        ("xtest", "skipped", True, False),
        ("test", "error", True, False),
        ("timing", 20.0, False, False),
        ("verdict", "fail", True, False),
    ],
)
def test_each_kind_of_difference_is_told_and_judged(kind: str, value: Any, worse: bool, back: bool) -> None:
    there, again = compare(REPORT, changed(**{kind: value})), compare(changed(**{kind: value}), REPORT)
    assert [(found.kind, found.worse) for found in there] == [(kind, worse)]
    assert [(found.kind, found.worse) for found in again] == [(kind, back)]
    assert str(value) in str(there[0])


def test_small_changes_of_times_are_no_differences() -> None:
    assert compare(REPORT, changed(timing=11.0)) == []


def test_a_report_without_evidence_lost_it() -> None:
    without = deepcopy(REPORT)
    del without["conformance"]
    assert [(found.name, found.after, found.worse) for found in compare(REPORT, without)] == [
        ("STD-1", "missing", True),
        ("D1", "missing", False),
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', None])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match="is no report"):
        load_facts(tmp_path)


def broken(change: Any) -> bytes:
    report = deepcopy(REPORT)
    change(report)
    return json.dumps(report).encode()


@pytest.mark.parametrize(
    "content",
    [
        b'{"verdict": 1, "stack": 2}',
        b"[" * 200_000,
        b'{"verdict": ' + b"9" * 5000 + b', "stack": []}',
        b'\xff\xfe{"verdict": "pass"',
        broken(lambda report: report.update(stack=[1])),
        broken(lambda report: report.update(verdict=["pass"])),
        broken(lambda report: report.update(reason=1)),
        broken(lambda report: report.update(conformance=None)),
        broken(lambda report: report["conformance"]["rules"].append({"id": [], "verdict": "pass"})),
        broken(lambda report: report["guests"][0]["xtest"]["cases"][0].update(status=5)),
        broken(lambda report: report["timings"][0].update(seconds="8")),
        broken(lambda report: report.pop("guests")),
    ],
)
def test_a_damaged_report_is_wrong_use_and_no_defect(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UsageError, match="is no report"):
        load_facts(tmp_path)


def test_what_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(UsageError, match="this is not a file"):
        load_facts(tmp_path / "report.json")
    monkeypatch.setattr("framework.report.facts._MOST_BYTES", 100)
    (tmp_path / "long.json").write_text(json.dumps(REPORT))
    with pytest.raises(UsageError, match="more than"):
        load_facts(tmp_path / "long.json")


def test_the_command_ends_with_one_when_something_is_worse(tmp_path: Path) -> None:
    for name, report in (("a", REPORT), ("b", changed(rule="fail", stack="4.20.4"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))

    def run(one: str, other: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "framework.cli", "compare", str(tmp_path / one), str(tmp_path / other)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("a", "b")
    assert done.returncode == 1
    assert "! rule      STD-1: pass -> fail" in done.stdout
    assert "2 differences, 1 for the worse" in done.stdout
    assert run("b", "a").returncode == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""Matrices without a board: which runs are made, what a broken one is, and that nothing is made twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from framework.artifacts.overrides import Overrides
from framework.common.errors import ExitCode, UsageError
from framework.common.progress import Silent
from framework.jobs import cells
from framework.jobs.cells import FILES, Cell, Outcome
from framework.jobs.compare import compare_all
from framework.jobs.matrix import MatrixOptions, MatrixResult, matrix
from framework.jobs.run import RunOptions
from framework.report.facts import load_facts
from framework.report.matrix import schema
from testcases.unit.artifacts.xen_tree import commit, git, make_tree
from testcases.unit.jobs.test_compare import REPORT

MEDIATOR = "xen/arch/arm/tee/optee.c"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with two versions, and `same`, another name of the second."""
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    tree = commit(make_tree(tmp_path / "xen"), tag="v1")
    (tree / MEDIATOR).write_text("changed")
    commit(tree, tag="v2")
    git(tree, "tag", "same")
    return tree


class Runs:
    """Stand-in of what needs a board: notes each run, and ends as told for the content of the mediator."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.verdicts: list[str] = []

    def __call__(self, cell: Cell, _folder: Path, _progress: object) -> Outcome:
        self.made.append(cell.options.overrides.xen_rev or "")
        verdict = self.verdicts.pop(0) if self.verdicts else "pass"
        if verdict == "broken":
            return Outcome(error="building Xen failed:\n    optee.c:1: error: no such thing\n  -> correct it")
        if verdict == "interrupted":
            raise KeyboardInterrupt
        report = {**REPORT, "verdict": verdict, "reason": None if verdict == "pass" else "STD-1 broken", "seconds": 1.0}
        return Outcome({file: json.dumps(report).encode() for file in FILES}, None)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(cells, "execute", runs)
    return runs


def make(tree: Path | None, report: Path, *revs: str, compilers: tuple[str, ...] = ()) -> MatrixResult:
    run = RunOptions(profile="smoke", overrides=Overrides(xen_tree=tree), offline=True, report=report)
    result = matrix(MatrixOptions(run, revs, compilers), Silent())
    jsonschema.validate(json.loads((report / "matrix.json").read_bytes()), schema())
    return result


def columns(result: MatrixResult) -> dict[str, tuple[str, bool]]:
    return {item["name"]: (item["verdict"], item["cached"]) for item in result.document["columns"]}


def test_equal_content_is_run_once_and_not_again(tree: Path, tmp_path: Path, runs: Runs) -> None:
    first = make(tree, tmp_path / "a", "v1", "v2", "same")
    assert len(runs.made) == 2
    assert columns(first) == dict.fromkeys(("v1", "v2", "same"), ("pass", False))
    assert first.code is ExitCode.GOOD
    second = make(tree, tmp_path / "b", "v1", "v2")
    assert len(runs.made) == 2
    assert columns(second) == dict.fromkeys(("v1", "v2"), ("pass", True))
    assert (tmp_path / "b/1-v1/report.json").exists()


def test_a_broken_cell_is_a_column_and_is_tried_again(tree: Path, tmp_path: Path, runs: Runs) -> None:
    runs.verdicts = ["broken", "pass"]
    result = make(tree, tmp_path / "a", "v1", "v2")
    assert columns(result) == {"v1": ("infrastructure", False), "v2": ("pass", False)}
    assert result.code is ExitCode.INFRASTRUCTURE
    assert "optee.c:1: error: no such thing" in (tmp_path / "a/summary.md").read_text()
    result = make(tree, tmp_path / "b", "v1", "v2")
    assert columns(result) == {"v1": ("pass", False), "v2": ("pass", True)}


def test_what_failed_decides_the_exit_code(tree: Path, tmp_path: Path, runs: Runs) -> None:
    runs.verdicts = ["broken", "fail"]
    result = make(tree, tmp_path / "a", "v1", "v2")
    assert result.code is ExitCode.FAILED
    assert result.document["reason"] == "1 of 2 columns failed: v2"


def test_an_interruption_leaves_the_table_and_costs_one_cell(tree: Path, tmp_path: Path, runs: Runs) -> None:
    runs.verdicts = ["pass", "interrupted"]
    with pytest.raises(KeyboardInterrupt):
        make(tree, tmp_path / "a", "v1", "v2")
    document = json.loads((tmp_path / "a/matrix.json").read_bytes())
    assert [item["reason"] for item in document["columns"]] == [None, "it did not run"]
    assert columns(make(tree, tmp_path / "a", "v1", "v2")) == {"v1": ("pass", True), "v2": ("pass", False)}


def test_a_patch_that_does_not_apply_somewhere_is_a_column(tree: Path, tmp_path: Path, runs: Runs) -> None:
    patch = tmp_path / "fix.patch"
    patch.write_text(
        f"--- a/{MEDIATOR}\n+++ b/{MEDIATOR}\n@@ -1 +1 @@\n-changed\n\\ No newline at end of file\n+fixed\n"
    )
    run = RunOptions(profile="smoke", overrides=Overrides(xen_tree=tree, xen_patch=(patch,)), offline=True,
                     report=tmp_path / "a")  # fmt: skip
    result = matrix(MatrixOptions(run, ("v1", "v2")), Silent())
    assert columns(result) == {"v1": ("infrastructure", False), "v2": ("pass", False)}
    assert "does not apply" in result.document["columns"][0]["reason"]
    assert len(runs.made) == 1


def test_compilers_are_the_second_axis(tree: Path, tmp_path: Path, runs: Runs) -> None:
    result = make(tree, tmp_path / "a", "v1", "v2", compilers=("gcc", "aarch64-linux-gnu-gcc"))
    assert list(columns(result)) == ["v1 gcc", "v1 aarch64-linux-gnu-gcc", "v2 gcc", "v2 aarch64-linux-gnu-gcc"]
    assert len(runs.made) == 4


def test_a_commit_is_taken_by_its_hash(tree: Path, tmp_path: Path, runs: Runs) -> None:
    make(tree, tmp_path / "a", "v1")
    assert runs.made == [git(tree, "rev-parse", "v1").strip()]


def test_wrong_use_ends_before_anything_runs(tree: Path, tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(UsageError, match="no commit v3"):
        make(tree, tmp_path / "a", "v1", "v3")
    with pytest.raises(UsageError, match="--revs needs --xen-tree"):
        make(None, tmp_path / "a", "v1")
    assert not runs.made


def test_two_matrices_are_compared_column_by_column(tree: Path, tmp_path: Path, runs: Runs) -> None:
    make(tree, tmp_path / "a", "v1", "v2")
    runs.verdicts = ["fail"]
    (tree / MEDIATOR).write_text("worse")
    commit(tree)
    git(tree, "tag", "-f", "v2")
    make(tree, tmp_path / "b", "v1", "v2")
    worse = compare_all(load_facts(tmp_path / "a"), load_facts(tmp_path / "b"))
    assert [(item.name, item.after, item.worse) for item in worse] == [("v2: run", "fail (STD-1 broken)", True)]
    better = compare_all(load_facts(tmp_path / "b/matrix.json"), load_facts(tmp_path / "a"))
    assert [item.worse for item in better] == [False]
    one = {name: facts for name, facts in load_facts(tmp_path / "a").items() if name == "v1"}
    gone = compare_all(load_facts(tmp_path / "a"), one)
    assert [(item.kind, item.name, item.after, item.worse) for item in gone] == [("column", "v2", "missing", True)]
    with pytest.raises(UsageError, match="compare two reports, or two matrices"):
        compare_all(load_facts(tmp_path / "a"), load_facts(tmp_path / "a/1-v1"))


def test_a_hostile_report_of_a_worker_stays_text(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "</td><script>alert(1)</script>|`\x1b[31m"
    report: dict[str, Any] = {**REPORT, "verdict": "fail", "reason": hostile, "seconds": 1.0,
                              "tests": [{"id": hostile, "status": hostile}]}  # fmt: skip
    outcome = Outcome({file: json.dumps(report).encode() for file in FILES})
    monkeypatch.setattr(cells, "execute", lambda *_: replace(outcome))
    make(tree, tmp_path / "a", "v1")
    page = (tmp_path / "a/index.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page + (tmp_path / "a/summary.md").read_text()
    assert "\\|" in (tmp_path / "a/summary.md").read_text()

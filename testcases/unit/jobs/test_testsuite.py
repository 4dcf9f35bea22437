# SPDX-License-Identifier: GPL-2.0-or-later
"""What the main job takes from the results of the tests it runs."""

from __future__ import annotations

import ast
import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.artifacts.stack import Overrides
from framework.common.errors import InfrastructureError
from framework.common.paths import SUITE
from framework.common.progress import Silent
from framework.conformance.checker import check_file
from framework.conformance.result import RESULT_FILE
from framework.conformance.rules_doc import board_tests
from framework.jobs import testsuite
from framework.jobs.profiles import profiles
from framework.jobs.run_report import slowdown_of
from framework.jobs.testsuite import identifier, path_of, read_results, results_of_stimuli, run_stimuli
from framework.report.model import BoardTestReport, GuestReport
from framework.report.write import write_report
from testcases.unit.conformance.samples import simple_trace
from testcases.unit.report.sample import sample


def results(folder: Path, *cases: tuple[str, dict[str, str]]) -> Path:
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite")
    for name, properties in cases:
        case = ET.SubElement(suite, "testcase", classname="isolation.test_x", name=name, time="1.5")
        holder = ET.SubElement(case, "properties")
        for key, value in properties.items():
            ET.SubElement(holder, "property", name=key, value=value)
    path = folder / "results.xml"
    ET.ElementTree(root).write(path)
    return path


def test_a_tests_slowdown_is_read(tmp_path: Path) -> None:
    path = results(tmp_path, ("test_a", {"slowdown": "vm1=1.830", "rule": "STD-1=pass"}), ("test_b", {}))
    first, second = read_results(path)
    assert (first.id, first.slowdowns, first.rules) == ("isolation/test_x::test_a", {"vm1": 1.83}, ("STD-1=pass",))
    assert second.slowdowns == {}


def test_what_a_stimulus_proves_is_said_while_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run is asked to end there with ``--fail-fast``."""
    said: list[str] = []
    commands: list[list[str]] = []
    results(tmp_path, ("test_a", {}))

    def started(command: list[str], **_: object) -> Any:
        commands.append(command)
        return nullcontext(SimpleNamespace(returncode=0))

    def follow(_process: Any, take: Callable[[bytes], object]) -> bool:
        for piece in (b"..\nnonconf", b"ormance: STD-5 (\x1b[31mtitle) in x::y\nanother line\n.", b"."):
            take(piece)
        (tmp_path / "results.xml").rename(tmp_path / "testcases.xml")
        return False

    progress = Silent()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr("framework.jobs.testsuite.subprocess.Popen", started)
    monkeypatch.setattr(testsuite, "follow", follow)
    run_stimuli((), Overrides(), "default", None, tmp_path, progress, fail_fast=True)
    assert said == ["nonconformance: STD-5 (^[[31mtitle) in x::y"]
    assert "--mc-fail-fast" in commands[0]


def test_a_test_that_silence_failed_hangs(tmp_path: Path) -> None:
    path = results(tmp_path, ("test_a", {"hang": "yes"}))
    tree = ET.parse(path)
    (case,) = tree.getroot().iter("testcase")
    ET.SubElement(case, "failure", message="no byte for 30.0 s")
    tree.write(path)
    (test,) = read_results(path)
    assert (test.status, test.error) == ("hang", "no byte for 30.0 s")


def test_a_stimulus_is_found_again_by_its_id() -> None:
    path = path_of("abi/test_rpc::test_x[a-b]")
    assert path == f"{SUITE}/abi/test_rpc.py::test_x[a-b]"
    assert identifier(path) == "abi/test_rpc::test_x[a-b]"


@pytest.mark.parametrize(("guest", "factor"), [("vm1", 2.5), ("vm2", 1.1), ("vm3", None)])
def test_the_largest_slowdown_of_a_guest_counts(guest: str, factor: float | None) -> None:
    tests = [
        BoardTestReport("a", "passed", 1.0, slowdowns={"vm1": 2.5, "vm2": 1.1}),
        BoardTestReport("b", "passed", 1.0, slowdowns={"vm1": 1.2}),
        BoardTestReport("c", "passed", 1.0),
    ]
    assert slowdown_of(guest, tests) == factor


def test_a_slowdown_is_in_the_report(tmp_path: Path) -> None:
    report = sample(tmp_path, scale=0.02)
    guests = (GuestReport("vm1", 1, report.guests[0].xtest, slowdown=1.83), GuestReport("vm2", 2))
    test = BoardTestReport("isolation/test_x::test_a", "passed", 1.0, slowdowns={"vm1": 1.83})
    write_report(dataclasses.replace(report, guests=guests, tests=(test,)), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [guest["slowdown"] for guest in written["guests"]] == [1.83, None]
    assert written["tests"][0]["slowdowns"] == {"vm1": 1.83}
    assert "1.83×" in (tmp_path / "index.html").read_text()


def test_the_nightly_profile_leaves_no_test_of_the_suite_out() -> None:
    """It chooses by the marker that says what a test is about: each of them carries it."""
    assert profiles()["nightly"].tests == ("-m", "mc_rule")
    there = {
        f"{path.relative_to(SUITE).as_posix()}::{node.name}"
        for path in SUITE.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    }
    assert len(there) > 50
    assert there == {test for tests in board_tests().values() for test in tests}


def left_by_a_stimulus(folder: Path, name: str = "abi/test_rpc.py::test_x") -> Path:
    """The result of a stimulus's trace, where the plugin leaves it."""
    simple_trace(folder / "board.trace")
    path = folder / "testcases/test_x/trace" / RESULT_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"test": name, **check_file(folder / "board.trace").to_json()}))
    return path


def test_the_result_of_a_stimulus_is_read_back(tmp_path: Path) -> None:
    left_by_a_stimulus(tmp_path)
    (found,) = results_of_stimuli(tmp_path).items()
    assert found == ("abi/test_rpc::test_x", check_file(tmp_path / "board.trace"))


@pytest.mark.parametrize("change", [
    lambda _data: "",
    lambda _data: "[" * 100_000,
    lambda _data: '"a text"',
    lambda data: json.dumps({**data, "test": None}),
    lambda data: json.dumps({**data, "rules": 1}),
    lambda data: json.dumps({**data, "rules": data["rules"][1:]}),
    lambda data: json.dumps({**data, "nonconformances": [{"rule": "STD-1"}]}),
    lambda data: json.dumps({key: value for key, value in data.items() if key != "gaps"}),
])  # fmt: skip
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, change: Callable[[Any], str]) -> None:
    path = left_by_a_stimulus(tmp_path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(InfrastructureError, match="a stimulus's result cannot be read") as caught:
        results_of_stimuli(tmp_path)
    assert caught.value.where == str(path)


def test_what_an_earlier_run_left_in_the_folder_is_no_evidence(tmp_path: Path) -> None:
    left_by_a_stimulus(tmp_path)
    results(tmp_path, ("test_a", {})).rename(tmp_path / "testcases.xml")
    with pytest.raises(InfrastructureError, match="pytest broke off"):
        run_stimuli(("--no-such-option",), Overrides(), "default", None, tmp_path, Silent())
    assert results_of_stimuli(tmp_path) == {}
    assert not (tmp_path / "testcases.xml").exists()

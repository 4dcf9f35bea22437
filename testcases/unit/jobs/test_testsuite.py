# SPDX-License-Identifier: GPL-2.0-or-later
"""What the main job takes from the results of the tests it runs."""

from __future__ import annotations

import ast
import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from framework.common.paths import SUITE
from framework.conformance.rules_doc import board_tests
from framework.jobs.profiles import profiles
from framework.jobs.run_report import slowdown_of
from framework.jobs.testsuite import read_results
from framework.report.model import BoardTestReport, GuestReport
from framework.report.write import write_report
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

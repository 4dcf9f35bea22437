# SPDX-License-Identifier: GPL-2.0-or-later
"""report.json against its schema, junit.xml, summary.md, and that a report is written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from framework.common.disclosure import TELL_FIRST
from framework.report import html, json_report, junit, markdown, model
from framework.report.write import point_latest, write_report
from testcases.unit.report.sample import HOSTILE, sample

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(sample(folder, scale=0.02), folder)
    return folder


def validate(content: object) -> None:
    jsonschema.validate(content, json_report.schema(), cls=jsonschema.Draft202012Validator)


def test_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json_report.schema())


@pytest.mark.parametrize("failing", [True, False])
def test_real_output_fits_the_schema(tmp_path: Path, failing: bool) -> None:
    write_report(sample(tmp_path, failing=failing, scale=0.02), tmp_path)
    content = json.loads((tmp_path / "report.json").read_bytes())
    validate(content)
    assert ("conformance" in content) is failing


def test_infrastructure_failure_before_any_guest_fits_the_schema(tmp_path: Path) -> None:
    report = model.RunReport(
        verdict="infrastructure", reason="the board did not start\n  -> see qemu.log", profile="smoke",
        started="2025-03-14T15:09:26+00:00", seconds=0.2, stack=(),
        guests=(model.GuestReport("vm1"),), reproduce="x",
    )  # fmt: skip
    write_report(report, tmp_path)
    validate(json.loads((tmp_path / "report.json").read_bytes()))
    assert "the board did not start." in (tmp_path / "index.html").read_text()
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert root.get("errors") == "2"  # the run, and vm1's xtest that never ran


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "good"),
        (("stack", 0, "sha256"), "abc"),
        (("guests", 0, "xtest", "cases", 0, "subtests"), None),
        (("conformance", "rules", 0, "verdict"), "unknown"),
    ],
)
def test_schema_refuses_what_breaks_the_contract(written: Path, path: tuple[str | int, ...], value: object) -> None:
    content = json.loads((written / "report.json").read_bytes())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(content)


def test_contract_keys(written: Path) -> None:
    content = json.loads((written / "report.json").read_bytes())
    assert content["stack"][0].keys() == {"name", "version", "sha256", "origin"}
    assert {"name", "domid", "xtest"} <= content["guests"][0].keys()
    case = content["guests"][1]["xtest"]["cases"][9]
    assert {"id", "title", "status", "seconds", "subtests"} <= case.keys()
    assert {"id", "status", "error"} <= case["subtests"][4].keys()
    assert content["consoles"][0] == {"name": "xen", "file": "consoles/xen.log"}
    assert content["artifacts"] == ["trace/run.mct"]


def test_json_has_a_line_per_subtest(written: Path) -> None:
    lines = (written / "report.json").read_text().splitlines()
    wanted = '{"id": "regression_1001.2", "status": "OK", "error": null, "title": "", "seconds": 0.0}'
    assert sum(line.strip().rstrip(",") == wanted for line in lines) == 2


def test_guest_text_survives_in_json_but_for_lone_surrogates(written: Path) -> None:
    content = json.loads((written / "report.json").read_bytes())
    assert HOSTILE.replace("\ud800", "?") in content["guests"][1]["xtest"]["cases"][9]["subtests"][4]["error"]


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    report = dataclasses.replace(sample(tmp_path, scale=0.02), seconds=float("nan"))
    write_report(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_bytes())
    assert content["seconds"] is None
    validate(content)


def test_junit_has_a_suite_per_guest_and_a_case_per_case(written: Path) -> None:
    root = ET.parse(written / "junit.xml").getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"vm1", "vm2", "conformance", "board"}
    vm2 = suites["vm2"]
    assert (vm2.get("tests"), vm2.get("failures"), vm2.get("errors"), vm2.get("skipped")) == (
        "12",
        "1",
        "0",
        "1",
    )
    assert (suites["vm1"].get("tests"), suites["vm1"].get("failures")) == ("12", "0")
    for name in ("tests", "failures", "errors", "skipped"):
        assert int(root.get(name, "")) == sum(int(suite.get(name, "")) for suite in root)
    assert suites["board"].find("testcase[@name='consoles']/failure") is not None


def test_junit_failure_names_its_first_error_and_lists_subtests(written: Path) -> None:
    root = ET.parse(written / "junit.xml").getroot()
    case = next(c for c in root.iter("testcase") if c.find("failure") is not None and c.get("classname") == "vm2.xtest")
    assert (case.get("name") or "").startswith("regression_5006 ")
    failure = case.find("failure")
    assert failure is not None
    assert (failure.get("message") or "").startswith("regression_5000.c:1234: res has an unexpected value")
    assert "^[[31m" in (failure.get("message") or "")
    lines = (case.findtext("system-out") or "").splitlines()
    assert len(lines) == 7
    assert lines[4] == "regression_5006.5 FAILED"


def test_junit_deviation_is_neither_pass_nor_failure(written: Path) -> None:
    root = ET.parse(written / "junit.xml").getroot()
    case = next(c for c in root.iter("testcase") if (c.get("name") or "").startswith("MEM-11"))
    skipped = case.find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "known deviation D3"


def test_case_that_never_ended_is_an_error_in_junit(tmp_path: Path) -> None:
    report = sample(tmp_path, failing=False)
    xtest = report.guests[0].xtest
    assert xtest is not None
    cut = dataclasses.replace(xtest.cases[0], status="crashed", seconds=None, error="began and never ended")
    guest = dataclasses.replace(report.guests[0], xtest=dataclasses.replace(xtest, cases=(cut,)))
    content = json_report.document(dataclasses.replace(report, guests=(guest,)), tmp_path)
    suite = ET.fromstring(junit.render(content)).find("testsuite[@name='vm1']")
    assert suite is not None
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
    assert suite.find("testcase/error[@message='began and never ended']") is not None


def test_unfinished_xtest_has_no_totals_but_its_problems_everywhere(tmp_path: Path) -> None:
    totals = model.XtestTotals(None, None, None, None, None, agree=False)
    sentence = "xtest ended with exit code 139 before it gave its totals"
    guest = model.GuestReport("vm1", 1, model.XtestReport((), totals, 139, (sentence,)))
    write_report(dataclasses.replace(sample(tmp_path, scale=0.02), guests=(guest,)), tmp_path)
    validate(json.loads((tmp_path / "report.json").read_bytes()))
    for name in ("index.html", "junit.xml", "summary.md"):
        assert sentence in (tmp_path / name).read_text()
    assert "| vm1   |      – |      – |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"exit_code": 1}, False),
        ({"exit_code": None}, False),
        ({"cases": ()}, False),
        ({"totals": model.XtestTotals(12, 0, 99, 0, agree=False)}, False),
        ({"totals": model.XtestTotals(12, 0, 99, 1)}, False),
        ({"totals": model.XtestTotals(None, None, None, None)}, False),
        ({"problems": ("this xtest has no case 9999",)}, False),
    ],
)
def test_good_needs_everything_to_agree(tmp_path: Path, change: dict[str, Any], good: bool) -> None:
    xtest = sample(tmp_path, failing=False).guests[0].xtest
    assert xtest is not None
    assert dataclasses.replace(xtest, **change).good is good


def test_summary_is_plain_on_a_terminal_and_escaped_in_markdown(tmp_path: Path) -> None:
    content = json_report.document(sample(tmp_path), tmp_path)
    terminal = markdown.summary(content)
    assert "\x1b" not in terminal
    assert "\u202e" not in terminal
    assert "(XEN) Assertion 'page_get_owner(pg)' failed" in terminal
    page = markdown.summary(content, terminal=False)
    assert "<img" not in page
    assert "&lt;img" in page


@pytest.mark.parametrize("live", ["@maintainer", "https://evil.example", "WWW.evil.example", "ftp://x.org", "a@b.org"])
def test_no_guest_makes_a_link_or_calls_a_person(tmp_path: Path, live: str) -> None:
    problem = model.Problem("linux-bug", "guest0", f"kernel BUG at {live}", 1.0)
    content = json_report.document(dataclasses.replace(sample(tmp_path), problems=(problem,)), tmp_path)
    assert live in markdown.summary(content)
    page = markdown.summary(content, terminal=False)
    assert live not in page
    # A reader sees the same.
    assert live in page.replace("<!-- -->", "")


def test_json_gives_title_severity_and_reasons_of_each_rule(written: Path) -> None:
    rules = {rule["id"]: rule for rule in json.loads((written / "report.json").read_text())["conformance"]["rules"]}
    assert all(rule["title"] and rule["severity"] for rule in rules.values())
    assert rules["STD-9"]["not_checked"] == 7
    assert rules["STD-9"]["reasons"][0] == "the page was not observed (6x)"


def test_summary_counts_rules_and_names_the_broken_and_the_private(tmp_path: Path) -> None:
    text = markdown.summary(json_report.document(sample(tmp_path), tmp_path))
    assert "Of 35 rules: 1 broken, 1 with a known deviation, 20 held, 5 could not be checked" in text
    assert "- broken: RPC-12" in text
    assert f"- known deviation D3 (MEM-11, MEM-7) ({TELL_FIRST})" in text


def test_headline_of_a_pass_counts_what_passed(tmp_path: Path) -> None:
    content = json_report.document(sample(tmp_path, failing=False), tmp_path)
    assert markdown.headline(content) == (
        "22 xtest cases with 7,542 subtests passed in 2 domains at the same time; 2 skipped."
    )


@pytest.mark.parametrize("broken", ["render", "disk"])
def test_half_a_report_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_report(sample(tmp_path, failing=False), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full_disk(_fd: int) -> None:
        full_disk.calls += 1  # type: ignore[attr-defined]
        if full_disk.calls == 3:  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

    def broken_page(_content: object, _folder: Path) -> str:
        raise RuntimeError("template")

    full_disk.calls = 0  # type: ignore[attr-defined]
    if broken == "disk":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr(html, "render", broken_page)
    with pytest.raises((OSError, RuntimeError)):
        write_report(sample(tmp_path, failing=True), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_latest_moves_from_one_report_to_the_next(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        link = point_latest(tmp_path, tmp_path / name)
        assert link == tmp_path / "latest"
        assert link.is_symlink()
        assert link.readlink() == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "latest"]


def test_what_is_flaky_is_shown_with_its_rate_everywhere(tmp_path: Path) -> None:
    report = sample(tmp_path, scale=0.02, failing=False)
    flaky = model.Case("regression_2001", "UDP", "flaky", 1.0, (), "began and never ended", ("ok", "hang", "ok"))
    totals = model.XtestTotals(1, 1, 1, 1)
    guest = model.GuestReport("vm1", 1, model.XtestReport((flaky,), totals, 1))
    test = model.BoardTestReport("abi/test_x::test_y", "flaky", 1.0, "no answer", reruns=("passed",))
    report = dataclasses.replace(report, verdict="flaky", reason="x", guests=(guest,), tests=(test,))
    content = write_report(report, tmp_path)
    validate(content)
    assert content["guests"][0]["xtest"]["cases"][0]["reruns"] == ["ok", "hang", "ok"]
    said = markdown.summary(content)
    assert said.startswith("**FLAKY** x.")
    assert "regression_2001 UDP: flaky, failed 2 of 4 times: began and never ended" in said
    assert "Exact and hostile stimuli: 1 flaky." in said
    assert "abi/test_x::test_y: flaky, failed 1 of 2 times: no answer" in said
    page = (tmp_path / "index.html").read_text()
    assert '<span class="badge flaky">flaky</span>' in page
    assert "failed 2 of 4 times" in page and "failed 1 of 2 times" in page
    junit = ET.fromstring((tmp_path / "junit.xml").read_bytes())
    found = {element.get("message") for element in junit.iter("flakyFailure")}
    assert found == {"failed 2 of 4 times", "failed 1 of 2 times"}
    assert junit.get("failures") == "0"

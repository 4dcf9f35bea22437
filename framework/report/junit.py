# SPDX-License-Identifier: GPL-2.0-or-later
"""``junit.xml``: a testsuite per guest, a testcase per xtest case; suites for conformance and the board."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from framework.common.safe_text import one_line, xml_text
from framework.report.model import outcome, rate

_LISTED = 200
"""Failed subtests that a failure's text names; ``report.json`` has them all."""


def render(content: Mapping[str, Any]) -> bytes:
    """The JUnit file of a ``report.json`` document."""
    root = ET.Element("testsuites", name="medcheck", time=_seconds(content["seconds"]))
    for guest in content["guests"]:
        _guest(root, guest, content)
    if "conformance" in content:
        _conformance(root, content["conformance"])
    if content["tests"]:
        _tests(root, content["tests"])
    _board(root, content)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root, " ")
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _guest(root: ET.Element, guest: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    xtest = guest["xtest"]
    suite = _suite(root, guest["name"], content)
    properties = ET.SubElement(suite, "properties")
    _property(properties, "domid", guest["domid"])
    for component in content["stack"]:
        _property(properties, f"stack.{component['name']}", f"{component['version']} {component['sha256']}")
    if xtest is None:
        case = _case(suite, guest["name"], "xtest", None)
        _text(ET.SubElement(case, "error", message="xtest did not run"), content["reason"] or "")
    else:
        for key, total in xtest["totals"].items():
            _property(properties, f"xtest.{key}", total)
        _property(properties, "xtest.exit_code", xtest["exit_code"])
        for each in xtest["cases"]:
            _xtest_case(suite, guest["name"], each)
        if xtest["problems"]:
            case = _case(suite, guest["name"], "xtest as a whole", None)
            message = one_line_xml(xtest["problems"][0])
            _text(ET.SubElement(case, "error", message=message), "\n".join(xtest["problems"]))
    _count(suite)


def _xtest_case(suite: ET.Element, guest: str, case: Mapping[str, Any]) -> None:
    element = _case(suite, f"{guest}.xtest", f"{case['id']} {case['title']}".strip(), case["seconds"])
    kind = outcome(case["status"])
    bad = [sub for sub in case["subtests"] if outcome(sub["status"]) in ("fail", "lost")]
    if kind == "skip":
        ET.SubElement(element, "skipped", message=one_line_xml(case["status"]))
    elif kind == "flaky":
        _flaky(element, case)
    elif kind != "pass" or bad:
        named = next((sub["error"] for sub in bad if sub["error"]), None)
        first = named or case["error"] or f"{case['id']}: {case['status']}"
        tag = "error" if kind == "lost" else "failure"
        lines = [f"{sub['id']} {sub['status']}: {sub['error'] or ''}".rstrip(": ") for sub in bad[:_LISTED]]
        if len(bad) > _LISTED:
            lines.append(f"{len(bad) - _LISTED} more failed subtests are in report.json")
        _text(
            ET.SubElement(element, tag, message=one_line_xml(first), type=one_line_xml(case["status"])),
            "\n".join(lines),
        )
    if case["subtests"]:
        listing = "\n".join(f"{sub['id']} {sub['status']}" for sub in case["subtests"])
        _text(ET.SubElement(element, "system-out"), listing)


def _flaky(element: ET.Element, item: Mapping[str, Any]) -> None:
    """Add the word of Maven's Surefire for what failed and passed when it ran again, which readers count as passed."""
    message = one_line_xml(rate(item))
    _text(ET.SubElement(element, "flakyFailure", message=message, type="flaky"), item["error"] or "")


def _conformance(root: ET.Element, conformance: Mapping[str, Any]) -> None:
    suite = ET.SubElement(root, "testsuite", name="conformance")
    for rule in conformance["rules"]:
        case = _case(suite, f"conformance.{rule['severity']}", f"{rule['id']} {rule['title']}", None)
        verdict = rule["verdict"]
        if verdict == "fail":
            found = [n for n in conformance["nonconformances"] if n["rule"] == rule["id"]]
            message = f"{rule['failed']} of {rule['checked']} checks failed"
            texts = "\n\n".join(
                f"{n['event']}\nexpected: {n['expected']}\nobserved: {n['observed']}\n{n['explanation']}" for n in found
            )
            _text(ET.SubElement(case, "failure", message=message), texts)
        elif verdict == "deviation":
            known = ", ".join(
                d["id"]
                for d in conformance["deviations"]
                if d["status"] == "seen" and rule["id"] in d["rule"].split(", ")
            )
            # JUnit has no word for it; neither a pass nor a failure that stops a merge would be true.
            ET.SubElement(case, "skipped", message=one_line_xml(f"known deviation {known}".rstrip()))
        elif verdict != "pass":
            ET.SubElement(case, "skipped", message=one_line_xml(": ".join([verdict, *rule["reasons"][:1]])))
    _count(suite)


def _tests(root: ET.Element, tests: Sequence[Mapping[str, Any]]) -> None:
    suite = ET.SubElement(root, "testsuite", name="testcases")
    for test in tests:
        case = _case(suite, "testcases", test["id"], test["seconds"])
        kind = outcome(test["status"])
        if kind == "skip":
            ET.SubElement(case, "skipped", message=one_line_xml(test["error"] or "skipped"))
        elif kind == "flaky":
            _flaky(case, test)
        elif kind != "pass":
            tag = "failure" if kind == "fail" else "error"
            _text(ET.SubElement(case, tag, message=one_line_xml(test["error"] or test["status"])), test["error"] or "")
        if test["deviations"]:
            _text(ET.SubElement(case, "system-out"), "\n".join(test["deviations"]))
    _count(suite)


def _board(root: ET.Element, content: Mapping[str, Any]) -> None:
    """Add the suite of the run as a whole: an infrastructure failure or a panic must not look like a pass."""
    suite = ET.SubElement(root, "testsuite", name="board", timestamp=xml_text(content["started"]))
    case = _case(suite, "board", "run", content["seconds"])
    if content["verdict"] == "infrastructure":
        message = one_line_xml(content["reason"] or "infrastructure failure")
        _text(ET.SubElement(case, "error", message=message), content["reason"] or "")
    case = _case(suite, "board", "consoles", None)
    if content["problems"]:
        first = content["problems"][0]
        message = one_line_xml(f"{first['kind']} on console {first['console']}: {first['text']}")
        lines = "\n".join(f"{p['kind']} {p['console']}: {p['text']}" for p in content["problems"])
        _text(ET.SubElement(case, "failure", message=message), lines)
    _count(suite)


def _suite(root: ET.Element, name: str, content: Mapping[str, Any]) -> ET.Element:
    return ET.SubElement(root, "testsuite", name=one_line_xml(name), timestamp=xml_text(content["started"]))


def _case(suite: ET.Element, classname: str, name: str, seconds: float | None) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname=one_line_xml(classname), name=one_line_xml(name))
    if seconds is not None:
        case.set("time", _seconds(seconds))
    return case


def _count(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", _seconds(sum(float(case.get("time", "0")) for case in cases)))


def _property(properties: ET.Element, name: str, value: object) -> None:
    ET.SubElement(properties, "property", name=one_line_xml(name), value=one_line_xml(str(value)))


def _text(element: ET.Element, text: str) -> None:
    element.text = xml_text(text)


def _seconds(seconds: float | None) -> str:
    return f"{seconds or 0:.3f}"


def one_line_xml(text: str) -> str:
    """Text for an XML attribute: one line, nothing that XML forbids."""
    return xml_text(one_line(text))

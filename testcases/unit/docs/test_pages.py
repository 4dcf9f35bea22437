# SPDX-License-Identifier: GPL-2.0-or-later
"""What pages promise each other: links lead somewhere, and tables agree with the code that they are about."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from framework.common.paths import ROOT
from framework.conformance.baseline import load_baseline
from framework.console.crash_signatures import CRASH_SIGNATURES
from mediator_ref import RULES
from testcases.style.test_house import ROOMS
from testcases.unit.docs import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in pages.anchors(target), f"{link}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        found = [(page.parent / link.partition("#")[0]).resolve() for link in pages.links(page) if "://" not in link]
        waiting += [path for path in found if path.suffix == ".md" and path.exists()]
    assert {pages.name(page) for page in pages.PAGES} - {pages.name(page) for page in seen} == set()


def test_requirements_and_sections_have_their_text_and_their_rules() -> None:
    page = ROOT / "docs/requirements.md"
    text = page.read_text(encoding="utf-8")
    rows = {row[1]: row[2] for row in re.finditer(r"^\| (R\d+) \|.*\|([^|]*)\|$", text, re.MULTILINE)}
    assert list(rows) == [f"R{number}" for number in range(1, 23)]
    for name, cell in rows.items():
        cited = {rule.id for rule in RULES.values() if name in rule.requirements}
        assert set(re.findall(r"[A-Z]+-\d+", cell)) == cited, name
    sections = set(re.findall(r"^### (1\.\d) ", text, re.MULTILINE))
    assert {section for rule in RULES.values() for section in rule.sections} == sections


def test_crash_signatures_are_explained() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    part = text[text.index("## Crash signatures") :]
    rows = re.findall(r"^\| (`[a-z0-9`, -]+`) \|", part[: part.index("## xtest")], re.MULTILINE)
    assert set(re.findall(r"`([a-z0-9-]+)`", " ".join(rows))) == {
        signature.kind for signatures in CRASH_SIGNATURES.values() for signature in signatures
    }


def test_rooms_are_described() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `((?:framework|mediator_ref)[\w.]*)` \|", text, re.MULTILINE) == list(ROOMS)


@pytest.mark.parametrize("name", ["howto-add-a-rule", "howto-add-a-deviation"])
def test_snippets_of_the_how_tos_are_those_of_the_code(name: str) -> None:
    files = [path for folder in ("mediator_ref", "testcases/suite") for path in (ROOT / folder).rglob("*.py")]
    code = {line.strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()}
    snippets = [text for language, text in pages.fences(ROOT / f"docs/{name}.md") if language == "python"]
    assert snippets
    assert [line for text in snippets for line in text.splitlines() if line.strip() not in code] == []


def test_the_baseline_of_the_papers_can_be_read(tmp_path: Path) -> None:
    (text,) = [text for language, text in pages.fences(ROOT / "docs/conformance.md") if language == "yaml"]
    path = tmp_path / "baseline.yaml"
    path.write_text(textwrap.dedent(text))
    assert set(load_baseline(path).waivers) == {"D8"}


def _told() -> str:
    """All texts of ours that a user may be shown, with the joints of Python's strings removed."""
    files = [*(ROOT / "framework").rglob("*.py"), *(ROOT / "mediator_ref").rglob("*.py"), ROOT / "medcheck"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r"""["']\s*\n\s*f?["']""", "", text).replace('\\"', '"')


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    told = _told()
    page = ROOT / "docs/troubleshooting.md"
    text = page.read_text(encoding="utf-8")
    theirs = {"404", "domain creation fail: Permission denied", "the system refused: No space left on device"}
    for section in text.split("\n## "):
        if section.startswith("Crash signatures"):
            continue
        for row in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE):
            for message in set(re.findall(r"`([^`]+)`", row)) - theirs:
                for piece in filter(None, re.split(r"\s*…\s*|\bN\b|\*", message)):
                    assert piece.strip(" :;,") in told, f"no message says: {message}"

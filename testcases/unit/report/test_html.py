# SPDX-License-Identifier: GPL-2.0-or-later
"""index.html: hostile text stays text, nothing comes from outside, all is there without JavaScript."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from framework.common.disclosure import TELL_FIRST
from framework.conformance.result import DeviationSeen
from framework.report import html, json_report, model, timeline
from testcases.unit.report.sample import HOSTILE, sample


class Page(HTMLParser):
    """Collects tags, attributes and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.words.append(data)


def render(report: model.RunReport, folder: Path) -> str:
    return html.render(json_report.document(report, folder), folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return render(sample(folder), folder)


def poisoned(value: Any) -> Any:
    """The report with every free string replaced by hostile text."""
    if isinstance(value, str):
        return f"{value}{HOSTILE}"
    if isinstance(value, tuple):
        return tuple(poisoned(item) for item in value)
    if isinstance(value, Path):
        return value.with_name(f'{value.name}"><script>alert(1)<script>')
    if isinstance(value, dict):
        return {poisoned(key): poisoned(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Words that the model fixes cannot come from a guest; console names come from the board.
        fixed = {"verdict", "kind"} | ({"status"} if isinstance(value, DeviationSeen) else set())
        changes = {f.name: poisoned(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in fixed}
        return dataclasses.replace(value, **changes)
    return value


def test_hostile_text_in_every_field_makes_no_element(tmp_path: Path) -> None:
    report = sample(tmp_path)
    clean, dirty = Page(render(report, tmp_path)), Page(render(poisoned(report), tmp_path))
    known = {tag for tag, _ in clean.tags}
    assert {tag for tag, _ in dirty.tags} == known
    assert "img" not in known
    assert dirty.scripts == clean.scripts
    for tag, attributes in dirty.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert re.fullmatch(r"(\./[^:]*|#[\w-]+)", attributes.get("href") or "#x"), attributes


def test_controls_and_reordering_characters_are_pictures(tmp_path: Path) -> None:
    source = render(poisoned(sample(tmp_path)), tmp_path)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", source)
    assert "^[[31mred" in source
    assert "&lt;U+202E&gt;gnp.exe" in source


def test_only_its_own_script_may_run_and_nothing_is_loaded(source: str) -> None:
    page = Page(source)
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert "@import" not in source
    assert "url(" not in source


def test_everything_reads_without_javascript(source: str) -> None:
    page = Page(source)
    text = page.text
    for expected in (
        "xtest failed in vm2, and a rule of the reference mediator was broken.",
        "regression_5006.5: regression_5000.c:1234: res has an unexpected value",
        "1,842 subtests passed",
        "regression_4003.1842 AES case 1842",
        TELL_FIRST,
        "48,211 events",
        "41 pages unpinned",
        "a3" * 32,
        "./medcheck run --profile standard --xen",
        "medcheck: dom0 ready 39",
    ):
        assert expected in text
    hidden = [a for tag, a in page.tags if "hidden" in a]
    assert hidden
    assert all("needs-js" in (attributes.get("class") or "") for attributes in hidden)


def test_a_rule_that_was_not_checked_says_why(source: str) -> None:
    text = Page(source).text
    assert "A completed call writes back the outputs not checked: the page was not observed (6x)" in text


def test_tables_have_headers_and_controls_have_labels(source: str) -> None:
    page = Page(source)
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert len(heads) > 20
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    labels = sum(tag == "label" for tag, _ in page.tags)
    assert labels == sum(tag in ("input", "select") for tag, _ in page.tags)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(a.get("href") or "")[1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert links <= set(ids)


def test_failed_cases_come_first_in_their_guest(source: str) -> None:
    second = source.split('data-guest="1"')[1]
    statuses = re.findall(r'class="case" data-status="(\w+)"', second)
    assert statuses[0] == "fail"
    assert statuses.count("fail") == 1
    assert len(statuses) == 12


def test_failed_subtests_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    report = sample(tmp_path)
    subs = tuple(model.Subtest(f"regression_1.{i}", "FAILED", "x") for i in range(900))
    case = model.Case("regression_1", "t", "FAILED", 1.0, subs)
    guest = model.GuestReport("vm1", 1, model.XtestReport((case,), model.XtestTotals(1, 1, 900, 900), 1))
    source = render(dataclasses.replace(report, guests=(guest,)), tmp_path)
    assert source.count("<li><code>regression_1.") == 200
    assert "700 more failed subtests" in source


def test_time_line_merges_by_time_and_keeps_each_consoles_order(tmp_path: Path) -> None:
    lines = timeline.merged(json_report.document(sample(tmp_path), tmp_path), tmp_path)
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    numbers = [int(line.text.rsplit(" ", 1)[1]) for line in lines if line.console == 1]
    assert numbers == list(range(40))
    assert [line.text for line in lines if line.problem == 0] == [
        "(XEN) Assertion 'page_get_owner(pg)' failed at common/memory.c:77"
    ]
    hostile = next(line.text for line in lines if "<img" in line.text)
    assert hostile.endswith("\ufffd\ufffd")
    assert "^[[31m" in hostile


def test_long_log_keeps_its_ends_and_says_what_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "xen.log"
    path.write_bytes(b"".join(b"[%10.3f] line %06d\n" % (i / 100, i) for i in range(60_000)))
    report = dataclasses.replace(sample(tmp_path), consoles=(model.ConsoleReport("xen", path),), problems=())
    texts = [line.text for line in timeline.merged(json_report.document(report, tmp_path), tmp_path)]
    assert texts[0] == "line 000000"
    assert texts[-1] == "line 059999"
    assert [text for text in texts if not text.startswith("line ")] == [
        f"<{(path.stat().st_size - 25 * (len(texts) - 1)) / 1e3:,.0f} kB are left out here; xen.log has them>"
    ]


def test_lines_without_stamp_stay_where_they_are_and_a_lost_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"[     5.000] first\nno stamp\n[     4.000] earlier\n")
    consoles = (model.ConsoleReport("a", path), model.ConsoleReport("b", tmp_path / "gone.log"))
    report = dataclasses.replace(sample(tmp_path), consoles=consoles, problems=())
    lines = timeline.merged(json_report.document(report, tmp_path), tmp_path)
    assert [(line.at, line.text) for line in lines if line.console == 0] == [
        (5.0, "first"), (5.0, "no stamp"), (5.0, "earlier"),
    ]  # fmt: skip
    assert [line.text for line in lines if line.console == 1] == [
        "<gone.log cannot be read: No such file or directory>"
    ]


def test_many_subtests_make_few_elements(tmp_path: Path) -> None:
    """Two guests of 22,000 subtests: a browser's cost is elements, and passing subtests must not be some."""
    report = sample(tmp_path, scale=6)
    content = json_report.document(report, tmp_path)
    begin = time.monotonic()
    source = html.render(content, tmp_path)
    seconds = time.monotonic() - begin
    assert sum(len(c["subtests"]) for g in content["guests"] for c in g["xtest"]["cases"]) > 40_000
    assert len(Page(source).tags) < 3_000
    assert len(source) < 2_000_000
    # Generous: this guards against quadratic behaviour, not against a slow machine.
    assert seconds < 20

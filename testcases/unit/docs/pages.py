# SPDX-License-Identifier: GPL-2.0-or-later
"""The project's papers as tests read them: pages, fenced blocks, commands, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framework.common.paths import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
)
"""All Markdown of the project."""

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*)$", re.MULTILINE)
_OURS = re.compile(r"(?:\./)?medcheck |pytest |\S*/(?:coverage|pre-commit|pip) ")


@dataclass(frozen=True)
class Command:
    """One command line of a page; ``words`` without comment, ``fenced`` if it stands in a block of shell."""

    page: str
    text: str
    words: tuple[str, ...]
    fenced: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def name(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match[1], match[2]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """What stands between single backquotes outside of blocks; a line may end in it."""
    text = re.sub(r"(?<=\S)\n *(?=\S)", " ", prose(page))
    return [match[1].strip() for match in _SPAN.finditer(text)]


def commands(page: Path) -> Iterator[Command]:
    """Every command line: all of shell blocks, and spans that begin with a command of ours."""
    for language, text in fences(page):
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                words = tuple(shlex.split(line, comments=True))
                if words:
                    yield Command(name(page), line.strip(), words, True)
    for span in spans(page):
        if _OURS.match(span) and "…" not in span and "…" not in span:
            yield Command(name(page), span, tuple(shlex.split(span)), False)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for match in _HEADING.finditer(prose(page)):
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])).strip().lower()
        found.add(text.replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """The targets of all links in the prose."""
    return _LINK.findall(prose(page))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts the logs of all consoles on one time line."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.common.safe_text import decode, visible

HEAD_BYTES = 160_000
TAIL_BYTES = 240_000
"""Bytes of one console's log that go into the page: of its beginning, and more of its end."""

_STAMP = re.compile(rb"\[ *(\d+\.\d+)\] ?")


@dataclass
class Line:
    """One line of one console. ``console`` is its index, ``problem`` the index of the problem it shows."""

    at: float
    console: int
    text: str
    problem: int | None = None


def merged(content: Mapping[str, Any], folder: Path) -> list[Line]:
    """Return the lines of all consoles of a ``report.json`` document by time; lines of one console keep their order.

    A log that cannot be read shows as a line that says so: the rest of the report is worth having.
    """
    streams = [
        list(_console(number, folder / console["file"], console["file"]))
        for number, console in enumerate(content["consoles"])
    ]
    names = [console["name"] for console in content["consoles"]]
    for number, problem in enumerate(content["problems"]):
        if problem["console"] in names:
            _mark(streams[names.index(problem["console"])], visible(problem["text"]).strip(), number)
    return list(heapq.merge(*streams, key=lambda line: line.at))


def read_ends(path: Path, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> tuple[bytes, int, bytes]:
    """Read how a file begins, how much is left out (bytes), and how it ends; cut at line ends if possible."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= head + tail:
            return stream.read(), 0, b""
        first = stream.read(head)
        first = first[: first.rfind(b"\n") + 1] or first
        stream.seek(size - tail)
        last = stream.read(tail)
        last = last[last.find(b"\n") + 1 :] or last
    return first, size - len(first) - len(last), last


def _console(number: int, path: Path, name: str) -> Iterator[Line]:
    try:
        first, left_out, last = read_ends(path)
    except OSError as error:
        yield Line(0.0, number, f"<{name} cannot be read: {error.strerror}>")
        return
    at = 0.0
    for line in _lines(first, number, at):
        at = line.at
        yield line
    if left_out:
        yield Line(at, number, f"<{left_out / 1e3:,.0f} kB are left out here; {name} has them>")
    yield from _lines(last, number, at)


def _lines(data: bytes, number: int, at: float) -> Iterator[Line]:
    for raw in data.split(b"\n"):
        if not raw:
            continue
        stamp = _STAMP.match(raw)
        if stamp:
            # A line without a stamp (a damaged log) stays with the one before it.
            at = max(at, float(stamp[1]))
            raw = raw[stamp.end() :]
        yield Line(at, number, decode(raw.rstrip(b"\r")))


def _mark(lines: Iterable[Line], text: str, number: int) -> None:
    for line in lines:
        # A panic's text begins with its line and goes on with the reason from the next ones.
        begins = len(line.text) > 12 and text.startswith(line.text)
        if line.problem is None and text and (begins or text in line.text):
            line.problem = number
            return

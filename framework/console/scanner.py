# SPDX-License-Identifier: GPL-2.0-or-later
"""Scanner for crash signatures in a console's output, at a cost per byte that no text can raise.

Regular expressions hold the interpreter's lock for as long as they run, so a line of a guest's choice must not meet
them whole: only the first :data:`LINE_BYTES` of a line are searched, once for each signature.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from framework.console.crash_signatures import CRASH_SIGNATURES, CrashSignature, role_of

LINE_BYTES = 512
"""Bytes of each line that are searched and recorded; the longest line that Xen, OP-TEE or Linux print is shorter."""

REASON_LINES = 4
"""Lines that are added to a signature that goes on in the lines after it."""
_REASON_MOST_LINES = 8
_REASON_SECONDS = 1.0
"""A console that prints nothing for so long after such a line has no more to say."""

Found = tuple[CrashSignature, bytes]


@dataclass
class _Begun:
    """A signature whose next lines belong to it."""

    signature: CrashSignature
    line: bytes
    since: float
    reason: list[bytes] = field(default_factory=list)
    lines: int = 0

    def text(self) -> bytes:
        return b" ".join([self.line, *self.reason])

    def take(self, line: bytes) -> bool:
        """Add a line; whether another one may follow."""
        assert self.signature.follows is not None
        match = self.signature.follows.match(line)
        if match is None:
            return False
        self.lines += 1
        if text := match[1].strip():
            self.reason.append(text)
        return len(self.reason) < REASON_LINES and self.lines < _REASON_MOST_LINES


class Scanner:
    """The crash signatures of one console; takes blocks of whole lines."""

    def __init__(self, console: str) -> None:
        self._by_literal: dict[bytes, list[CrashSignature]] = {}
        for signature in CRASH_SIGNATURES[role_of(console)]:
            self._by_literal.setdefault(signature.literal, []).append(signature)
        self._begun: _Begun | None = None

    @property
    def waits(self) -> bool:
        """Whether a signature was seen whose next lines may still come; see :meth:`settle`."""
        return self._begun is not None

    def feed(self, block: bytes) -> list[Found]:
        """Return each signature with its line (its first :data:`LINE_BYTES`), in the order of the lines."""
        found: list[Found] = []
        at = 0
        for start, signature, line in sorted(self._search(block), key=lambda item: item[0]):
            at = self._continue(block, at, found)
            if signature.follows is None:
                found.append((signature, line))
                continue
            if self._begun is not None:
                found.append(self._end(self._begun))
            self._begun = _Begun(signature, line, time.monotonic())
            at = _after(block, start)
        self._continue(block, at, found)
        return found

    def settle(self, *, now: bool = False) -> list[Found]:
        """Return the signature whose next lines have not come for a second; ``now``: that will never come."""
        begun = self._begun
        if begun is None or not (now or time.monotonic() - begun.since > _REASON_SECONDS):
            return []
        return [self._end(begun)]

    def _end(self, begun: _Begun) -> Found:
        self._begun = None
        return begun.signature, begun.text()

    def _continue(self, block: bytes, at: int, found: list[Found]) -> int:
        """Give the lines from ``at`` on to what was begun; return where the first one that it did not get begins."""
        while self._begun is not None and at < len(block):
            line, at = _line(block, at), _after(block, at)
            if not self._begun.take(line):
                found.append(self._end(self._begun))
        return at

    def _search(self, block: bytes) -> Iterator[tuple[int, CrashSignature, bytes]]:
        for literal, signatures in self._by_literal.items():
            at = block.find(literal)
            while at >= 0:
                start = block.rfind(b"\n", max(0, at - LINE_BYTES), at) + 1
                # Without a line end so near, the literal stands too far behind in its line.
                if start or at < LINE_BYTES:
                    line = _line(block, start)
                    yield from ((start, signature, line) for signature in signatures if signature.pattern.match(line))
                at = block.find(literal, _after(block, at))


def first_matches(pattern: re.Pattern[bytes], block: bytes) -> Iterator[bytes]:
    """Yield each line of a block of whole lines whose beginning holds a match: the first :data:`LINE_BYTES` of it."""
    at = 0
    while at < len(block):
        line, at = _line(block, at), _after(block, at)
        if pattern.search(line):
            yield line


def _line(block: bytes, start: int) -> bytes:
    end = block.find(b"\n", start, start + LINE_BYTES)
    return block[start : end if end >= 0 else start + LINE_BYTES].rstrip(b"\r")


def _after(block: bytes, at: int) -> int:
    """Return where the line after the one at ``at`` begins."""
    end = block.find(b"\n", at)
    return len(block) if end < 0 else end + 1

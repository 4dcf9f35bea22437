# SPDX-License-Identifier: GPL-2.0-or-later
"""One change of the mediator's source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SHOWN = 100
"""Characters of source text in one line of output."""


@dataclass(frozen=True)
class Place:
    """A stretch of the source: lines and columns from 1, ``end_column`` behind the last character."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Mutation:
    """A change that an operator makes: ``start`` and ``end`` are bytes in the source, the change replaces what is
    there by ``replacement``. ``deletes``: a statement goes, and nothing replaces it. ``ordinal`` counts equal changes
    of equal texts in one function."""

    operator: str
    function: str
    start: int
    end: int
    place: Place
    original: str
    replacement: str
    deletes: bool = False
    ordinal: int = 0

    @property
    def id(self) -> str:
        """A name by content: it stays when lines are added elsewhere."""
        parts = (self.operator, self.function, self.original, self.replacement, str(self.ordinal))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    @property
    def words(self) -> str:
        """What changes, in one line."""
        after = "(deleted)" if self.deletes else one_line(self.replacement)
        return f"{one_line(self.original)}  ->  {after}"


def one_line(text: str) -> str:
    """Source text without line breaks, at most :data:`SHOWN` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[: SHOWN - 1]}…"

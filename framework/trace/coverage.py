# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage as the trace plugin leaves it beside a trace: how often each instruction of the mediator ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from framework.common.errors import TraceError

SUFFIX = ".coverage"
_HEAD = "medcheck-coverage 1"
_LIMIT = 64 << 20


@dataclass(slots=True)
class Coverage:
    """Executions by address, and the ways that conditional branches went (bit 0 fell through, bit 1 branched).

    ``ranges``: the code that was watched; what is not in ``counts`` did not run. ``boards``: how many it adds up.
    """

    ranges: tuple[tuple[int, int], ...]
    counts: dict[int, int] = field(default_factory=dict)
    outcomes: dict[int, int] = field(default_factory=dict)
    boards: int = 1

    def add(self, other: Coverage) -> None:
        """Add another board's. Raises :class:`TraceError` when it watched other code."""
        if other.ranges != self.ranges:
            raise TraceError("coverage of another Xen cannot be added", hint="one report holds one mediator")
        for address, count in other.counts.items():
            self.counts[address] = self.counts.get(address, 0) + count
        for address, ways in other.outcomes.items():
            self.outcomes[address] = self.outcomes.get(address, 0) | ways
        self.boards += other.boards


def read_coverage(path: Path) -> Coverage | None:
    """Read a plugin's file; None when the board was killed before it was written.

    Raises :class:`TraceError` for a file that is none, or that was cut.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise TraceError("this is no coverage file: it is too large", where=str(path))
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot read the coverage: {error}", where=str(path)) from error
    if not text:
        return None
    try:
        return _parsed(text.splitlines())
    except (ValueError, IndexError) as error:
        raise TraceError(f"this is no whole coverage file: {error}", where=str(path)) from error


def _parsed(lines: list[str]) -> Coverage:
    if lines[0] != _HEAD:
        raise ValueError(f"it begins with {lines[0][:40]!r}")
    ranges = [line.split()[1:] for line in lines if line.startswith("range ")]
    found = Coverage(tuple((int(start, 16), int(end, 16)) for start, end in ranges))
    rows = lines[1 + len(ranges) : -1]
    if lines[-1] != f"end {len(rows)}":
        raise ValueError("its end is missing")
    for row in rows:
        address, count, ways = row.split()
        found.counts[int(address, 16)] = int(count)
        if ways != "0":
            found.outcomes[int(address, 16)] = int(ways) & 3
    return found


def merged(paths: Iterable[Path]) -> Coverage | None:
    """The sum of all files that boards left; None when there is none. Raises as :func:`read_coverage`."""
    total: Coverage | None = None
    for path in paths:
        found = read_coverage(path)
        if total is None:
            total = found
        elif found is not None:
            total.add(found)
    return total

# SPDX-License-Identifier: GPL-2.0-or-later
"""Problems seen on a board's consoles, in a bounded list: a chattering guest can neither fill the memory nor hide
others'."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from framework.common.errors import GuestCrash
from framework.common.safe_text import plural
from framework.console.crash_signatures import DOM0_DEATHS, CrashSignature

MOST_OF_A_KIND = 20
"""Problems of one kind that are recorded for each console. The bound is for each console: a guest that panics in a loop
must not hide what another one says."""


@dataclass(frozen=True)
class Problem:
    """A crash signature seen on a console: ``at`` is in seconds since power-on, ``line`` as printed, its first 512
    bytes (and with Xen's panic, the reason from the lines after it)."""

    kind: str
    console: str
    line: str
    at: float
    fatal: bool

    @property
    def of_dom0(self) -> bool:
        """Whether this is a death of dom0 that stands on Xen's console."""
        return self.console == "xen" and self.kind in DOM0_DEATHS

    def crash(self) -> GuestCrash:
        """Return the error that waits for this board raise."""
        who = "dom0: " if self.of_dom0 else ""
        return GuestCrash(f"{who}{self.kind}: {self.line.strip()}", where=f"console {self.console}")


class ProblemLog:
    """The problems of one board: the first :data:`MOST_OF_A_KIND` of each kind and console, and a count of the rest."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def add(self, console: str, signature: CrashSignature, line: bytes, at: float) -> tuple[Problem, bool]:
        """Count a problem; return it and whether it is recorded."""
        problem = Problem(signature.kind, console, line.decode(errors="replace"), at, signature.fatal)
        key = (console, signature.kind)
        self._seen[key] += 1
        keep = self._seen[key] <= MOST_OF_A_KIND
        if keep:
            self.kept.append(problem)
        return problem, keep

    @property
    def not_kept(self) -> int:
        """Number of problems that were only counted."""
        return self._seen.total() - len(self.kept)

    def shown(self) -> list[Problem]:
        """Return the recorded problems, and one line at the end that counts the rest."""
        if not self.not_kept:
            return list(self.kept)
        over = {key: count - MOST_OF_A_KIND for key, count in self._seen.items() if count > MOST_OF_A_KIND}
        where = ", ".join(f"{count:,} {kind} on {console}" for (console, kind), count in sorted(over.items()))
        line = f"and {plural(self.not_kept, 'more line')} of the same kinds, not kept: {where}"
        return [*self.kept, Problem("more", "all", line, self.kept[-1].at, False)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Crash errors: problems on consoles, domains that are gone and guests that hang, each attributed to a guest.

The board's consoles recognise crash signatures by themselves (``framework.console.crash_signatures``); this module
decides which of them concern one guest and puts all that is known into one error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from framework.common.errors import GuestCrash, MedcheckError
from framework.common.safe_text import number
from framework.console.crash_signatures import DOM0_DEATHS
from framework.console.wait_policy import OnSilence

SHARED_CONSOLES = ("xen", "optee")
"""Consoles of parts that every guest needs."""

_GUEST_DIES = frozenset({"linux-panic", "linux-oops", "linux-bug"})
_ALL_DIE = frozenset({"xen-panic", "xen-assertion", "xen-bug", "optee-panic", "optee-assertion", "firmware-panic"})
_STALLS = frozenset({"linux-stall", "linux-lockup", "linux-hang", "linux-oom"})
_CRASHED_DOMAIN = re.compile(r"[Dd]omain (\d{1,18}) (?:\(vcpu#\d{1,18}\) crashed|reported crashed)")
_TAIL = 12
_LOG_HEAD = 1 << 20


class ConsoleLike(Protocol):
    """The part of a console that guests use; :class:`framework.console.console.Console` is one."""

    name: str
    log: Path

    @property
    def before(self) -> bytes:
        """Text before the last match."""

    def expect(self, patterns: list[bytes], idle_timeout: float) -> re.Match[bytes]:
        """Wait for the first of some regular expressions."""

    def sendline(self, text: str) -> None:
        """Type a line."""

    def tail(self, lines: int) -> list[str]:
        """Return the last lines."""


class ProblemLike(Protocol):
    """A crash signature seen on a console; :class:`framework.console.problems.Problem` is one."""

    @property
    def kind(self) -> str:
        """The signature's kind, such as ``linux-panic``."""

    @property
    def console(self) -> str:
        """The console's name."""

    @property
    def line(self) -> str:
        """The line as printed."""


class BoardLike(Protocol):
    """The part of a board that guests use; :class:`framework.board.board.Board` is one."""

    @property
    def ssh_port(self) -> int:
        """The TCP port on 127.0.0.1 that leads to dom0's SSH server."""

    @property
    def consoles(self) -> Mapping[str, ConsoleLike]:
        """All consoles by name."""

    @property
    def problems(self) -> Sequence[ProblemLike]:
        """Problems so far; grows."""

    @property
    def on_silence(self) -> OnSilence | None:
        """Hang detector for a guest's silence."""

    @property
    def alive(self) -> bool:
        """Whether the board runs."""

    def death(self) -> MedcheckError:
        """Return the error that says how it ended."""


class Watch:
    """Watches a board's problems on behalf of one domain. Only problems that come later than the watch
    count: a board may serve on after a guest of an earlier test died."""

    def __init__(self, board: BoardLike, name: str, console: str, domid: int | None) -> None:
        self._board = board
        self._name = name
        self._console = console
        self._domid = domid
        self._next = len(board.problems)
        self.stall: ProblemLike | None = None
        """The last stall or killed process that the guest's kernel reported, or else dom0's. No death by itself: an
        emulated board on a busy host stalls now and then and goes on; together with silence, it is the reason."""

    def check(self) -> None:
        """Raise GuestCrash when something that ends this domain was seen, BoardError when the board died."""
        problems = self._board.problems
        while self._next < len(problems):
            problem = problems[self._next]
            if self._concerns(problem):
                # Not counted as seen: every later check raises it again.
                whose = "dom0 died: " if self._domid != 0 and _of_dom0(problem) else ""
                raise self.crash(f"{whose}{problem.kind}: {problem.line.strip()}", problem.console)
            self._next += 1
            if problem.kind in _STALLS and (problem.console == self._console or _explains(problem, self.stall)):
                self.stall = problem
        if not self._board.alive:
            raise self._board.death()

    def crash(self, what: str, console: str | None = None) -> GuestCrash:
        """Make the error for this domain: what happened, the end of the console that tells it, its log."""
        name = console or self._console
        found = self._board.consoles.get(name)
        text, hint = f"{self._name}: {what}", None
        if found is not None:
            lines = "\n".join(f"    {line}" for line in found.tail(_TAIL))
            text = f"{text}; the last lines:\n{lines}"
            hint = f"the whole console is in {found.log}"
        return GuestCrash(text, where=f"console {name}", hint=hint)

    def hang(self, what: str) -> GuestCrash:
        """Make the error for this domain's silence, with the stall that its kernel reported, if any."""
        reason = "" if self.stall is None else f" after {self.stall.kind}: {self.stall.line.strip()}"
        error = self.crash(f"hangs{reason}: {what}")
        error.hang = True
        return error

    def logs(self) -> list[bytes]:
        """Return the beginnings (1 MiB) of the logs of this domain's console and of OP-TEE's."""
        heads = []
        for name in (self._console, "optee"):
            if console := self._board.consoles.get(name):
                with console.log.open("rb") as stream:
                    heads.append(stream.read(_LOG_HEAD))
        return heads

    def _concerns(self, problem: ProblemLike) -> bool:
        if problem.console == self._console:
            return problem.kind in _GUEST_DIES
        # dom0 carries every guest's network, console and disk.
        if _of_dom0(problem):
            return True
        if problem.console not in SHARED_CONSOLES:
            return False
        if problem.kind in _ALL_DIE:
            return True
        if problem.kind != "xen-domain-crash":
            return False
        match = _CRASHED_DOMAIN.search(problem.line)
        return match is not None and number(match[1]) == self._domid


def _of_dom0(problem: ProblemLike) -> bool:
    """Whether dom0 died; its kernel prints on Xen's console until it has its own."""
    return problem.console in ("dom0", "xen") and problem.kind in DOM0_DEATHS


def _explains(problem: ProblemLike, earlier: ProblemLike | None) -> bool:
    """Whether a stall of dom0 is the best explanation so far of a guest's silence."""
    return problem.console in ("dom0", "xen") and (earlier is None or earlier.console in ("dom0", "xen"))

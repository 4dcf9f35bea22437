# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress reporting interface for long operations; the sink may be a terminal, a log or nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of work that advances."""

    def advance(self, amount: int = 1) -> None:
        """Report ``amount`` more units (bytes, cases, files) as done; a negative number takes some back."""


class Progress(Protocol):
    """Receives progress; see :class:`framework.common.terminal.RichProgress` for the terminal's version."""

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Begin a task of ``total`` units (None: unknown; unit ``"B"``: bytes)."""

    def say(self, text: str) -> None:
        """Print one line for the reader, above the bars."""


class Answer(Protocol):
    """Receives a command's remarks and result; see :class:`framework.common.terminal.Output`."""

    progress: Progress
    json: bool

    def say(self, text: str) -> None:
        """Print a remark; nothing when quiet."""

    def finish(self, content: object, text: str) -> None:
        """Print the result: ``content`` as JSON if that was requested, else ``text``."""


class SilentTask:
    """A task without an observer."""

    def advance(self, amount: int = 1) -> None:
        """Ignore it."""


class Silent:
    """Progress without an observer: the default of libraries and tests."""

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:  # noqa: ARG002
        """Begin a task without an observer."""
        return nullcontext(SilentTask())

    def say(self, text: str) -> None:
        """Ignore it."""

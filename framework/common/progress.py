# SPDX-License-Identifier: GPL-2.0-or-later
"""How long work tells its story, without knowing whether a terminal, a log or nobody listens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of work that advances."""

    def advance(self, amount: int = 1) -> None:
        """Say that ``amount`` more units (bytes, cases, files) are done; negative takes some back."""


class Progress(Protocol):
    """Receives the story; see :class:`framework.common.terminal.RichProgress` for the terminal's version."""

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Begin a task of ``total`` units (None: unknown; unit ``"B"``: bytes)."""

    def say(self, text: str) -> None:
        """Print one line for the reader, above the bars."""


class Answer(Protocol):
    """Where a command puts what it has to say; see :class:`framework.common.terminal.Output`."""

    progress: Progress
    json: bool

    def say(self, text: str) -> None:
        """A remark; nothing when quiet."""

    def finish(self, content: object, text: str) -> None:
        """Give the result: ``content`` as JSON where that was asked for, else ``text``."""


class SilentTask:
    """A task nobody watches."""

    def advance(self, amount: int = 1) -> None:
        """Ignore it."""


class Silent:
    """A progress nobody watches: libraries and tests use it as their default."""

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Task]:  # noqa: ARG002
        """Begin a task nobody watches."""
        return nullcontext(SilentTask())

    def say(self, text: str) -> None:
        """Ignore it."""

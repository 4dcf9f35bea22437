# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a file descriptor of any number: a process with many boards has more than select(2) can take."""

from __future__ import annotations

import select
from typing import Protocol


class HasFileno(Protocol):
    """A socket or file."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def readable(end: int | HasFileno, seconds: float) -> bool:
    """Wait until something can be read there, or its end, for ``seconds`` at most; whether there is."""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    return bool(poll.poll(seconds * 1000))

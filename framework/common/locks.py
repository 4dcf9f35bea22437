# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks between processes: locked files, released however the process ends.

Source: flock(2).
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_TURN_SECONDS = 0.1


@contextmanager
def flock(path: Path, *, exclusive: bool = True, wait: bool = True) -> Iterator[None]:
    """Hold a lock that ends with the process, whatever way it ends. Raises BlockingIOError without ``wait``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


@contextmanager
def announced(path: Path, busy: Callable[[], None], cancelled: threading.Event | None = None) -> Iterator[bool]:
    """Hold an exclusive lock, and call ``busy`` once if another process has it and must be waited for.

    Yields False, without the lock, when ``cancelled`` is set while it waits.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(flock(path, wait=False))
        except BlockingIOError:
            busy()
            yield _wait(stack, path, cancelled)
        else:
            yield True


def _wait(stack: ExitStack, path: Path, cancelled: threading.Event | None) -> bool:
    if cancelled is None:
        stack.enter_context(flock(path))
        return True
    # A blocking flock() would not see the event.
    while not cancelled.wait(_TURN_SECONDS):
        try:
            stack.enter_context(flock(path, wait=False))
        except BlockingIOError:
            continue
        return True
    return False

# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots: limit of the boards that run on this machine at once, over all processes of this user.

Multi-threaded TCG runs one host thread per virtual CPU; many more busy threads than cores slow every board down until
guests see RCU stalls. Most virtual CPUs sleep most of the time, so twice as many of them as cores are no burden. A
process asks for a slot before it starts a board. Slots are locked files: they are free again however a process ends.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from framework.common.errors import UsageError
from framework.common.locks import flock
from framework.common.paths import cache_root

CLONE_BYTES = 400 << 20
"""Memory of a clone with two busy guests, in bytes: translated code, and the pages it has changed."""

_OVERCOMMIT = 2
_POLL_SECONDS = 0.1


def slots(smp: int, *, cores: int | None = None, memory: int | None = None) -> int:
    """Return how many boards with ``smp`` virtual CPUs fit on this machine; at least one.

    ``cores`` and ``memory`` (bytes available) are this machine's unless given.
    """
    cores = len(psutil.Process().cpu_affinity()) if cores is None else cores
    memory = psutil.virtual_memory().available if memory is None else memory
    return max(1, min(int(cores * _OVERCOMMIT / smp), memory // CLONE_BYTES))


def slots_here(smp: int) -> int:
    """Return how many boards may run at once; ``MEDCHECK_BOARDS`` overrides what the machine bears."""
    given = os.environ.get("MEDCHECK_BOARDS", "")
    if not given:
        return slots(smp)
    if not re.fullmatch(r"[1-9][0-9]{0,2}", given):
        raise UsageError(f"MEDCHECK_BOARDS is '{given}'", hint="expected how many boards may run at once, such as 2")
    return int(given)


class BoardSlots:
    """The slots of this user. One process has one slot, however many boards it starts: a test that compares two
    boards must not wait for itself."""

    def __init__(self, size: int, folder: Path | None = None, say: Callable[[str], None] | None = None) -> None:
        self._size = size
        self._folder = cache_root() / "slots" if folder is None else folder
        self._say = say or (lambda _text: None)
        self._inside = 0
        self._held = ExitStack()
        self._lock = threading.Lock()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot, waiting for one as long as it takes."""
        with self._lock:
            if self._inside == 0:
                self._held.enter_context(self._take())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._held.close()

    @contextmanager
    def _take(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            # One at a time looks for a free slot, in the order of arrival; the kernel wakes the next one.
            with flock(self._folder / "turn", exclusive=True):
                announced = False
                while not self._try(stack):
                    if not announced:
                        self._say(f"all {self._size} slots for boards are taken; waiting for one")
                        announced = True
                    # No event says that any of several file locks is free.
                    time.sleep(_POLL_SECONDS)
            yield

    def _try(self, stack: ExitStack) -> bool:
        for number in range(self._size):
            try:
                stack.enter_context(flock(self._folder / f"slot-{number}", exclusive=True, wait=False))
            except BlockingIOError:
                continue
            return True
        return False

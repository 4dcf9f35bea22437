# SPDX-License-Identifier: GPL-2.0-or-later
"""Console reader thread: one per board, for all its consoles and other file descriptors."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from framework.console.console import Console

_SETTLE_SECONDS = 0.2
"""Seconds between checks of a crash signature whose next lines may still come."""


class ConsoleReader:
    """Reads all consoles of a board, and other file descriptors, in one thread."""

    def __init__(self, name: str) -> None:
        self._poll = select.epoll()
        self._consoles: dict[int, Console] = {}
        self._others: dict[int, Callable[[], bool]] = {}
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._stop_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=f"consoles-{name}", daemon=True)
        self._stopping = threading.Event()

    def add(self, console: Console) -> None:
        """Read this console from now on."""
        self._consoles[console.fileno()] = console
        self._poll.register(console.fileno(), select.EPOLLIN)

    def add_other(self, fd: int, callback: Callable[[], bool]) -> None:
        """Call ``callback`` when ``fd`` is readable; it returns False when it has seen the end and closed
        it."""
        self._others[fd] = callback
        self._poll.register(fd, select.EPOLLIN)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this very thread, that is in a callback."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def read_rest(self) -> None:
        """Read what is left in every console; for the reader thread itself, when nothing will be added any more."""
        for fd, console in list(self._consoles.items()):
            while console.receive() > 0:
                continue
            self._forget(fd)

    def stop(self) -> None:
        """Let the thread read what is left, end it and wait for it; may be called twice."""
        if not self._stopping.is_set():
            # Written first: once the event is set, the thread may close the pipe.
            os.write(self._stop_write, b"x")
            self._stopping.set()
        if self._thread.ident is None:
            self._release()
        elif not self.is_current:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            small = True
            unsettled = [console for console in list(self._consoles.values()) if console.settle()]
            for fd, _ in self._poll.poll(_SETTLE_SECONDS if unsettled else None):
                console = self._consoles.get(fd)
                if console is not None:
                    count = console.receive()
                    small = small and count < 256
                    if count == 0:
                        self._forget(fd)
                elif fd in self._others:
                    small = False
                    if not self._others[fd]():
                        del self._others[fd]
            # A UART arrives byte by byte: without this pause, each byte would wake the thread and take CPU
            # time from the board. It bounds the wake-ups at 500 a second; a stop ends it at once.
            if small:
                self._stopping.wait(0.002)
        self.read_rest()
        self._release()

    def _release(self) -> None:
        if not self._poll.closed:
            self._poll.close()
            os.close(self._stop_read)
            os.close(self._stop_write)

    def _forget(self, fd: int) -> None:
        console = self._consoles.pop(fd, None)
        # A closed file descriptor has left the epoll by itself.
        if console is not None and console.fileno() >= 0:
            self._poll.unregister(fd)

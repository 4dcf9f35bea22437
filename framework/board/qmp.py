# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP for code that is not asynchronous: the `qemu.qmp` library on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError
from qemu.qmp.message import Message

from framework.common.errors import BoardError
from framework.common.host_speed import host_factor

T = TypeVar("T")

_ANSWER_SECONDS = 30.0
"""QEMU answers from its main loop within milliseconds unless the host is starved; scaled by the host
factor."""


class Qmp:
    """A QMP connection. Every method may be called from any thread; errors are BoardError."""

    def __init__(self, name: str, end: socket.socket) -> None:
        self._name = name
        self._socket = end
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp-{name}", daemon=True)
        self._client = QMPClient(name)
        self._client.logger.setLevel("CRITICAL")
        self._arrived = threading.Condition()
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._listener: asyncio.Task[None] | None = None
        self._closed = False
        self._thread.start()

    def connect(self) -> None:
        """Do the greeting and the capabilities negotiation, and begin to collect events."""
        self._run(self._connect(), "the greeting")

    def execute(self, command: str, /, *, answer_seconds: float = _ANSWER_SECONDS, **arguments: Any) -> Any:
        """Run a command and return its result; underscores in argument names become dashes.

        Raises BoardError with QEMU's own description when it refuses, and when it does not answer in
        ``answer_seconds`` (scaled by the host factor).
        """
        wanted = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._run(self._client.execute(command, wanted), command, answer_seconds)

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor and return what it prints."""
        return str(self.execute("human-monitor-command", command_line=line))

    def add_fd(self, fd: int) -> str:
        """Give QEMU a file descriptor and return the path under which it can open it.

        That is how QEMU reads and writes what its own user cannot reach: ``migrate`` to ``file:<path>``.
        The access mode must be the one QEMU will ask for.
        """

        async def send() -> Any:
            self._client.send_fd_scm(fd)
            return await self._client.execute("add-fd")

        return f"/dev/fdset/{self._run(send(), 'add-fd')['fdset-id']}"

    def lend_fd(self, fd: int, name: str) -> None:
        """Give QEMU a file descriptor under a name, for one character device to take over."""

        async def send() -> Any:
            self._client.send_fd_scm(fd)
            return await self._client.execute("getfd", {"fdname": name})

        self._run(send(), "getfd")

    def events(self) -> list[dict[str, Any]]:
        """Return the last 1000 events, oldest first, each as QMP describes it (``event``, ``data``,
        ``timestamp``)."""
        with self._arrived:
            return list(self._events)

    def wait_any_event(self, name: str, seconds: float, **data: tuple[Any, ...]) -> dict[str, Any]:
        """Wait for an event of this name whose data hold one of the values given for each key, also one that
        came before the call.

        ``seconds`` are scaled by the host factor. Raises BoardError when it does not come or the connection
        ends.
        """

        def found() -> dict[str, Any] | None:
            for event in self._events:
                fields = event.get("data", {})
                if event["event"] == name and all(fields.get(key) in values for key, values in data.items()):
                    return event
            return None

        with self._arrived:
            self._arrived.wait_for(lambda: found() is not None or self._closed, seconds * host_factor())
            event = found()
        if event is None:
            raise BoardError(f"QEMU did not report {name} {data or ''}".rstrip(), where=f"QMP of {self._name}")
        return event

    def forget_events(self, name: str) -> None:
        """Forget the events of this name, so that a later wait means one to come."""
        with self._arrived:
            kept = [event for event in self._events if event["event"] != name]
            self._events.clear()
            self._events.extend(kept)

    def close(self) -> None:
        """Let go of the connection; may be called twice. QEMU itself goes on."""
        if self._closed:
            return
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._socket.close()

    async def _connect(self) -> None:
        await self._client.connect(self._socket)
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self._client.events:
            with self._arrived:
                self._events.append(_plain(event))
                self._arrived.notify_all()

    async def _disconnect(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError):
            return  # QEMU hung up first, which is how most connections end

    def _run(self, work: Coroutine[Any, Any, T], what: str, seconds: float = _ANSWER_SECONDS) -> T:
        if self._closed:
            work.close()
            raise BoardError(f"{what}: the connection is closed", where=f"QMP of {self._name}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        limit = seconds * host_factor()
        try:
            return future.result(limit)
        except FutureTimeoutError:
            future.cancel()
            raise BoardError(f"QEMU did not answer {what} within {limit:.0f} s", where=f"QMP of {self._name}") from None
        except ExecuteError as error:
            raise BoardError(f"QEMU refused {what}: {error}", where=f"QMP of {self._name}") from error
        except (QMPError, OSError, EOFError, asyncio.CancelledError) as error:
            raise BoardError(f"{what}: the connection ended: {error}", where=f"QMP of {self._name}") from error


def _plain(event: Message) -> dict[str, Any]:
    return dict(event)

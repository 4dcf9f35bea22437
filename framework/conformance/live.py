# SPDX-License-Identifier: GPL-2.0-or-later
"""Checking while the board runs: a thread passes events from the trace plugin's lock-step socket to the checker.

    with LiveCheck(folder / "trace.sock", source=folder / "trace.bin") as check:
        ...start the board with the plugin options check.socket (lockstep) and the trace file...
        ...exercise it...
    result = check.result(board_alive=True)

The plugin only *sends* events unless ``lockstep`` is asked for: a vCPU then waits until its event is judged,
so that a board can be stopped at the very event that broke a rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from framework.common.errors import TraceError
from framework.conformance.checker import Checker
from framework.conformance.result import ConformanceResult
from framework.trace.format import Kind
from framework.trace.live import Held, LiveConsumer
from mediator_ref import Deviation, Limits, Outcome, Verdict

JUDGED = (Kind.GUEST_CALL, Kind.EL3_CALL, Kind.EL3_RETURN, Kind.GUEST_RETURN)
"""Records at which a vCPU waits in lock-step. All others are sent too: their numbers must have no gap."""

_HANG_UP_S = 10.0

OnVerdict = Callable[[Held, Verdict], None]


def check_live(consumer: LiveConsumer, checker: Checker, on_verdict: OnVerdict | None = None) -> None:
    """Check the events of an accepted connection until the board ends.

    ``on_verdict`` is called for each nonconformance that no listed deviation explains; with a waiting vCPU
    (``consumer`` made with ``hold``) it may inspect memory, or stop the board.
    """
    for held in consumer.events():
        decided = checker.feed(held.event)
        if decided and on_verdict is not None:
            for verdict in decided:
                if verdict.outcome is Outcome.FAIL:
                    on_verdict(held, verdict)


class LiveCheck(AbstractContextManager["LiveCheck"]):
    """A checker in a thread of its own, behind one board's socket at ``socket``.

    ``source`` is the trace file the plugin writes besides, for replay commands. ``connect_s``: how long the
    plugin may take to connect. Leaving the context hangs up and waits for the thread.
    """

    def __init__(
        self,
        socket: Path,
        *,
        source: Path | None = None,
        lockstep: bool = False,
        on_verdict: OnVerdict | None = None,
        limits: Limits | None = None,
        deviations: Mapping[str, Deviation] | None = None,
        connect_s: float = 60.0,
    ) -> None:
        self.socket = socket
        self.checker = Checker(limits=limits, deviations=deviations, source=str(source or ""))
        self.error: TraceError | None = None
        self._on_verdict, self._connect_s = on_verdict, connect_s
        hold = JUDGED if lockstep else ()
        self._consumer = LiveConsumer(socket, hold=hold, send=[kind for kind in Kind if kind not in hold])
        self._thread = threading.Thread(target=self._run, name="conformance", daemon=True)

    def __enter__(self) -> LiveCheck:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._consumer.accept(self._connect_s)
            check_live(self._consumer, self.checker, self._on_verdict)
        except TraceError as error:
            self.error = error
            self.checker.gap(f"the live trace broke off: {error.what}")

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the board has ended and everything it sent is checked; False when it takes longer."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Hang up if the board still runs."""
        self._consumer.close()
        self._thread.join(_HANG_UP_S)

    def result(self, board_alive: bool | None = None) -> ConformanceResult:
        """Return the result; ends the check. Call it after :meth:`join` or :meth:`close`."""
        self.checker.finish(board_alive)
        return self.checker.result()

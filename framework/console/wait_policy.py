# SPDX-License-Identifier: GPL-2.0-or-later
"""Idle-timeout policy: when to sample board activity while a console stays silent, and which callback does it."""

from __future__ import annotations

import math
from typing import Any, Protocol

from framework.common.host_speed import host_factor

_POLL_SECONDS = 2.0
"""Waits shorter than this are treated as polling; they never trigger hang detection."""

_LONGEST, _LONGEST_FACTOR = 600.0, 20.0

_SAMPLE_SECONDS = 5.0
"""Between two samples at a board that is silent, scaled: what moved since the last one decides."""


class OnSilence(Protocol):
    """Callbacks of a wait on a silent console (:class:`framework.diagnosis.hang.HangDetector`)."""

    def sample(self) -> Any:
        """Sample the board's activity, quickly; called now and then while nothing comes."""

    def hopeless(self) -> bool:
        """Whether the samples so far show that nothing will ever come by itself."""

    def idle(self) -> float:
        """Return the seconds for which no SMC came and no CPU had work; call it every second or so."""

    def explain(self, before: Any, /) -> str | None:
        """Explain why nothing came since that sample; None when the board is gone. Never raises."""


def in_vain(watcher: OnSilence, idle_timeout: float, silent: float) -> bool:
    """Whether a wait, silent for so many seconds, has no hope before it expires: the board sleeps for ever, or has been
    idle in this wait for ``idle_timeout`` seconds, not scaled, for a slow host slows down work, and there is none."""
    return watcher.hopeless() or min(watcher.idle(), silent) >= idle_timeout


def deadline(idle_timeout: float) -> float:
    """Return the seconds (not yet scaled) after which a wait without a deadline of its own ends, however much is
    printed: far more than any good wait takes, as it is meant for guests that print for ever."""
    return max(_LONGEST, _LONGEST_FACTOR * idle_timeout)


def window(idle_timeout: float) -> float:
    """Return the seconds between two samples during a wait that expires after ``idle_timeout`` (not yet scaled)
    seconds; 0 for a wait too short for samples."""
    return min(idle_timeout / 2, _SAMPLE_SECONDS) * host_factor() if idle_timeout >= _POLL_SECONDS else 0.0


def next_sample(began: float, sampled: float, limit: float, every: float) -> float:
    """Return when to sample next in a silence that began at ``began``, after a sample at ``sampled``; ``limit``, the
    end of the wait, if no more is due. Samples are timed back from that end, as the last one matters most."""
    left = limit - max(began, sampled)
    return limit - max(0, math.ceil(left / every - 1e-6) - 1) * every

# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed of this host relative to a reference machine, by which time limits are scaled."""

from __future__ import annotations

import os
import statistics
import time
from functools import lru_cache

from framework.common.errors import UsageError

_ROUNDS, _SAMPLES = 80_000, 7
_REFERENCE_SECONDS = 0.006
"""Seconds of :data:`_ROUNDS` rounds of the loop on an idle 3 GHz x86-64 core with CPython 3.11."""

_SLOWEST = 20.0


@lru_cache(maxsize=1)
def host_factor() -> float:
    """Return the factor by which idle timeouts grow: 1.0 on the reference machine or a faster one, at most
    20.

    Wall time, not CPU time: a host whose cores are taken by others is as slow to a board as one with slow
    cores. The median of several short samples: one that was interrupted says nothing of the others. Measured once per
    process (about 50 ms). ``MEDCHECK_HOST_FACTOR`` overrides it; raises UsageError
    when that is no number.
    """
    given = os.environ.get("MEDCHECK_HOST_FACTOR")
    if given is not None:
        try:
            factor = float(given)
        except ValueError:
            factor = 0.0
        if not 0.1 <= factor <= 1000:
            raise UsageError(
                f"MEDCHECK_HOST_FACTOR is '{given}'", hint="expected a number from 0.1 to 1000, such as 2.5"
            )
        return factor
    return min(_SLOWEST, max(1.0, _measure() / _REFERENCE_SECONDS))


def _measure() -> float:
    """The median of the samples, in seconds."""
    return statistics.median(_sample() for _ in range(_SAMPLES))


def _sample() -> float:
    begin = time.perf_counter()
    value = 0
    for step in range(_ROUNDS):
        value = (value * 31 + step) & 0xFFFF_FFFF
    return time.perf_counter() - begin

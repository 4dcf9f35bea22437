"""The ends of processes."""

from __future__ import annotations

import os
import select


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait for the end of a process that may be somebody else's child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)

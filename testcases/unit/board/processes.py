# SPDX-License-Identifier: GPL-2.0-or-later
"""The ends of processes."""

from __future__ import annotations

import os

from framework.common.polling import readable


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait for the end of a process that may be another one's child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return readable(handle, seconds)
    finally:
        os.close(handle)

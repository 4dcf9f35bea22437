# SPDX-License-Identifier: GPL-2.0-or-later
"""Supervision of a pytest process up to its end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable


def follow(process: subprocess.Popen[bytes], take: Callable[[bytes], object] | None = None) -> bool:
    """Wait for pytest's end, whatever comes meanwhile, and return whether it was interrupted: it takes its boards down
    then, which must not be cut short. ``take`` gets what it writes, if its output is a pipe.

    Ctrl-C reaches pytest by itself. A signal that ended this process only (the number in KeyboardInterrupt, as
    :mod:`framework.cli.main` raises it for SIGTERM and SIGHUP) is passed on: as an interrupt the first time, which is
    the only one after which pytest still tears down, and as it came after that.
    """
    interrupted = False
    while True:
        try:
            if process.stdout is not None and take is not None:
                while piece := os.read(process.stdout.fileno(), 1 << 16):
                    take(piece)
            process.wait()
        except KeyboardInterrupt as error:
            if error.args:
                process.send_signal(error.args[0] if interrupted else signal.SIGINT)
            interrupted = True
        else:
            return interrupted

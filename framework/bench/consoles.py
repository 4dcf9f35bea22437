# SPDX-License-Identifier: GPL-2.0-or-later
"""Throughput of a console: through a socket, into its log, past the crash scanner, to an expect."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from framework.common.errors import BoardError
from framework.common.host_speed import host_factor
from framework.console.console import Console
from framework.console.reader_thread import ConsoleReader

# A process of its own, as QEMU is: a thread would take the console's time.
_WRITER = """
import socket, sys
line = b"[  123.456789] usb 1-1: a line as long as those of a kernel that has much to tell, number %07d\\r\\n"
block = b"".join(line % number for number in range(1000))
end = socket.socket(fileno=int(sys.argv[1]))
for _ in range(int(sys.argv[2]) * 1_000_000 // len(block) + 1):
    end.sendall(block)
end.sendall(b"this is the end\\r\\n")
"""


def console_throughput(megabytes: int = 128) -> float:
    """Return the speed of one console in MB/s (10**6 bytes), first byte to the match at the end."""
    host_factor()
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
        begin = time.monotonic()
        console = Console("bench", ours, Path(folder) / "bench.log", lambda: time.monotonic() - begin)
        reader = ConsoleReader("bench")
        reader.add(console)
        command = [sys.executable, "-I", "-S", "-c", _WRITER, str(theirs.fileno()), str(megabytes)]
        with theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]):
            reader.start()
            try:
                console.expect(rb"123\.456789\]", idle_timeout=30)
                first = time.monotonic()
                console.expect(rb"this is the end\r\n", idle_timeout=30)
                return console.bytes_seen / 1e6 / (time.monotonic() - first)
            finally:
                reader.stop()
                console.close(BoardError("the measurement is over"))


if __name__ == "__main__":
    print(f"{console_throughput():.0f} MB/s")

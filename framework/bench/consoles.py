"""How fast a console takes bytes: through a socket, into its log, past the problem watch, to an expect."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path

from framework.board.consoles import Console
from framework.board.drain import Drain
from framework.errors import BoardError

_LINE = b"[  123.456789] usb 1-1: a line as long as those of a kernel that has much to tell, number %07d\r\n"


def console_throughput(megabytes: int = 128) -> float:
    """Return the speed of one console in MB/s (10**6 bytes): first byte sent to match at the very end."""
    block = b"".join(_LINE % number for number in range(1000))
    count = megabytes * 1_000_000 // len(block) + 1
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
        begin = time.monotonic()
        console = Console("bench", ours, Path(folder) / "bench.log", lambda: time.monotonic() - begin)
        drain = Drain("bench")
        drain.add(console)
        drain.start()

        def write() -> None:
            for _ in range(count):
                theirs.sendall(block)
            theirs.sendall(b"this is the end\r\n")

        writer = threading.Thread(target=write, name="bench-writer")
        writer.start()
        try:
            console.expect(b"this is the end\r\n", idle_timeout=30)
            return console.bytes_seen / 1e6 / (time.monotonic() - begin)
        finally:
            writer.join()
            drain.stop()
            theirs.close()
            console.close(BoardError("the measurement is over"))


if __name__ == "__main__":
    print(f"{console_throughput():.0f} MB/s")

# SPDX-License-Identifier: GPL-2.0-or-later
"""What several tests ask of domains: how many calls wait, at which requests, and what memory Xen has left."""

from __future__ import annotations

import re
import time

from framework.common.errors import GuestError
from medcheck import Target
from mediator_ref.abi import RpcCmd, RpcFunc

MOST_CALLS = 64
"""More threads than any OP-TEE configuration in use has."""

REQUESTS = (RpcFunc.ALLOC, RpcCmd.SHM_ALLOC, RpcCmd.FS, RpcCmd.LOAD_TA, RpcCmd.SHM_FREE, RpcFunc.FREE)
"""What OP-TEE asks for while a session with a missing TA is opened, in this order."""

_HEAP = re.compile(r"heap\[node=\d+\]\[zone=\d+\] -> (\d+) pages")


def free_pages(target: Target) -> int:
    """Xen's free pages, to the page: the sum over its heap, as the debug key H prints it."""
    console = target.board.consoles["xen"]
    found: list[int] = []
    target.dom0.run("xl debug-keys H").check()
    for _ in range(100):
        said = console.tail(200)
        begin = max((i for i, line in enumerate(said) if "'H' pressed" in line), default=0)
        counted = [int(match[1]) for line in said[begin:] if (match := _HEAP.search(line))]
        if counted and counted == found:
            return sum(counted)
        found = counted
        time.sleep(0.05)
    raise GuestError("Xen does not tell its free memory", where="console xen")

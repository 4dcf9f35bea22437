# SPDX-License-Identifier: GPL-2.0-or-later
"""What several tests ask of domains: how many calls wait, at which requests, and what memory Xen has left."""

from __future__ import annotations

import time

from framework.common.errors import GuestError
from framework.guests.xen_console import free_kib
from medcheck import Target
from mediator_ref.abi import RpcCmd, RpcFunc
from mediator_ref.events import PAGE_SIZE

MOST_CALLS = 64
"""More threads than any OP-TEE configuration in use has."""

REQUESTS = (RpcFunc.ALLOC, RpcCmd.SHM_ALLOC, RpcCmd.FS, RpcCmd.LOAD_TA, RpcCmd.SHM_FREE, RpcFunc.FREE)
"""What OP-TEE asks for while a session with a missing TA is opened, in this order."""


def free_pages(target: Target) -> int:
    """Xen's free pages, to the page, once their number stays: the last of a domain goes a little later than it."""
    found = -1
    for _ in range(100):
        before, found = found, free_kib(target.board.consoles["xen"]) * 1024 // PAGE_SIZE
        if found == before:
            return found
        # No event says that Xen has freed the last page.
        time.sleep(0.05)
    raise GuestError("Xen's free memory does not come to rest", where="console xen")

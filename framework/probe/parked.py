# SPDX-License-Identifier: GPL-2.0-or-later
"""A probe's call that waits at a request of OP-TEE, saved with its board and taken over in a clone.

In the guest everything is in its memory already. What the client on the host knew of it (pages in use, registers of
the request, the session that is open beside it) goes through plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from framework.common.errors import GuestError
from framework.probe.call import Parking, StdCall
from framework.probe.client import Dom0Like, Probe, create_probe
from framework.probe.link import ConsoleLike, ConsoleTransport
from framework.probe.message import INVOKE_TESTS, NO_TA, OpenSession
from framework.probe.ops import HEAP
from framework.probe.wire import Rpc
from mediator_ref.abi import RpcCmd
from mediator_ref.events import PAGE_SIZE

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.py")))
"""Inputs, beside the image, that decide which state the board is left in."""

_NAME = "parked"
_MEMORY_MIB = 32


@dataclass(frozen=True)
class Parked:
    """``call``: OPEN_SESSION of a TA that does not exist, suspended in OP-TEE until its request is answered.

    ``session``: of OP-TEE's built-in test TA, open since before the call.
    """

    probe: Probe
    call: StdCall
    session: int


def park(
    dom0: Dom0Like, port: str, console: ConsoleLike, image: Path, where: Parking = RpcCmd.SHM_ALLOC
) -> dict[str, Any]:
    """Create a probe on a console port and leave a call of it at the request ``where``.

    Returns what :func:`take_over` needs, as plain JSON. Raises GuestError when OP-TEE never makes that request.
    """
    probe = create_probe(dom0, _NAME, port, console, image, memory_mib=_MEMORY_MIB)
    opened = probe.call_with_arg(OpenSession(INVOKE_TESTS))
    if opened.x0 or opened.arg.ret:
        raise GuestError(f"OP-TEE's test TA does not open: {opened.x0:#x}, {opened.arg.ret:#x}", where=_NAME)
    call = probe.begin(OpenSession(NO_TA), park=[where])
    if call.done:
        raise GuestError(f"the call never asked for {where.name}; it asked for {call.asked()}", where=_NAME)
    return {
        "port": port,
        "domid": probe.domid,
        "session": opened.arg.session,
        # No page is taken: the address of the next one.
        "free": probe.pages(0),
        "cookie": probe.cookie(),
        "arg_page": call.arg_page,
        "sent": call.sent.hex(),
        "page": call.page.hex(),
        "regs": list(call.regs),
        "rpcs": [list(astuple(rpc)) for rpc in call.rpcs],
        "rpc_pages": [list(pair) for pair in call.rpc_pages.items()],
    }


def take_over(console: ConsoleLike, notes: Mapping[str, Any]) -> Parked:
    """Go on in a clone with what :func:`park` left. Raises GuestError when the probe there does not answer."""
    transport = ConsoleTransport(console)
    transport.hello()
    probe = Probe(transport, name=_NAME, domid=notes["domid"], memory_mib=_MEMORY_MIB)
    # What the call uses in the guest must not be given out again.
    probe.pages((notes["free"] - HEAP) // PAGE_SIZE)
    while probe.cookie() < notes["cookie"]:
        pass
    call = StdCall(probe, notes["arg_page"], (), bytes.fromhex(notes["sent"]))
    call.page = bytes.fromhex(notes["page"])
    call.regs = tuple(notes["regs"])
    call.rpcs = [Rpc(*rpc) for rpc in notes["rpcs"]]
    call.rpc_pages = dict(notes["rpc_pages"])
    return Parked(probe, call, notes["session"])

# SPDX-License-Identifier: GPL-2.0-or-later
"""How much work the mediator may do at once for a call: a bound by what the call is and by the pages it names."""

from __future__ import annotations

from dataclasses import dataclass

from mediator_ref import abi
from mediator_ref.domain import Domain, StdCall

SHORT = 100_000
"""Instructions for what moves registers only. Seen with Xen 4.17 (debug): 720 at most."""
LONG = 400_000
"""Instructions for what copies, allocates or frees pages of its own. Seen: 45 000, most of it for a line of log."""
FOR_EACH_PAGE = 4_000
"""Instructions for each guest page that is looked up and pinned, or released. Seen: 500."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What the mediator does in one stretch, in words, and how many instructions of the hypervisor that may take."""

    what: str
    most: int


def for_call(function: abi.SmcFunction, call: StdCall | None, pages: int) -> Effort:
    """From the guest's trap to OP-TEE, or to an answer without it. ``pages``: guest pages that the call names."""
    if function.handling is abi.Handling.STANDARD:
        return Effort("CALL_WITH_ARG", LONG + pages * FOR_EACH_PAGE)
    if function.handling is not abi.Handling.RESUME:
        return Effort("fast call", SHORT)
    if call is not None and call.rpc_op not in (abi.RpcFunc.CMD, abi.RpcFunc.ALLOC):
        return Effort("resume after an interrupt or FREE", SHORT)
    return Effort("resume with a reply", LONG + pages * FOR_EACH_PAGE)


def for_answer(function: abi.SmcFunction, domain: Domain) -> Effort:
    """From OP-TEE's answer to the guest's; what a call shared may be released then."""
    if function.handling not in (abi.Handling.STANDARD, abi.Handling.RESUME):
        return Effort("answer to a fast call", SHORT)
    return Effort("request or result", LONG + sum(buffer.pages for buffer in domain.buffers.values()) * FOR_EACH_PAGE)

# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE's own list of what a domain shares with it (``reg_shm_list``) against the mediator's lists (BOOK-6).

A frame that OP-TEE has and the mediator does not hold may be Xen's, or another domain's, at any time. OP-TEE itself
keeps two kinds of memory beyond its due, which are no fault of the mediator's: a buffer that a call brought, after that
call has ended (O2), and an RPC page that it has asked to free, until it is resumed.
"""

from __future__ import annotations

from mediator_ref import abi
from mediator_ref.books import Lists, SharedMemory
from mediator_ref.domain import Domain
from mediator_ref.events import El3Return, Event, GuestReturn
from mediator_ref.knowledge import PartitionState, Pending
from mediator_ref.rules import RuleId
from mediator_ref.state import State
from mediator_ref.verdict import Difference

NOT_RECORDED = "OP-TEE's list of shared memory was not recorded"
_OTHER_VCPU = "another vCPU of the domain was in the mediator or in OP-TEE"
_RULE = RuleId.BOOK_6


def returned(state: State, pending: Pending, event: El3Return) -> None:
    """Take what OP-TEE has when it answers, and compare it with what the mediator held while OP-TEE worked."""
    domain, seen, partition = pending.domain, event.partition, pending.domain.partition
    _note_giving_back(pending, event)
    partition.entered = True
    if seen is None or seen.client != domain.domid + 1:
        return  # OP-TEE was in no partition, or another's (CID-1): this one's list is as it was
    if seen.shared is None or seen.busy:
        partition.shared, partition.missing = None, _OTHER_VCPU if seen.busy else "OP-TEE's list could not be read"
        return
    partition.shared = frozenset(seen.shared)
    partition.left &= partition.shared
    partition.reported &= partition.shared
    # Xen's lists are those from before OP-TEE worked: no other vCPU may have changed them since.
    if pending.handed is not None and pending.handed[1] + 1 == domain.activity:
        _compare(state, pending, event, pending.handed[0])
    call = pending.call
    if call is not None and not pending.suspended:
        ended = {cookie for cookie in call.cookies if cookie not in domain.buffers}
        partition.left |= {memory for memory in partition.shared if memory.cookie in ended}
        if event.regs[0] == abi.SmcReturn.ERESUME and call.ma is not None:
            # For the mediator the call is over. OP-TEE, which named a wrong thread before, may still have its message.
            partition.left |= {memory for memory in partition.shared if memory.frames == (call.ma >> 12,)}


def answered(state: State, pending: Pending, event: GuestReturn) -> None:
    """Compare what OP-TEE has with what the mediator holds when a guest has its answer."""
    domain, partition = pending.domain, pending.domain.partition
    lists = event.books.lists if event.books is not None else None
    if not partition.entered and not domain.history_unknown:
        return  # its list is empty
    if domain.in_hypervisor or domain.running:
        state.unchecked(_RULE, _OTHER_VCPU, event)
    elif lists is None:
        state.unchecked(_RULE, "the hypervisor's lists were not recorded", event)
    elif partition.shared is None:
        state.unchecked(_RULE, partition.missing or NOT_RECORDED, event)
    else:
        _compare(state, pending, event, lists)


def _note_giving_back(pending: Pending, event: El3Return) -> None:
    """OP-TEE asks to free an RPC page before it lets go of it, and a foreign interrupt may come in between."""
    call, x0 = pending.call, event.regs[0] & abi.U32
    if call is None or x0 == abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR:
        return
    cookie = abi.pair(event.regs[1], event.regs[2])
    known = cookie in pending.domain.returned_cookies or bool(pending.domain.history_unknown)
    asked = x0 == abi.RPC_PREFIX | abi.RpcFunc.FREE and known
    call.giving_back = cookie if asked else None


def _compare(state: State, pending: Pending, event: Event, lists: Lists) -> None:
    """BOOK-6: every frame that OP-TEE has is one that the mediator holds for the domain."""
    domain, partition = pending.domain, pending.domain.partition
    held = lists.given()
    if held is None or partition.shared is None:
        state.unchecked(_RULE, "the frame of a page is not known", event)
        return
    beyond = {memory for memory in partition.shared if not held.issuperset(memory.frames)}
    beyond -= partition.left | _given_back(domain, beyond)
    if domain.history_unknown != partition.history:
        _begin_anew(state, event, domain.history_unknown, partition, frozenset(beyond))
        return
    for memory in sorted(beyond - partition.reported, key=lambda memory: memory.cookie):
        page = next(n for n, mfn in enumerate(memory.frames) if mfn not in held)
        where = f"page {page} of OP-TEE's memory {memory.cookie:#x}"
        difference = Difference(where, "held", f"frame {memory.frames[page]:#x} is not held")
        state.fail(_RULE, event, "OP-TEE has a page that the mediator does not hold", difference, pending=pending,
                   cookie=memory.cookie, amount=memory.frames[page])  # fmt: skip
    partition.reported = frozenset(beyond)
    if not beyond:
        state.ok(_RULE)


def _given_back(domain: Domain, beyond: set[SharedMemory]) -> set[SharedMemory]:
    """Those RPC pages that OP-TEE has asked to free and not had time to let go of."""
    cookies = {call.giving_back for call in (*domain.calls.values(), *domain.running.values())}
    return {memory for memory in beyond if memory.cookie in cookies and len(memory.frames) == 1}


def _begin_anew(
    state: State, event: Event, history: str, partition: PartitionState, beyond: frozenset[SharedMemory]
) -> None:
    """Something of the past is not known: what OP-TEE has beyond the mediator's lists now may be what it kept."""
    partition.history = history
    partition.left |= beyond
    if beyond:
        state.unchecked(_RULE, history, event)

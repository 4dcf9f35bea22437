# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of domains and of calls that are under way, and how observations change it.

Two accounts are kept of a domain's buffers: that of a correct mediator (:class:`~mediator_ref.domain.Domain`) and
that of one with the known defects (:class:`~mediator_ref.defect_model.DefectState`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mediator_ref import abi
from mediator_ref.books import Lists, SharedMemory
from mediator_ref.defect_model import DefectState, DefectTranslation
from mediator_ref.domain import Buffer, Domain, StdCall
from mediator_ref.events import GuestCall, PageView
from mediator_ref.rules import DeviationId
from mediator_ref.spec.outcome import Answer, Translation

FOLLOWS = "follows a nonconformance"
"""Why the rest of a call is not checked once the implementation went another way."""


class Phase(Enum):
    """The side that acts next for a guest's call."""

    HYPERVISOR = "the mediator has the guest's call"
    OPTEE = "OP-TEE has the call"
    ANSWER = "the mediator has OP-TEE's answer"


@dataclass(frozen=True, slots=True)
class PageSeen:
    """References of a page when it was last looked at: ``spare`` are those that neither its allocation nor an entry of
    the mediator's lists accounts for, ``own`` says whether it was the domain's, ``allocated`` whether it stays that
    without a reference: a page that the guest has given away does not."""

    spare: int
    own: bool
    allocated: bool = True


@dataclass(frozen=True, slots=True)
class HeapSeen:
    """Memory when it was last looked at: the sum of pages that a call does not change, bytes of small objects in use,
    the entries of the lists, and the number of hypercalls (-1: one was running)."""

    pages: int
    pool_bytes: int
    objects: frozenset[tuple[str, int]]
    hypercalls: int


@dataclass(slots=True)
class BookState:
    """What the hypervisor's own books of a domain said last.

    ``excess``: what counters had beyond their lists, of which ``followed`` pages came with an answer that was wrong in
    itself; ``faults``: differences that were reported and are still there
    (``still``: those that a check under way finds); ``named``: how often lists name a frame; ``held``: these frames,
    seen when ``held_at`` hypercalls had run; ``pages``: frames that a call names, with that number; ``dying``: memory
    when the domain's end began; ``differs``: another rule did not hold since the lists were compared.
    """

    lists: Lists | None = None
    excess: dict[str, int] = field(default_factory=dict)
    followed: int = 0
    faults: set[tuple[object, ...]] = field(default_factory=set)
    still: set[tuple[object, ...]] = field(default_factory=set)
    named: Counter[int] = field(default_factory=Counter)
    held: dict[int, PageSeen] = field(default_factory=dict)
    held_at: int = 0
    pages: dict[int, tuple[PageSeen, int]] = field(default_factory=dict)
    dying: HeapSeen | None = None
    differs: bool = False


@dataclass(slots=True)
class PartitionState:
    """OP-TEE's own list of what a domain shares with it, when OP-TEE left the partition last.

    ``entered``: OP-TEE was called for the domain. ``shared`` is ``None`` when it was not recorded, ``missing`` says
    why; ``left``: what OP-TEE keeps although the call that brought it has ended (O2), or had before anything was known
    (``history``: what was not known then); ``reported``: what the mediator does not hold, and was said to.
    """

    entered: bool = False
    shared: frozenset[SharedMemory] | None = None
    missing: str = ""
    left: frozenset[SharedMemory] = frozenset()
    history: str = ""
    reported: frozenset[SharedMemory] = frozenset()


@dataclass(slots=True)
class TrackedDomain(Domain):
    """A domain with what only the comparison needs.

    ``activity`` counts entries to and exits from the mediator; ``in_hypervisor`` vCPUs are in it at the moment.
    """

    defects: DefectState = field(default_factory=DefectState)
    book: BookState = field(default_factory=BookState)
    partition: PartitionState = field(default_factory=PartitionState)
    activity: int = 0
    in_hypervisor: int = 0
    created: bool = False
    dying: bool = False
    destroyed: bool = False
    refused: bool = False
    called_after_death: bool = False

    def forget(self) -> None:
        """Its calls, buffers and pages are gone, or not known any more."""
        self.calls.clear()
        self.running.clear()
        self.rpcs.clear()
        self.buffers.clear()
        self.returned_cookies.clear()
        self.ended_cookies.clear()
        self.defects.forget()
        self.partition = PartitionState()

    def snapshot(self) -> dict[str, object]:
        """Describe the domain in plain data, for explanations and invariants."""
        return {
            "domid": self.domid,
            "calls": self.call_count,
            "suspended threads": sorted(self.calls),
            "rpc pages": sorted(self.rpcs),
            "buffers": {cookie: buffer.pages for cookie, buffer in sorted(self.buffers.items())},
            "pages": sum(buffer.pages for buffer in self.buffers.values()),
            "history unknown": self.history_unknown,
        }

    def in_words(self) -> str:
        """Describe the domain in one line, for a verdict."""
        threads = ",".join(map(str, sorted(self.calls))) or "none"
        pages = sum(buffer.pages for buffer in self.buffers.values())
        return (
            f"{len(self.running)} calls running, suspended threads {threads}, "
            f"{len(self.buffers)} buffers of {pages} pages, {len(self.rpcs)} RPC pages"
        )


@dataclass(slots=True)
class Pending:
    """A guest call that has not been answered, on one vCPU."""

    event: GuestCall
    domain: TrackedDomain
    function: abi.SmcFunction | None
    base: Mapping[int, PageView]
    """Guest pages as they were when OP-TEE returned."""
    phase: Phase = Phase.HYPERVISOR
    call: StdCall | None = None
    answer: Answer | None = None
    returned: tuple[int, ...] = ()
    """Registers OP-TEE returned last."""
    suspended: bool = False
    """The call can be resumed: OP-TEE asked for an RPC, or lost the call."""
    taken_over: bool = False
    """Another vCPU resumed the suspended call before this one was back in its guest."""
    undelivered: tuple[int, ...] = ()
    """Registers OP-TEE returned with a request that could not be handed to the guest."""
    activity: int = 0
    overlapped: bool = False
    loaded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Bytes of the guest's pages that the mediator has loaded, by frame."""
    tainted: str = ""
    ignored: bool = False
    differs: bool = False
    """A rule did not hold, other than those about the hypervisor's own books."""
    recently_freed: frozenset[int] = frozenset()
    """Shadow pages freed since OP-TEE returned: they may be reused elsewhere, and must not show here."""
    heap: HeapSeen | None = None
    handed: tuple[Lists, int] | None = None
    """The mediator's lists when OP-TEE got the call, and the domain's ``activity`` then."""
    alone: bool = True
    """No other vCPU was in the hypervisor for a call when this one came."""
    since: int = 0
    """Events of the whole trace when the guest trapped."""
    steps: int = 0
    """Events of this call since then."""

    @property
    def thread(self) -> int:
        """The thread a return from RPC is for."""
        return self.event.regs[3] & abi.U32

    @property
    def arg_ipa(self) -> int:
        """The address in x1:x2."""
        return abi.pair(self.event.regs[1], self.event.regs[2])


def uncertain(pending: Pending) -> str:
    """Reason why a result that rests on the domain's state cannot be determined, or "" if it can."""
    domain = pending.domain
    if domain.history_unknown:
        return domain.history_unknown
    if pending.overlapped:
        return "another vCPU of the domain was in the mediator at the same time"
    return ""


def lose_history(domain: Domain, reason: str) -> None:
    """From here on parts of the domain's past are not known."""
    domain.history_unknown = domain.history_unknown or reason


# Buffers


def accept(
    pending: Pending,
    translation: Translation | None,
    with_defects: DefectTranslation | None,
    *,
    temporary: bool = True,
) -> None:
    """A message reached OP-TEE: its buffers are held, also those that should have been refused.

    ``temporary`` buffers end with the call, others when OP-TEE asks to free them.
    """
    if translation is None:
        return
    domain = pending.domain
    accepted = translation
    if with_defects is not None and with_defects.refusal is None:
        accepted = with_defects
        domain.defects.accounting = with_defects.accounting
        for cookie in with_defects.pages:
            domain.defects.deviation_by_cookie.pop(cookie, None)
    elif with_defects is not None:
        domain.defects.accounting = None
        domain.defects.deviation_by_cookie.clear()
    found = {buffer.cookie: buffer for buffer in accepted.buffers.values() if buffer is not None}
    domain.ended_cookies.difference_update(accepted.pages)
    for cookie in accepted.pages:
        buffer = domain.buffers[cookie] = found.get(cookie, Buffer(cookie, ()))
        buffer.rpc = not temporary
        if temporary and pending.call is not None:
            pending.call.cookies.append(cookie)
    domain.defects.drop_if_equal(domain)


def refuse(domain: TrackedDomain, with_defects: DefectTranslation) -> None:
    """A message was refused: a mediator with D3 and D5 keeps a part of it."""
    defects = domain.defects
    defects.accounting = with_defects.accounting
    for cookie in with_defects.pages:
        if cookie in with_defects.accounting.held and cookie not in domain.buffers:
            defects.deviation_by_cookie[cookie] = DeviationId.D5
    defects.drop_if_equal(domain)


def release(domain: TrackedDomain, correct: set[int], with_defects: set[int], deviation: DeviationId) -> None:
    """Buffers end: those a correct mediator releases, and those one with ``deviation`` releases."""
    correct &= domain.buffers.keys()
    defects = domain.defects
    held = defects.accounting.held if defects.accounting is not None else domain.buffers
    released = {cookie for cookie in with_defects if cookie in held}
    if correct != released or defects.accounting is not None:
        accounting = defects.accounting_for(domain)
        for cookie in released:
            accounting.held.pop(cookie, None)
            defects.deviation_by_cookie.pop(cookie, None)
        for cookie in correct ^ released:
            if (cookie in domain.buffers and cookie not in correct) or cookie in accounting.held:
                defects.deviation_by_cookie.setdefault(cookie, deviation)
    for cookie in correct:
        del domain.buffers[cookie]
    defects.drop_if_equal(domain)

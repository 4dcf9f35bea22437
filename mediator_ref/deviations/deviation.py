# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of a known deviation, and what its condition is asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mediator_ref import abi
from mediator_ref.domain import StdCall
from mediator_ref.events import El3Call, Event, FrameReleased, GuestReturn
from mediator_ref.knowledge import Pending, TrackedDomain
from mediator_ref.rules import DeviationId, RuleId, Severity
from mediator_ref.spec.outcome import Answer, Expected, Refusal, Reply


@dataclass(slots=True)
class Mismatch:
    """A rule that does not hold, with what a deviation's condition may look at.

    ``fields`` are those that differ, in the ABI's words. ``expected`` is the result of the specification; ``refusal``
    the refusal of a buffer that only a correct mediator, or only one with known defects, would make. ``assertions``:
    deviations that domains had shown when they ended. ``shadow``: the RPC shadow OP-TEE found, for a guest's reply.
    ``cookie`` and ``amount``: of the entry that differs in the mediator's or OP-TEE's list, and by how much a counter
    does, or which frame is not held (BOOK-6).
    """

    rule: RuleId
    observed: Event
    domain: TrackedDomain | None = None
    pending: Pending | None = None
    fields: frozenset[str] = frozenset()
    expected: Expected | Answer | None = None
    refusal: Refusal | None = None
    threads: int | None = None
    assertions: frozenset[DeviationId] = frozenset()
    shadow: bytes = b""
    cookie: int | None = None
    amount: int = 0

    @property
    def call(self) -> StdCall | None:
        """The standard call, for a mismatch within one."""
        return self.pending.call if self.pending is not None else None

    @property
    def reply(self) -> Reply | None:
        """The guest's reply, for a mismatch about one."""
        return self.expected if isinstance(self.expected, Reply) else None

    @property
    def at_el3(self) -> bool:
        """OP-TEE was called, and not the guest answered."""
        return isinstance(self.observed, El3Call)

    @property
    def reply_as_given(self) -> bool:
        """The guest's reply reached OP-TEE as it was, to the byte."""
        reply = self.reply
        return reply is not None and reply.page != b"" and self.shadow[: reply.size] == reply.page[: reply.size]

    def x0_of_guest(self) -> int | None:
        """x0 the guest finds, when that is what differs."""
        if isinstance(self.observed, GuestReturn) and "x0" in self.fields:
            return self.observed.regs[0]
        return None


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known difference between Xen's mediator and what it should do.

    ``condition`` says in words what ``explains`` decides: whether a mismatch of one of ``rules`` is this deviation.
    ``seen_in``: releases of Xen in which a run showed it; that others have the same code is no entry here.
    ``disclosure``: an isolation finding, which goes to the mediator's maintainers first.
    """

    id: DeviationId
    rules: tuple[RuleId, ...]
    title: str
    condition: str
    where: str
    severity: Severity
    status: str
    stimulus: str
    explains: Callable[[Mismatch], bool]
    seen_in: tuple[str, ...] = ("4.17",)
    disclosure: bool = False

    @property
    def evidence(self) -> str:
        """In words: whether a run has shown it, and in which releases."""
        return f"{self.status} in Xen {', '.join(self.seen_in)}" if self.seen_in else self.status


def disputed_by(deviation: DeviationId, m: Mismatch) -> bool:
    """Tell whether a refusal rests on buffers that ``deviation`` left behind or released.

    A cookie in use (MEM-8) is disputed by the deviation that made that buffer differ. Buffers and pages without one
    that differs (MEM-6, MEM-7) are disputed by all deviations that made any differ, unless pages leaked (D3).
    """
    if m.refusal is None or m.domain is None:
        return False
    defects = m.domain.defects
    if m.rule is RuleId.MEM_8:
        return defects.deviation_by_cookie.get(m.refusal.param.c) == deviation
    if m.rule is RuleId.MEM_7 and defects.accounting is not None and defects.accounting.leaked_pages:
        return False
    return deviation in defects.deviation_by_cookie.values()


def released_by(deviation: DeviationId, m: Mismatch) -> bool:
    """Tell whether a frame left its domain (MEM-10) because ``deviation`` released a buffer it belongs to."""
    if m.domain is None or not isinstance(m.observed, FrameReleased):
        return False
    by_cookie, mfn = m.domain.defects.deviation_by_cookie, m.observed.mfn
    return any(mfn in b.mfns and by_cookie.get(cookie) == deviation for cookie, b in m.domain.buffers.items())


def breaks_accounting(deviation: DeviationId, m: Mismatch) -> bool:
    """Decide on a deviation that releases buffers too early or keeps them too long."""
    if m.rule in (RuleId.BOOK_2, RuleId.BOOK_6):
        return m.domain is not None and m.domain.defects.deviation_by_cookie.get(m.cookie or 0) == deviation
    return released_by(deviation, m) if m.rule is RuleId.MEM_10 else disputed_by(deviation, m)


def passes_on(deviation: DeviationId, m: Mismatch) -> bool:
    """Tell whether OP-TEE has memory that the mediator does not hold because ``deviation`` let its address through, or
    that of its page list."""
    passed_on = m.domain.defects.passed_on if m.domain is not None else {}
    return any(
        found == deviation and (m.cookie == cookie or m.amount == frame) for (cookie, frame), found in passed_on.items()
    )


def replies_from_another_page(pending: Pending) -> bool:
    """Tell whether the guest left another cookie in x1:x2 than its request had (D4)."""
    return pending.call is not None and pending.arg_ipa != abi.pair(*pending.call.rpc_params)

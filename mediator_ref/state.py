# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything the reference knows of one trace, and the tally of its verdicts.

:func:`mediator_ref.step.step` changes the state it is given. A copy (``copy.deepcopy``, ``pickle``) goes on from where
the original was; ``snapshot()`` is plain data in words, for explanations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mediator_ref.deviations import DEVIATIONS, Deviation, Mismatch, explain
from mediator_ref.events import Event, GuestCall, Registers
from mediator_ref.knowledge import Pending, TrackedDomain
from mediator_ref.limits import Limits
from mediator_ref.rules import ABOUT_BOOKS, DeviationId, RuleId
from mediator_ref.spec.outcome import Answer, Expected, Refusal
from mediator_ref.verdict import Difference, Outcome, Tally, Verdict


@dataclass(slots=True)
class State:
    """Hypervisor, domains, calls and buffers; ``deviations`` are the listed ones.

    ``threads``: simultaneous standard calls per domain, ``None`` while not known. ``mid_stream``: the reason why
    domains and calls may exist that were never observed to begin, or empty. ``pending`` are guest calls without an
    answer by ``(domid, vcpu)``, ``hypervisor_calls`` the hypervisor's own (function id, client id), ``probed`` OP-TEE's
    answers to its questions at boot. ``shadow_pages`` are pages of the hypervisor OP-TEE may use, with the domain they
    are for. ``assertions`` are deviations that a
    domain had shown when it ended: a debug hypervisor asserts that it finds nothing of them.
    ``memory_free``: the hypervisor is known to have had free memory throughout. ``reads_missing``,
    ``time_missing``: a call's accesses of guest memory, or its instructions, were not observed.
    """

    limits: Limits = field(default_factory=Limits)
    deviations: Mapping[str, Deviation] = field(default_factory=lambda: DEVIATIONS)
    tally: Tally = field(default_factory=Tally)
    threads: int | None = None
    mid_stream: str = ""
    memory_free: bool = False
    reads_missing: bool = False
    time_missing: bool = False
    domains: dict[int, TrackedDomain] = field(default_factory=dict)
    pending: dict[tuple[int | None, int], Pending] = field(default_factory=dict)
    hypervisor_calls: dict[tuple[int | None, int], tuple[int, int]] = field(default_factory=dict)
    probed: dict[int, Registers] = field(default_factory=dict)
    shadow_pages: dict[int, int] = field(default_factory=dict)
    assertions: set[DeviationId] = field(default_factory=set)
    out: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.threads is None:
            self.threads = self.limits.threads

    def domain(self, domid: int) -> TrackedDomain:
        """Return the domain, made known if it is new."""
        domain = self.domains.get(domid)
        if domain is None:
            domain = self.domains[domid] = TrackedDomain(domid, history_unknown=self.mid_stream)
        return domain

    @property
    def one_in_hypervisor(self) -> bool:
        """Whether one vCPU at most, of all domains, is in the hypervisor for a call of the TEE's."""
        return sum(domain.in_hypervisor for domain in self.domains.values()) <= 1

    def snapshot(self) -> dict[int, dict[str, object]]:
        """Describe all domains in plain data."""
        return {domid: domain.snapshot() for domid, domain in self.domains.items()}

    # Verdicts: for mediator_ref.compare only

    def ok(self, rule: RuleId) -> None:
        """Count one pass."""
        self.tally.passes[rule] += 1

    def unchecked(self, rule: RuleId, reason: str, event: Event, *, unearned: bool = False) -> None:
        """Count one check that could not be made; the first per rule and reason is handed out as a verdict.

        ``reason`` holds no address and no number: a tally has one entry for each, and must not grow with the trace.
        ``unearned``: any fault may hide behind the reason, so that the evidence as a whole is incomplete.
        """
        if unearned:
            self.tally.unearned[reason] += 1
        key = (rule, reason)
        self.tally.not_checked[key] += 1
        if self.tally.not_checked[key] == 1:
            domid, vcpu = getattr(event, "domid", None), getattr(event, "vcpu", None)
            self.out.append(Verdict(RuleId(rule), Outcome.NOT_CHECKED, event.seq, domid, vcpu, reason=reason))

    def fail(
        self,
        rule: RuleId,
        event: Event,
        reason: str,
        *differences: Difference,
        pending: Pending | None = None,
        expected: Expected | Answer | None = None,
        refusal: Refusal | None = None,
        shadow: bytes = b"",
        domain: TrackedDomain | None = None,
        cookie: int | None = None,
        amount: int = 0,
    ) -> DeviationId | None:
        """Record a mismatch: a deviation when one that is listed explains it, else a nonconformance.

        ``domain`` is the one concerned, by default the event's. ``expected``, ``refusal``, ``shadow``, ``cookie`` and
        ``amount``: see :class:`~mediator_ref.deviations.Mismatch`. Returns the deviation that explains it, listed or
        not.
        """
        domid: int | None = getattr(event, "domid", None)
        if domain is None:
            domain = self.domains.get(domid) if domid is not None else None
        fields = frozenset(difference.field for difference in differences)
        concerned = pending.domain if pending is not None else domain
        mismatch = Mismatch(RuleId(rule), event, concerned, pending, fields, expected, refusal, self.threads)
        mismatch.cookie, mismatch.amount = cookie, amount
        mismatch.assertions = frozenset(self.assertions)
        mismatch.shadow = shadow
        known = next(iter(explain(mismatch)), None)
        listed = known if known is not None and known in self.deviations else None
        if listed is not None:
            self.tally.deviations[(rule, listed)] += 1
        else:
            self.tally.fails[rule] += 1
        if pending is not None and rule not in ABOUT_BOOKS:
            pending.differs = pending.domain.book.differs = True
        cause: GuestCall | None = pending.event if pending is not None else None
        self.out.append(
            Verdict(
                rule,
                Outcome.FAIL if listed is None else Outcome.DEVIATION,
                event.seq,
                domid,
                getattr(event, "vcpu", None),
                cause.seq if cause is not None else None,
                differences,
                reason,
                listed,
                domain.in_words() if domain is not None else "",
            )
        )
        return known

    def deviation_not_seen(self, deviation: DeviationId | None) -> None:
        """Count an occasion for a listed deviation at which it did not show."""
        if deviation is not None and deviation in self.deviations:
            self.tally.deviations_not_seen[deviation] += 1

    # Shadow pages

    def drop_shadow(self, *pages: int | None) -> None:
        """The hypervisor's pages are free again."""
        for ma in pages:
            if ma is not None:
                self.shadow_pages.pop(ma, None)

"""What the reference knows: hypervisor, domains, calls, buffers.

Ownership: :func:`mediator_ref.step.step` changes the state it is given and hands the same object back; a caller that
wants to keep an older state takes ``snapshot()``, which is plain data in words, made for explanations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.deviations import DEVIATIONS, Deviation
from mediator_ref.events import Event, GuestCall, PageView
from mediator_ref.limits import Limits
from mediator_ref.verdict import Difference, Outcome, Tally, Verdict

FOLLOWS = "follows a nonconformance"
"""Why the rest of a call is not checked once the implementation went another way."""


@dataclass(slots=True)
class Buffer:
    """Guest memory OP-TEE may use: ``mfns`` are pinned as long as the buffer lives."""

    cookie: int
    mfns: tuple[int, ...]
    rpc: bool = False
    """Given in answer to SHM_ALLOC: only such a buffer ends with SHM_FREE."""

    @property
    def pages(self) -> int:
        """Pages it counts for."""
        return len(self.mfns)


@dataclass(slots=True)
class ShmRpc:
    """An RPC page and its shadow. ``shadow`` is the shadow's content when last seen, ``None`` when it was not."""

    cookie: int
    ipa: int
    mfn: int | None
    ma: int | None
    shadow: bytes | None = None


@dataclass(slots=True)
class Call:
    """A standard call from its CALL_WITH_ARG to its end, across any number of RPCs."""

    seq: int
    arg_ipa: int | None
    ma: int | None
    cmd: int | None = None
    shadow: bytes | None = None
    cookies: list[int] = field(default_factory=list)
    list_pages: list[int] = field(default_factory=list)
    rpc_list_pages: list[int] = field(default_factory=list)
    thread: int | None = None
    rpc_op: int | None = None
    rpc_args: tuple[int, int] = (0, 0)
    rpc_cmd: int | None = None
    rpc_type: int | None = None
    asked_to_free: bool = False
    stale_request: bool = False
    """The guest's answer to the mediator's own request could not be read (D15 waits for another one)."""
    turned_down: int | None = None
    """Cookie the guest offered with an RPC page that was turned down; OP-TEE will ask to free it."""
    tainted: str = ""
    lost: bool = False
    """OP-TEE lost it (D6), and the mediator keeps its context."""


@dataclass(slots=True)
class Ledger:
    """What counts against a domain's limits: cookies with their pages, and pages counted in excess (D3)."""

    held: dict[int, int] = field(default_factory=dict)
    leaked_pages: int = 0

    @property
    def pages(self) -> int:
        """Pages counted against the limit."""
        return sum(self.held.values()) + self.leaked_pages

    def copy(self) -> Ledger:
        """An independent copy."""
        return Ledger(dict(self.held), self.leaked_pages)


@dataclass(slots=True)
class Domain:
    """One domain as the mediator has to see it.

    ``known`` is the ledger of a mediator with all listed deviations, ``None`` while it does not differ from the one
    that follows from ``buffers``. ``blame`` names the deviation that made a cookie differ. ``partial`` says why parts
    of the domain's past are unknown; decisions that rest on them are then not checked.
    """

    domid: int
    tee: bool | None = None
    partial: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    running: dict[int, Call] = field(default_factory=dict)
    rpcs: dict[int, ShmRpc] = field(default_factory=dict)
    buffers: dict[int, Buffer] = field(default_factory=dict)
    returned_cookies: set[int] = field(default_factory=set)
    known: Ledger | None = None
    blame: dict[int, str] = field(default_factory=dict)
    lost_calls: int = 0
    lost_rpcs: set[int] = field(default_factory=set)
    """RPC pages a mediator with D13 has released although a call uses them."""
    doubled_rpcs: set[int] = field(default_factory=set)
    """Cookies such a mediator has accepted a second time: OP-TEE now uses two pages under one cookie."""
    activity: int = 0
    in_hypervisor: int = 0
    in_optee: int = 0
    created: bool = False
    destroyed: bool = False
    refused: bool = False
    called_after_death: bool = False

    def ledger(self) -> Ledger:
        """What should count against the limits."""
        return Ledger({cookie: buffer.pages for cookie, buffer in self.buffers.items()})

    def known_ledger(self) -> Ledger:
        """The ledger with known defects, made on first use."""
        if self.known is None:
            self.known = self.ledger()
        return self.known

    def pinned(self) -> set[int]:
        """Frames OP-TEE may use at the moment."""
        frames = {mfn for buffer in self.buffers.values() for mfn in buffer.mfns}
        frames.update(rpc.mfn for rpc in self.rpcs.values() if rpc.mfn is not None)
        return frames

    def snapshot(self) -> dict[str, object]:
        """The domain in plain data, for explanations and invariants."""
        return {
            "domid": self.domid,
            "calls": len(self.calls) + len(self.running),
            "suspended threads": sorted(self.calls),
            "rpc pages": sorted(self.rpcs),
            "buffers": {cookie: buffer.pages for cookie, buffer in sorted(self.buffers.items())},
            "pages": sum(buffer.pages for buffer in self.buffers.values()),
            "partial": self.partial,
        }

    def in_words(self) -> str:
        """One line for a verdict."""
        threads = ",".join(map(str, sorted(self.calls))) or "none"
        pages = sum(buffer.pages for buffer in self.buffers.values())
        return (
            f"{len(self.running)} calls running, suspended threads {threads}, "
            f"{len(self.buffers)} buffers of {pages} pages, {len(self.rpcs)} RPC pages"
        )


@dataclass(slots=True)
class Answer:
    """What has to follow once OP-TEE returned, apart from its registers.

    ``kind``: "fast", "done" (a standard call ended), "rpc" (suspended, the guest serves it), "restart" (suspended, but
    the guest cannot be told). ``patches`` are what the page at ``ipa`` gets, ``None`` when that is not known; ``size``
    the length of the message in it. ``writable``: whether the page can be written, ``None`` when not observed.
    """

    kind: str
    rule: str = ""
    written: dict[int, int] = field(default_factory=dict)
    ipa: int | None = None
    patches: list[tuple[int, bytes]] | None = None
    size: int = 0
    writable: bool | None = None
    why_unknown: str = ""


@dataclass(slots=True)
class Pending:
    """A guest call that has not been answered, on one vCPU. ``phase`` says who acts next."""

    event: GuestCall
    domain: Domain
    function: abi.SmcFunction | None
    base: Mapping[int, PageView]
    """Guest pages as they were when OP-TEE returned."""
    phase: str = "hypervisor"  # "hypervisor" | "optee" | "answer"
    call: Call | None = None
    answer: Answer | None = None
    ret_regs: tuple[int, ...] = ()
    undelivered: tuple[int, ...] = ()
    """What OP-TEE returned with a request that could not be handed to the guest."""
    activity: int = 0
    overlapped: bool = False
    tainted: str = ""
    ignored: bool = False
    fading: frozenset[int] = frozenset()
    """Shadow pages given up since OP-TEE returned: they may be reused elsewhere, and must not show here."""


@dataclass(slots=True)
class State:
    """Everything the reference knows, and the tally of what it decided."""

    limits: Limits = field(default_factory=Limits)
    deviations: Mapping[str, Deviation] = field(default_factory=lambda: DEVIATIONS)
    tally: Tally = field(default_factory=Tally)
    threads: int | None = None
    mid_stream: str = ""
    domains: dict[int, Domain] = field(default_factory=dict)
    pending: dict[tuple[int | None, int], Pending] = field(default_factory=dict)
    hypervisor_calls: dict[tuple[int | None, int], tuple[int, int, int]] = field(default_factory=dict)
    shadow_pages: dict[int, int] = field(default_factory=dict)
    out: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.threads is None:
            self.threads = self.limits.threads

    def domain(self, domid: int) -> Domain:
        """The domain, made known if it is new."""
        domain = self.domains.get(domid)
        if domain is None:
            domain = self.domains[domid] = Domain(domid, partial=self.mid_stream)
        return domain

    def snapshot(self) -> dict[int, dict[str, object]]:
        """All domains in plain data."""
        return {domid: domain.snapshot() for domid, domain in self.domains.items()}

    # Deciding

    def ok(self, rule: str) -> None:
        """Count one pass."""
        self.tally.passes[rule] += 1

    def unchecked(self, rule: str, reason: str, event: Event) -> None:
        """Count one check that could not be made; the first per rule and reason is handed out as a verdict.

        ``reason`` holds no address and no number: a tally has one entry for each, and must not grow with the trace.
        """
        key = (rule, reason)
        self.tally.not_checked[key] += 1
        if self.tally.not_checked[key] == 1:
            self.out.append(
                Verdict(
                    rule,
                    Outcome.NOT_CHECKED,
                    event.seq,
                    getattr(event, "domid", None),
                    getattr(event, "vcpu", None),
                    reason=reason,
                )
            )

    def fail(
        self,
        rule: str,
        event: Event,
        reason: str,
        *differences: Difference,
        deviation: str | None = None,
        cause: GuestCall | None = None,
    ) -> None:
        """Record a nonconformance; ``deviation`` is the listed one whose condition holds here, if any."""
        domid = getattr(event, "domid", None)
        domain = self.domains.get(domid) if domid is not None else None
        known = deviation if deviation is not None and deviation in self.deviations else None
        if known is not None:
            self.tally.deviations[(rule, known)] += 1
        else:
            self.tally.fails[rule] += 1
        self.out.append(
            Verdict(
                rule,
                Outcome.FAIL if known is None else Outcome.DEVIATION,
                event.seq,
                domid,
                getattr(event, "vcpu", None),
                cause.seq if cause is not None else None,
                differences,
                reason,
                known,
                domain.in_words() if domain is not None else "",
            )
        )

    def absent(self, deviation: str) -> None:
        """A listed deviation had its condition and did not show."""
        if deviation in self.deviations:
            self.tally.absent[deviation] += 1

    # Shadow pages

    def drop_shadow(self, *pages: int | None) -> None:
        """The hypervisor's pages are free again."""
        for ma in pages:
            if ma is not None:
                self.shadow_pages.pop(ma, None)


def uncertain(pending: Pending) -> str:
    """Why a decision that rests on the domain's state may fairly go either way; empty when it may not."""
    domain = pending.domain
    if domain.partial:
        return domain.partial
    if pending.overlapped:
        return "another vCPU of the domain was in the mediator at the same time"
    return ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Input events of the reference. Every observer (trace, live check, tests) produces these.

An observer sees guests trap into the mediator (:class:`GuestCall`), the mediator enter EL3 (:class:`El3Call`),
OP-TEE answer (:class:`El3Return`) and the mediator answer the guest (:class:`GuestReturn`), and domains come and go.
Nothing here says what is right.

Ground rules for an observer:

- **What was not observed is absent**: ``None`` for a scalar, a missing key for a page. The checker then answers
  "not checked", it never guesses. Do not invent zeros.
- ``domid`` is Xen's own domain id, found without looking at x7 (x7 is one of the things that are checked).
- ``(domid, vcpu)`` names the Xen vCPU, not the processor it happens to run on: Xen may deschedule a vCPU after
  OP-TEE answered and before the guest continues. On one vCPU the order is
  ``GuestCall (El3Call El3Return)* GuestReturn``.
- ``seq`` grows along the one timeline of the trace; events are handed over in that order.
- Addresses: IPA is what the guest calls physical, MA what the machine does, MFN is MA >> 12. Keys of page mappings are
  byte addresses of pages (multiples of 4096), keys of ``mem`` are IPAs, keys of ``shadow`` are MAs.
- Registers are tuples starting at x0, at least x0..x7 at EL3 and on guest calls; x8..x17 may follow where observed.
- ``books`` are the hypervisor's own, read at the event: those of the domain that the event is about (for VM_DESTROYED
  the one that ends).
- Events and pages are never changed once they are made. Those that come with every record are not frozen dataclasses
  for one reason: these take five times as long to make, and a check makes millions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from mediator_ref.books import Books, Partition

PAGE_SIZE = 4096

Registers: TypeAlias = tuple[int, ...]
"""Register values as unsigned 64-bit integers, x0 first."""


class PageKind(Enum):
    """The p2m type of a guest page as far as the mediator distinguishes it."""

    RAM_RW = "ram_rw"
    RAM_RO = "ram_ro"
    OTHER = "other"  # mapped, but not the domain's own RAM: grant, foreign, MMIO
    UNMAPPED = "unmapped"


@dataclass(slots=True)
class PageView:
    """One guest page as it was at the moment of the event that carries it.

    ``data`` are its 4096 bytes, ``mfn`` the frame stage 2 maps it to, ``kind`` its type; each ``None`` when not
    observed (an unmapped page has ``kind=UNMAPPED`` and neither frame nor data).
    """

    kind: PageKind | None = None
    mfn: int | None = None
    data: bytes | None = None


@dataclass(slots=True)
class Access:
    """The hypervisor loaded, or stored, ``length`` bytes of a guest's page from machine address ``ma`` on; ``pc`` is
    the instruction."""

    ma: int
    length: int
    store: bool
    pc: int = 0


@dataclass(slots=True)
class GuestCall:
    """A guest executed SMC or HVC with an SMCCC immediate and trapped.

    ``mem`` holds the guest pages the mediator may read for this call, as they were at the trap: the argument page for
    CALL_WITH_ARG; the RPC page of the suspended call for CALL_RETURN_FROM_RPC (or the page offered in x1:x2 when it
    answers an ALLOC); for every non-contiguous parameter its list pages (with data) and every page those lists name
    (kind and frame; data not needed).
    """

    seq: int
    vcpu: int
    domid: int
    regs: Registers
    mem: Mapping[int, PageView] = field(default_factory=dict)
    conduit: str = "hvc"  # "smc" or "hvc"
    imm: int = 0
    aarch32: bool = False
    books: Books | None = None


@dataclass(slots=True)
class El3Call:
    """The hypervisor executed SMC. ``domid`` is Xen's current domain, ``None`` when that is not known or is idle.

    ``shadow`` holds Xen's pages OP-TEE is given, as they were at the SMC: the shadow argument, every page of every
    shadow page list it names, and the RPC shadow of the resumed call. ``mem`` may repeat guest pages as they were at
    this moment; it serves to tell a guest that writes while the mediator copies from a mediator that copies wrongly.
    Calls for the hypervisor's own sake (probe, VM_CREATED, VM_DESTROYED) come without a GuestCall before them.
    ``accesses``: what it read and wrote of the guest's pages since the call's event before, in order; ``instructions``:
    how many it executed since then.
    """

    seq: int
    vcpu: int
    domid: int | None
    regs: Registers
    shadow: Mapping[int, bytes] = field(default_factory=dict)
    mem: Mapping[int, PageView] = field(default_factory=dict)
    accesses: Sequence[Access] | None = None
    instructions: int | None = None
    books: Books | None = None


@dataclass(slots=True)
class El3Return:
    """EL3 returned to the hypervisor. ``shadow`` as OP-TEE left it: the shadow argument, and the RPC shadow on a CMD.

    ``mem``, where given, holds the argument page and the RPC page at this moment (kind and bytes): what the mediator
    finds when it copies results back. Without it the checker falls back on the page as it was at the trap.
    ``partition``: OP-TEE's own list of shared memory, for the client that it was called for.
    """

    seq: int
    vcpu: int
    domid: int | None
    regs: Registers
    shadow: Mapping[int, bytes] = field(default_factory=dict)
    mem: Mapping[int, PageView] = field(default_factory=dict)
    partition: Partition | None = None


@dataclass(slots=True)
class GuestReturn:
    """The guest continues after its call. ``mem``: argument page and RPC page as the guest finds them.

    ``undef`` is true when the hypervisor injected an undefined-instruction exception instead of an answer.
    ``accesses``, ``instructions``: as in :class:`El3Call`.
    """

    seq: int
    vcpu: int
    domid: int
    regs: Registers
    mem: Mapping[int, PageView] = field(default_factory=dict)
    undef: bool = False
    accesses: Sequence[Access] | None = None
    instructions: int | None = None
    books: Books | None = None


@dataclass(frozen=True, slots=True)
class DomainCreated:
    """A domain exists from here on (its VM_CREATED may come before or after this event).

    ``tee`` says whether it was configured with a mediator; ``None`` when not known.
    """

    seq: int
    domid: int
    tee: bool | None = None


@dataclass(frozen=True, slots=True)
class DomainDying:
    """The hypervisor begins to take a domain down: its vCPUs are stopped, and what is held for it goes."""

    seq: int
    domid: int
    books: Books | None = None


@dataclass(frozen=True, slots=True)
class DomainDestroyed:
    """The last trace of a domain is gone (after relinquish, so after its VM_DESTROYED).

    ``leaked_pages``: pages of Xen's heap not returned compared with before the domain was created, ``None`` when not
    measured. ``zombie``: true when the domain could not be freed because pages of it are still referenced.
    """

    seq: int
    domid: int
    leaked_pages: int | None = None
    zombie: bool | None = None
    books: Books | None = None


@dataclass(frozen=True, slots=True)
class FrameReleased:
    """Xen took a frame from a domain and may hand it to another domain (balloon, exchange, destruction)."""

    seq: int
    domid: int
    mfn: int


@dataclass(frozen=True, slots=True)
class Start:
    """First event of a trace. ``mid_stream``: domains, calls and buffers may exist that were never seen to come."""

    seq: int
    mid_stream: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Events are missing here; ``reason`` is one phrase. What the reference knew of running calls is void."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The trace ends; ``board_alive`` says whether Xen was still running, ``None`` when not known."""

    seq: int
    board_alive: bool | None = None


Event: TypeAlias = (
    GuestCall
    | El3Call
    | El3Return
    | GuestReturn
    | DomainCreated
    | DomainDying
    | DomainDestroyed
    | FrameReleased
    | Start
    | Gap
    | End
)

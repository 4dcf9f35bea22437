# SPDX-License-Identifier: GPL-2.0-or-later
"""The simulator put together: guests call, the mediator and OP-TEE answer, and everything is observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.books import Books, Heap, HeldBuffer, HeldCall, HeldRpc, Lists, frame_word
from mediator_ref.events import (
    PAGE_SIZE,
    DomainCreated,
    DomainDestroyed,
    DomainDying,
    El3Call,
    El3Return,
    Event,
    FrameReleased,
    GuestCall,
    GuestReturn,
    Start,
)
from mediator_ref.limits import Limits
from mediator_ref.simulator.mediator import DomainContext, Handler, Mediator, StdCall
from mediator_ref.simulator.optee import Optee
from mediator_ref.simulator.world import World

ARG, RPC, LIST, DATA = 0x4000_0000, 0x4001_0000, 0x4002_0000, 0x4003_0000
"""Where simulated guests keep argument pages, RPC pages, page lists and data."""
_MEMORY, _OBJECT = 1 << 16, 64
"""Pages of the machine, and bytes of an entry of a list."""

EFFORT = 1000
"""Instructions that the mediator seems to take at once."""


@dataclass
class InFlight:
    """A vCPU inside the hypervisor or OP-TEE."""

    handler: Handler
    regs: list[int]
    el3: tuple[int, ...] | None = None


@dataclass
class Board:
    """Hypervisor, OP-TEE and domains with one timeline of events.

    ``call`` runs a guest's call to its end; ``trap``, ``enter`` and ``leave`` run its parts, for interleavings.
    """

    defects: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    threads: int = 2
    world: World = field(default_factory=World)
    events: list[Event] = field(default_factory=list)
    inflight: dict[tuple[int, int], InFlight] = field(default_factory=dict)
    seq: int = 0
    hypercalls: int = 0

    def __post_init__(self) -> None:
        self.mediator = Mediator(self.world, self.threads, self.limits, self.defects)
        self.optee = Optee(self.world, self.threads)
        self._emit(Start(self._next()))
        for fid in (abi.CALLS_UID, abi.GET_THREAD_COUNT, abi.VM_DESTROYED):
            self.hypervisor_smc((fid, 0, 0, 0, 0, 0, 0, 0), domid=None)

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def _emit(self, event: Event) -> None:
        self.events.append(event)

    def hypervisor_smc(self, regs: tuple[int, ...], domid: int | None = 0) -> tuple[int, ...]:
        """A call of the hypervisor's own."""
        books = self.books(regs[1] - 1) if regs[0] == abi.VM_DESTROYED and regs[1] else None
        self._emit(El3Call(self._next(), 0, domid, regs, books=books))
        answer = self.optee.call(regs)
        self._emit(El3Return(self._next(), 0, domid, answer))
        return answer

    # Domains

    def create(self, domid: int) -> bool:
        """Create a domain with a few pages; false when OP-TEE refuses it."""
        answer = self.hypervisor_smc((abi.VM_CREATED, domid + 1, 0, 0, 0, 0, 0, 0))
        if answer[0]:
            return False
        self.mediator.domains[domid] = DomainContext(domid)
        self._emit(DomainCreated(self._next(), domid, True))
        for base in (ARG, RPC, LIST, DATA):
            for page in range(4):
                self.populate(domid, base + page * PAGE_SIZE)
        return True

    def populate(self, domid: int, ipa: int) -> None:
        """Give a domain a page, by a hypercall of the toolstack's or its own."""
        self.hypercalls += 1
        self.world.map(domid, ipa)

    def destroy(self, domid: int) -> None:
        """Destroy a domain, whatever it was doing; only its vCPUs have to come out of OP-TEE first."""
        for owner, vcpu in list(self.inflight):
            while owner == domid and (owner, vcpu) in self.inflight:
                self.leave(owner, vcpu)
        self._emit(DomainDying(self._next(), domid, self.books(domid)))
        heap = len(self.world.heap)
        own = self.held(domid)
        self.mediator.relinquish(domid)
        self.hypervisor_smc((abi.VM_DESTROYED, domid + 1, 0, 0, 0, 0, 0, 0))
        del self.mediator.domains[domid]
        self.hypercalls += 1
        frames = [mfn for mfn, _ in self.world.p2m.pop(domid).values()]
        zombie = any(self.world.refs[mfn] for mfn in frames)
        for mfn in frames:
            self.world.owner.pop(mfn, None)
        leaked = own - (heap - len(self.world.heap))
        self._emit(DomainDestroyed(self._next(), domid, leaked, zombie, Books(domid, context=False)))

    def held(self, domid: int) -> int:
        """Heap pages held for a domain."""
        ctx = self.mediator.domains[domid]
        return len(ctx.calls) + len(ctx.rpcs) + sum(len(buf.lists) for buf in ctx.bufs.values())

    def balloon(self, domid: int, ipa: int) -> None:
        """The guest gives a page back."""
        mfn = self.world.unmap(domid, ipa)
        self.hypercalls += 1
        if mfn is not None:
            self._emit(FrameReleased(self._next(), domid, mfn))

    # The mediator's own books

    def books(self, domid: int) -> Books | None:
        """What an observer reads of a domain's lists, of all pages of the domain, and of free memory."""
        ctx = self.mediator.domains.get(domid)
        if ctx is None:
            return None
        lists = Lists(
            tuple(_held_call(call, n) for n, call in enumerate(ctx.calls)),
            tuple(
                HeldRpc(cookie, rpc.ipa // PAGE_SIZE, self._frame(rpc.frame, domid), _shadow(rpc.shadow))
                for cookie, rpc in ctx.rpcs.items()
            ),
            tuple(
                HeldBuffer(
                    buf.cookie,
                    max(len(buf.lists) - 1, 0).bit_length(),
                    _shadow(buf.lists[0]) if buf.lists else 0,
                    tuple(self._frame(mfn, domid) for mfn in buf.frames),
                )
                for buf in ctx.bufs.values()
            ),
            len(ctx.calls),
            len(ctx.bufs),
            ctx.pages,
        )
        owned = [mfn for mfn, owner in self.world.owner.items() if owner == domid]
        frames = tuple(self._frame(mfn, domid) for mfn in owned)
        free = _MEMORY - len(self.world.heap) - len(self.world.owner)
        objects = sum(len(c.calls) + len(c.rpcs) + len(c.bufs) for c in self.mediator.domains.values())
        heap = Heap(free, 0, _OBJECT * objects, len(owned))
        return Books(domid, True, lists, frames, heap, self.hypercalls)

    def _frame(self, mfn: int, domid: int) -> int:
        mapped = any(mfn == frame for frame, _ in self.world.p2m.get(domid, {}).values())
        own = self.world.owner.get(mfn) == domid
        return frame_word(mfn, self.world.refs[mfn] + mapped, allocated=mapped, own=own)

    # Calls

    def trap(self, domid: int, vcpu: int, regs: Sequence[int]) -> None:
        """The guest traps; the mediator runs up to EL3 or to its answer."""
        full = [*regs, *([0] * (8 - len(regs))), *range(0x108, 0x112)]
        view, books = self.world.view(domid), self.books(domid)
        self._emit(GuestCall(self._next(), vcpu, domid, tuple(full), view, books=books))
        flight = self.inflight[(domid, vcpu)] = InFlight(self.mediator.handle(domid, full), full)
        self._advance(domid, vcpu, flight, None)

    def leave(self, domid: int, vcpu: int) -> None:
        """OP-TEE runs for a vCPU and answers; the mediator runs on."""
        flight = self.inflight[(domid, vcpu)]
        assert flight.el3 is not None
        answer = self.optee.call(flight.el3)
        shadow, partition = self.world.shadow(), self.optee.partition(flight.el3[7])
        self._emit(El3Return(self._next(), vcpu, domid, answer, shadow, self.world.view(domid), partition))
        self._advance(domid, vcpu, flight, answer)

    def _advance(self, domid: int, vcpu: int, flight: InFlight, answer: tuple[int, ...] | None) -> None:
        try:
            flight.el3 = next(flight.handler) if answer is None else flight.handler.send(answer)
        except StopIteration:
            del self.inflight[(domid, vcpu)]
            regs, view, books = tuple(flight.regs), self.world.view(domid), self.books(domid)
            touched = self.world.touched()
            self._emit(
                GuestReturn(self._next(), vcpu, domid, regs, view, accesses=touched, instructions=EFFORT, books=books)
            )
            return
        shadow, view, books = self.world.shadow(), self.world.view(domid), self.books(domid)
        touched = self.world.touched()
        self._emit(El3Call(self._next(), vcpu, domid, flight.el3, shadow, view, touched, EFFORT, books))

    def call(self, domid: int, vcpu: int, regs: Sequence[int]) -> tuple[int, ...]:
        """One guest call from trap to answer; the registers the guest finds."""
        self.trap(domid, vcpu, regs)
        while (domid, vcpu) in self.inflight:
            self.leave(domid, vcpu)
        last = self.events[-1]
        assert isinstance(last, GuestReturn)
        return last.regs

    # What guests do

    def message(
        self, domid: int, page: bytes, *, ipa: int = ARG, vcpu: int = 0, plan: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Write a message and call CALL_WITH_ARG with it."""
        self.world.write(domid, ipa, page)
        self.optee.plan = plan
        return self.call(domid, vcpu, (abi.CALL_WITH_ARG, *abi.split(ipa)))

    def resume(
        self,
        domid: int,
        regs: Sequence[int],
        *,
        vcpu: int = 0,
        x1: int | None = None,
        x2: int | None = None,
        x4: int = 0,
        x5: int = 0,
    ) -> tuple[int, ...]:
        """Return from the RPC a call was suspended with (``regs`` as it was handed to the guest)."""
        given = (regs[1] if x1 is None else x1, regs[2] if x2 is None else x2)
        return self.call(domid, vcpu, (abi.RETURN_FROM_RPC, *given, regs[3], x4, x5))

    def serve_alloc(self, domid: int, regs: Sequence[int], *, ipa: int = RPC, cookie: int = 0xC0) -> tuple[int, ...]:
        """Answer an RPC ALLOC with a page."""
        high, low = abi.split(ipa)
        x4, x5 = abi.split(cookie)
        return self.resume(domid, regs, x1=high, x2=low, x4=x4, x5=x5)

    def buffer(
        self,
        domid: int,
        pages: int = 1,
        *,
        offset: int = 0,
        size: int | None = None,
        cookie: int = 0xB0,
        attr: int = abi.Attr.TMEM_INPUT,
        ipa: int = LIST,
        bad: int | None = None,
    ) -> abi.Param:
        """Build a page list over the domain's data pages and a parameter for it; entry ``bad`` names no page."""
        entries = [DATA + i % 4 * PAGE_SIZE for i in range(pages)]
        if bad is not None:
            entries[bad] = 0x7FFF_F000
        for start in range(0, max(pages, 1), abi.LIST_ENTRIES):
            index = start // abi.LIST_ENTRIES
            more = start + abi.LIST_ENTRIES < pages
            self.world.write(
                domid,
                ipa + index * PAGE_SIZE,
                abi.encode_list_page(
                    entries[start : start + abi.LIST_ENTRIES], ipa + (index + 1) * PAGE_SIZE if more else 0
                ),
            )
        length = pages * PAGE_SIZE - offset if size is None else size
        return abi.Param(attr | abi.ATTR_NONCONTIG, ipa | offset, length, cookie)

    def reply(self, domid: int, *params: abi.Param, ipa: int = RPC, cmd: int | None = None, ret: int = 0) -> None:
        """Write a reply to the request in an RPC page."""
        asked = abi.decode_arg(self.world.read(domid, ipa))
        self.world.write(domid, ipa, abi.message(asked.cmd if cmd is None else cmd, *params, ret=ret))


def _shadow(ma: int) -> int:
    return frame_word(ma // PAGE_SIZE, 0, allocated=False, own=False)


def _held_call(call: StdCall, address: int) -> HeldCall:
    return HeldCall(_shadow(call.shadow), call.arg_ipa, call.thread & abi.U32, call.in_flight, address)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests doing things on the simulated board while the reference watches: what Hypothesis and random walks share.

Invariants: a mediator as it should be gets no verdict but passes; what the reference thinks is held is what is held;
a step of one domain changes nothing of another; nothing is left of a dead domain; OP-TEE never works on a page that
is not pinned RAM of its guest. With listed defects on, every nonconformance is a listed deviation.
"""

from __future__ import annotations

from mediator_ref import DEVIATIONS, Limits, Outcome, State, Verdict, abi, step
from mediator_ref.events import DomainDestroyed, PageKind
from mediator_ref.rules import ABOUT_BOOKS
from mediator_ref.simulator.board import ARG, DATA, LIST, RPC, Board

LIMITS = Limits(buffers=3, buffer_pages=6, total_pages=12)
"""Small, so that guests reach them."""


class Driver:
    """One board under a stream of guest actions, watched by the reference."""

    def __init__(self, defects: frozenset[str] = frozenset()) -> None:
        self.defects = defects
        self.board = Board(defects=self.defects, limits=LIMITS, threads=2)
        listed = {name: d for name, d in DEVIATIONS.items() if not defects or name in defects}
        self.state = State(limits=LIMITS, deviations=listed)
        self.seen = 0
        self.suspended: dict[int, list[tuple[int, ...]]] = {}
        self.verdicts: list[Verdict] = []
        for domid in (0, 1):
            self.board.create(domid)
        self.watch()

    def watch(self) -> None:
        """Hand new events to the reference."""
        for event in self.board.events[self.seen :]:
            touched = getattr(event, "domid", None)
            before = {d: s for d, s in self.state.snapshot().items() if d != touched}
            found = step(self.state, event)
            self.verdicts += found
            after = self.state.snapshot()
            if touched is not None and getattr(event, "regs", (0,))[0] not in (
                abi.VM_CREATED,
                abi.VM_DESTROYED,
            ):
                assert all(after[d] == s for d, s in before.items()), "a step of one domain changed another"
            if isinstance(event, DomainDestroyed):
                assert event.domid not in after
                assert event.domid not in self.state.shadow_pages.values()
            if hasattr(event, "undef") and abi.is_rpc(event.regs[0]) and event.regs[0] >> 32 == 0:
                self.suspended.setdefault(event.domid, []).append(event.regs)
        self.seen = len(self.board.events)

    def ready(self, domid: int, vcpu: int) -> bool:
        """Tell whether a vCPU can call; one that is in OP-TEE comes out first."""
        if domid not in self.board.mediator.domains:
            self.board.create(domid)
        while (domid, vcpu) in self.board.inflight:
            self.board.leave(domid, vcpu)
        self.watch()
        return domid in self.board.mediator.domains

    # Domains

    def create(self, domid: int) -> None:
        if domid not in self.board.mediator.domains:
            self.board.create(domid)
            self.watch()

    def destroy(self, domid: int) -> None:
        if domid in self.board.mediator.domains:
            self.board.destroy(domid)
            self.suspended.pop(domid, None)
            self.watch()
            last = self.board.events[-1]
            if not self.defects:
                assert isinstance(last, DomainDestroyed)
                assert (last.leaked_pages, last.zombie) == (0, False)

    # Calls

    def call_function(self, domid: int, vcpu: int, fid: int, words: list[int]) -> None:
        if self.ready(domid, vcpu):
            self.board.trap(domid, vcpu, [fid, *words])
            self.watch()

    def call_gibberish(self, domid: int, vcpu: int, words: list[int]) -> None:
        if self.ready(domid, vcpu) and abi.owner_of(abi.fid_of(words[0])) in abi.TRUSTED_OWNERS:
            self.board.trap(domid, vcpu, words)
            self.watch()

    def standard_call(
        self,
        domid: int,
        vcpu: int,
        cmd: int,
        plan: list[str],
        params: list[tuple[int, int, int, int, int | None]],
        bad: int | None,
        count: int | None,
        ret: int,
    ) -> None:
        if not self.ready(domid, vcpu):
            return
        built = []
        for index, (attr, pages, offset, cookie, size) in enumerate(params):
            p = self.board.buffer(
                domid,
                pages,
                offset=offset,
                size=size,
                cookie=cookie,
                ipa=LIST + index * 4096,
                bad=bad if bad is not None and bad < pages else None,
            )
            null = attr & 0xFF in abi.TMEM_TYPES and pages == 0
            built.append(abi.Param(attr, 0 if null else p.a, p.b & abi.U64, p.c))
        page = abi.encode_arg(
            abi.Arg(
                cmd=cmd,
                session=3,
                ret=ret,
                num_params=len(built) if count is None else count,
                params=tuple(built),
            )
        )
        ipa = ARG + vcpu * 4096
        self.board.world.write(domid, ipa, page)
        self.board.optee.plan = plan
        self.board.trap(domid, vcpu, (abi.CALL_WITH_ARG, *abi.split(ipa)))
        self.watch()

    def optee_runs(self, domid: int, vcpu: int) -> None:
        if (domid, vcpu) in self.board.inflight:
            self.board.leave(domid, vcpu)
            self.watch()

    def serve(self, pick: int, shm: int, times: int) -> None:
        """A guest that behaves answers a few requests."""
        for _ in range(times):
            self.resume_with(pick, 0, 0xC0 + pick % 4, "good", RPC + pick % 4 * 4096, shm)

    def resume(self, pick: int, vcpu: int, cookie: int, kind: str, rpc_page: int, shm: int) -> None:
        """A guest returns from an RPC in one of many ways."""
        self.resume_with(pick, vcpu, cookie, kind, rpc_page, shm)

    def resume_with(self, pick: int, vcpu: int, cookie: int, kind: str, rpc_page: int, shm: int) -> None:
        waiters = sorted(domid for domid, calls in self.suspended.items() if calls)
        if not waiters:
            return
        domid = waiters[pick % len(waiters)]
        if not self.ready(domid, vcpu):
            return
        waiting = self.suspended.get(domid, [])
        if not waiting:
            return
        regs = waiting[-1 - pick % len(waiting)]
        if kind != "error":  # an error leaves the call to be resumed once more, which then is refused
            waiting.remove(regs)
        x1, x2, x4, x5 = regs[1], regs[2], 0, 0
        if regs[0] & 0xFFFF == abi.RpcFunc.ALLOC:
            (x1, x2), (x4, x5) = abi.split(rpc_page), abi.split(cookie)
        elif regs[0] & 0xFFFF == abi.RpcFunc.CMD:
            self.answer(domid, abi.pair(x1, x2), kind, shm)
            if kind == "cleared":
                x1 = x2 = 0
        self.board.trap(domid, vcpu, (abi.RETURN_FROM_RPC, x1, x2, regs[3], x4, x5))
        self.watch()

    def answer(self, domid: int, cookie: int, kind: str, shm: int) -> None:
        """The guest writes its reply to a request."""
        rpc = self.board.mediator.domains[domid].rpcs.get(cookie)
        if rpc is None:
            return
        world = self.board.world
        asked = abi.decode_arg(world.read(domid, rpc.ipa))
        reply = [abi.Param(abi.Attr.VALUE_OUTPUT, 1, 2, 3)]
        cmd = asked.cmd
        if cmd == abi.RpcCmd.SHM_ALLOC or kind == "renamed":
            p = self.board.buffer(
                domid,
                2,
                attr=abi.Attr.TMEM_OUTPUT,
                cookie=shm,
                ipa=LIST + 3 * 4096,
                bad=1 if kind == "bad" else None,
            )
            frame, _ = world.lookup(domid, DATA)
            if kind == "plain":
                p = abi.Param(abi.Attr.TMEM_OUTPUT, (frame or 1) << 12, 4096, shm)
            elif kind == "null":
                p = abi.Param(p.attr, 0, 0, shm)
            reply = [p]
        if kind == "renamed":
            cmd = abi.RpcCmd.GET_TIME if cmd == abi.RpcCmd.SHM_ALLOC else abi.RpcCmd.SHM_ALLOC
        page = abi.message(cmd, *reply, ret=abi.Tee.GENERIC if kind == "error" else 0)
        if kind == "huge":
            page = abi.encode_arg(abi.Arg(cmd=cmd, num_params=200))
        world.write(domid, rpc.ipa, page)

    # Memory

    def change_page(self, domid: int, ipa: int, kind: PageKind) -> None:
        pages = self.board.world.p2m.get(domid, {})
        if domid in self.board.mediator.domains and kind is PageKind.RAM_RW:
            for page in (ARG, ARG + 4096, RPC, LIST, LIST + 4096, DATA, DATA + 4096, ipa):
                if page in pages:
                    self.board.world.protect(domid, page, kind)
                else:
                    self.board.populate(domid, page)
        elif kind is PageKind.UNMAPPED and ipa in pages:
            self.board.balloon(domid, ipa)
        elif ipa in pages:
            self.board.world.protect(domid, ipa, kind)
        elif domid in self.board.mediator.domains:
            self.board.populate(domid, ipa)
        self.watch()

    # Invariants

    def judged(self) -> None:
        bad = [v for v in self.verdicts if v.outcome is Outcome.FAIL]
        if not self.defects:
            bad = [v for v in self.verdicts if v.outcome is not Outcome.NOT_CHECKED or v.rule not in ABOUT_BOOKS]
        assert not bad, "\n".join(map(str, bad))

    def accounting_agrees(self) -> None:
        if self.defects:
            return
        assert not self.board.world.violations, self.board.world.violations
        for domid, ctx in self.board.mediator.domains.items():
            known = self.state.domains[domid]
            assert set(known.buffers) == set(ctx.bufs)
            assert set(known.rpcs) == set(ctx.rpcs)
            assert len(known.calls) + len(known.running) == len(ctx.calls)
            assert sum(b.pages for b in known.buffers.values()) == ctx.pages
            assert known.pinned() == {f for b in ctx.bufs.values() for f in b.frames} | {
                r.frame for r in ctx.rpcs.values()
            }

    def finish(self) -> None:
        """All domains die; nothing may be left of them."""
        for domid in list(self.board.mediator.domains):
            self.board.destroy(domid)
        self.watch()
        self.judged()
        if not self.defects:
            assert not self.board.world.heap
            assert not +self.board.world.refs
            assert not self.state.shadow_pages

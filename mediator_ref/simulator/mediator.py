# SPDX-License-Identifier: GPL-2.0-or-later
"""A mediator written after the implementation, call by call, with the listed defects on request.

It shares the numbers of the ABI with the reference, and none of its decisions: those are what it has to contradict.

Handlers are generators: they yield registers for EL3, are sent what EL3 answers, and change the guest's registers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.events import PAGE_SIZE, PageKind
from mediator_ref.limits import Limits
from mediator_ref.simulator.world import World

Regs = list[int]
Handler = Generator[tuple[int, ...], tuple[int, ...], None]
_READABLE = (PageKind.RAM_RW, PageKind.RAM_RO)
_TMEM = range(0x9, 0xC)
_MEMREF_OUTPUT, _VALUE_OUTPUT = (0x6, 0x7, 0xA, 0xB), (0x2, 0x3)
_KNOWN_COMMANDS = range(6)
_UNKNOWN_FUNCTION = (1 << 64) - 1

_PASSED_ON: Mapping[int, int] = {
    0xBF00FF01: 4,  # CALLS_UID
    0xBF00FF03: 2,  # CALLS_REVISION
    0xB2000000: 4,  # CALL_GET_OS_UUID
    0xB2000001: 2,  # CALL_GET_OS_REVISION
    0xB200000B: 1,  # ENABLE_SHM_CACHE
}
"""Fast calls passed to OP-TEE, with the number of registers the guest gets back."""


@dataclass
class ShmBuf:
    """A registered buffer: pinned frames and the shadow of the list that names them."""

    cookie: int
    rpc: bool = False
    frames: list[int] = field(default_factory=list)
    lists: list[int] = field(default_factory=list)


@dataclass
class RpcPage:
    """A page for requests and its shadow."""

    ipa: int
    frame: int
    shadow: int


@dataclass
class StdCall:
    """A standard call's context."""

    shadow: int
    arg_ipa: int
    thread: int = -1
    op: int = 0
    params: tuple[int, int] = (0, 0)
    cmd: int = 0
    buffer_type: int = 0
    data_cookie: int = 0
    in_flight: bool = True
    asked: bool = False
    rejected: int | None = None
    own: list[int] = field(default_factory=list)
    """Cookies this call translated."""


@dataclass
class DomainContext:
    """Everything held for one domain."""

    domid: int
    calls: list[StdCall] = field(default_factory=list)
    rpcs: dict[int, RpcPage] = field(default_factory=dict)
    bufs: dict[int, ShmBuf] = field(default_factory=dict)
    pages: int = 0


@dataclass
class Mediator:
    """All domains of a hypervisor."""

    world: World
    threads: int = 2
    limits: Limits = field(default_factory=Limits)
    defects: frozenset[str] = frozenset()
    domains: dict[int, DomainContext] = field(default_factory=dict)

    def handle(self, domid: int, regs: Regs) -> Handler:
        """One guest call; ``regs`` is changed to what the guest finds."""
        ctx = self.domains.get(domid)
        fid = regs[0] & 0xFFFFFFFF
        if ctx is None:
            regs[0] = _UNKNOWN_FUNCTION
        elif fid == 0xBF00FF00:  # CALLS_COUNT
            regs[0] = 11
        elif fid == 0xB2000007:  # GET_SHM_CONFIG
            regs[0] = abi.SmcReturn.ENOTAVAIL
        elif fid == abi.CALL_WITH_ARG:
            yield from self._std_call(ctx, regs)
        elif fid == abi.RETURN_FROM_RPC:
            yield from self._rpc(ctx, regs)
        elif fid == abi.EXCHANGE_CAPABILITIES:
            yield from self._exchange_capabilities(ctx, regs)
        elif fid == abi.DISABLE_SHM_CACHE:
            yield from self._disable_shm_cache(ctx, regs)
        elif fid in _PASSED_ON:
            res = yield (fid, 0, 0, 0, 0, 0, 0, ctx.domid + 1)
            regs[: _PASSED_ON[fid]] = res[: _PASSED_ON[fid]]
        else:
            regs[0] = _UNKNOWN_FUNCTION

    def _exchange_capabilities(self, ctx: DomainContext, regs: Regs) -> Handler:
        res = yield (abi.EXCHANGE_CAPABILITIES, regs[1] & 1, 0, 0, 0, 0, 0, ctx.domid + 1)
        regs[0] = res[0]
        if res[0] == 0:
            caps = res[1] & 0b10110
            if caps & 4:
                regs[1] = caps
            else:
                regs[0] = abi.SmcReturn.ENOTAVAIL

    def _disable_shm_cache(self, ctx: DomainContext, regs: Regs) -> Handler:
        res = yield (abi.DISABLE_SHM_CACHE, 0, 0, 0, 0, 0, 0, ctx.domid + 1)
        regs[0] = res[0]
        if res[0] == 0:
            regs[1:3] = res[1:3]
            self._free_rpc(ctx, abi.pair(res[1], res[2]))

    # Standard calls

    def _std_call(self, ctx: DomainContext, regs: Regs) -> Handler:
        if len(ctx.calls) >= self.threads:
            regs[0] = abi.SmcReturn.ETHREAD_LIMIT
            return
        ipa = abi.pair(regs[1], regs[2])
        frame, kind = self.world.lookup(ctx.domid, ipa)
        if ipa & abi.OFFSET_MASK or kind not in _READABLE or frame is None:
            regs[0] = abi.SmcReturn.EBADADDR
            return
        self.world.touch(frame, 0, abi.LIST_PAGE.size)
        page = bytearray(self.world.data[frame])
        arg = abi.decode_arg(bytes(page))
        if arg.num_params > abi.MAX_NUM_PARAMS:
            written = self._write_back(ctx, ipa, bytes(page), abi.Tee.BAD_PARAMETERS, 0)
            if "D8" not in self.defects:
                regs[0] = 0 if written else abi.SmcReturn.EBADADDR
            return
        if arg.cmd not in _KNOWN_COMMANDS:
            regs[0] = abi.SmcReturn.EBADCMD
            return
        if "D16" not in self.defects:
            for index in range(len(arg.params)):
                at = abi.arg_size(index)
                page[at + 2 : at + 8] = bytes((page[at + 2] & 7, 0, 0, 0, 0, 0))
                page[at + 1] &= 3
        call = StdCall(self.world.heap_page(), ipa, cmd=arg.cmd)
        ctx.calls.append(call)
        others = {cookie for other in ctx.calls for cookie in other.own if other is not call}
        # What a reference names is looked at last: the specification has no place for it among the other refusals.
        for index, param in sorted(enumerate(arg.params), key=lambda item: item[1].type in abi.RMEM_TYPES):
            foreign = param.type in abi.RMEM_TYPES and (
                (param.c in others and "D19" not in self.defects)
                or (param.c == 0 and 0 not in ctx.bufs and "D21" not in self.defects)
            )
            if not foreign and (param.type not in _TMEM or not param.a):
                continue
            error, pointer = (abi.Tee.BAD_PARAMETERS, 0) if foreign else self._translate(ctx, param)
            if error:
                if "D5" not in self.defects:
                    for cookie in call.own:
                        self._free_buf(ctx, cookie)
                written = self._write_back(ctx, ipa, bytes(page), error, 0)
                regs[0] = 0 if written or "D7" in self.defects else abi.SmcReturn.EBADADDR
                self._drop(ctx, call)
                return
            call.own.append(param.c)
            page[abi.arg_size(index) + 8 : abi.arg_size(index) + 16] = pointer.to_bytes(8, "little")
        self.world.data[call.shadow >> 12] = bytes(page)
        high, low = abi.split(call.shadow)
        yield from self._enter(ctx, call, regs, (abi.CALL_WITH_ARG, high, low, 1, 0, 0, 0))

    def _translate(self, ctx: DomainContext, param: abi.Param) -> tuple[int, int]:
        """Error (or 0) and shadow pointer of one buffer."""
        if not param.attr & abi.ATTR_NONCONTIG:
            return abi.Tee.BAD_PARAMETERS, 0
        pages = self._pages(param.b, param.a % PAGE_SIZE)
        if not 0 < pages <= self.limits.buffer_pages or len(ctx.bufs) >= self.limits.buffers:
            return abi.Tee.OUT_OF_MEMORY, 0
        if ctx.pages + pages >= self.limits.total_pages:
            return abi.Tee.OUT_OF_MEMORY, 0
        if param.c in ctx.bufs:
            return abi.Tee.BAD_PARAMETERS, 0
        buf = ctx.bufs[param.c] = ShmBuf(param.c)
        ctx.pages += pages
        words: list[int] = []
        list_ipa = param.a & ~abi.OFFSET_MASK
        while len(buf.frames) < pages:
            frame, kind = self.world.lookup(ctx.domid, list_ipa)
            if kind is not PageKind.RAM_RW or frame is None:
                break
            words = list(abi.LIST_PAGE.unpack(self.world.data[frame]))
            self.world.touch(frame, 0, 8 * min(abi.LIST_ENTRIES, pages - len(buf.frames)))
            for word in words[: min(abi.LIST_ENTRIES, pages - len(buf.frames))]:
                data, kind = self.world.lookup(ctx.domid, word)
                if kind is not PageKind.RAM_RW or data is None:
                    break
                self.world.refs[data] += 1
                buf.frames.append(data)
            else:
                if len(buf.frames) < pages:
                    self.world.touch(frame, 8 * abi.LIST_ENTRIES, 8 * abi.LIST_ENTRIES + 8)
                list_ipa = words[abi.LIST_ENTRIES] & ~abi.OFFSET_MASK
                continue
            break
        if len(buf.frames) < pages:
            if "D3" not in self.defects:
                ctx.pages -= pages - len(buf.frames)
            self._free_buf(ctx, param.c)
            return abi.Tee.BAD_PARAMETERS, 0
        buf.lists = [self.world.heap_page() for _ in range(-(-pages // abi.LIST_ENTRIES))]
        for i, ma in enumerate(buf.lists):
            chunk = [frame << 12 for frame in buf.frames[i * abi.LIST_ENTRIES : (i + 1) * abi.LIST_ENTRIES]]
            following = buf.lists[i + 1] if i + 1 < len(buf.lists) else 0
            self.world.data[ma >> 12] = abi.encode_list_page(chunk, following)
        return 0, buf.lists[0] | param.a & abi.OFFSET_MASK

    def _pages(self, size: int, offset: int) -> int:
        if "D9" not in self.defects:
            return (size + offset + PAGE_SIZE - 1) // PAGE_SIZE
        rounded = ((size + offset) % (1 << 64) + PAGE_SIZE - 1) % (1 << 64) & -PAGE_SIZE
        return rounded // PAGE_SIZE % (1 << 32)

    def _free_lists(self, buf: ShmBuf) -> None:
        for ma in buf.lists:
            self.world.heap_free(ma)
        buf.lists = []

    def _free_buf(self, ctx: DomainContext, cookie: int) -> None:
        buf = ctx.bufs.pop(cookie, None)
        if buf is None:
            return
        for frame in buf.frames:
            self.world.refs[frame] -= 1
        ctx.pages -= len(buf.frames)
        self._free_lists(buf)

    def _free_rpc(self, ctx: DomainContext, cookie: int) -> None:
        rpc = ctx.rpcs.pop(cookie, None)
        if rpc is not None:
            self.world.refs[rpc.frame] -= 1
            self.world.heap_free(rpc.shadow)

    def _drop(self, ctx: DomainContext, call: StdCall) -> None:
        ctx.calls.remove(call)
        self.world.heap_free(call.shadow)

    def _write_back(self, ctx: DomainContext, ipa: int, shadow: bytes, ret: int | None, count: int) -> bool:
        frame, kind = self.world.lookup(ctx.domid, ipa)
        if kind is not PageKind.RAM_RW or frame is None:
            return False
        page = bytearray(self.world.data[frame])
        page[20:28] = shadow[20:28] if ret is None else int(ret).to_bytes(4, "little") + b"\2\0\0\0"
        page[8:12] = shadow[8:12]
        self.world.touch(frame, 20, 28, store=True)
        self.world.touch(frame, 8, 12, store=True)
        for i in range(count):
            attr, _, _, _ = abi.PARAM.unpack_from(shadow, abi.arg_size(i))
            at = abi.arg_size(i)
            if attr & 0xFF in _MEMREF_OUTPUT:
                page[at + 16 : at + 24] = shadow[at + 16 : at + 24]
                self.world.touch(frame, at + 16, at + 24, store=True)
            elif attr & 0xFF in _VALUE_OUTPUT:
                page[at + 8 : at + 32] = shadow[at + 8 : at + 32]
                self.world.touch(frame, at + 8, at + 32, store=True)
        self.world.data[frame] = bytes(page)
        return True

    # Entering OP-TEE

    def _enter(self, ctx: DomainContext, call: StdCall, regs: Regs, due: tuple[int, ...]) -> Handler:
        client = ctx.domid + 1
        given = regs[1:4]
        res = yield (*due, client)
        while True:
            if res[0] >> 32 or (res[0] > 7 and res[0] not in (0xFFFF0000, 0xFFFF0002, 0xFFFF0004, 0xFFFF0005)):
                regs[:4] = res[:4] if "D17" in self.defects else (res[0], *given)
                call.op, call.params, call.thread, call.in_flight = 0xFFFF, (res[1], res[2]), res[3] & abi.U32, False
                return
            if not abi.is_rpc(res[0]):
                break
            if self._suspend(ctx, call, regs, res):
                call.in_flight = False
                return
            x0 = res[0] if "D6" in self.defects else abi.RETURN_FROM_RPC
            res = yield (x0, res[1], res[2], res[3], 0, 0, 0, client)
        shadow = self.world.data[call.shadow >> 12]
        arg = abi.decode_arg(shadow)
        written = self._write_back(ctx, call.arg_ipa, shadow, None, len(arg.params))
        regs[0] = res[0] if written or "D7" in self.defects else abi.SmcReturn.EBADADDR
        self._release(ctx, call, res[0], arg, shadow)
        self._drop(ctx, call)

    def _release(self, ctx: DomainContext, call: StdCall, x0: int, arg: abi.Arg, shadow: bytes) -> None:
        first = abi.PARAM.unpack_from(shadow, abi.HEADER_SIZE)[3]
        if "D2" in self.defects:
            if arg.cmd == abi.MsgCmd.REGISTER_SHM:
                if arg.ret:
                    self._free_buf(ctx, first)
                elif first in ctx.bufs:
                    self._free_lists(ctx.bufs[first])
            elif arg.cmd == abi.MsgCmd.UNREGISTER_SHM:
                if not arg.ret:
                    self._free_buf(ctx, first)
            else:
                for q in arg.params:
                    if q.type in _TMEM:
                        self._free_buf(ctx, q.c)
            return
        mine = call.own
        if arg.cmd == abi.MsgCmd.REGISTER_SHM and x0 == 0 and arg.ret == 0:
            for cookie in mine:
                self._free_lists(ctx.bufs[cookie])
            return
        for cookie in mine:
            self._free_buf(ctx, cookie)
        if arg.cmd == abi.MsgCmd.UNREGISTER_SHM and x0 == 0 and arg.ret == 0 and arg.params:
            self._free_buf(ctx, first)

    def _suspend(self, ctx: DomainContext, call: StdCall, regs: Regs, res: tuple[int, ...]) -> bool:
        call.op, call.params, call.thread = res[0] & 0xFFFF, (res[1], res[2]), res[3] & abi.U32
        regs[:4] = res[:4]
        cookie = abi.pair(res[1], res[2])
        if call.op == abi.RpcFunc.FREE:
            if "D13" in self.defects or call.rejected != cookie:
                self._free_rpc(ctx, cookie)
            call.rejected = None
        if call.op != abi.RpcFunc.CMD:
            return True
        rpc = ctx.rpcs.get(cookie)
        if rpc is None:
            return False
        shadow = self.world.data[rpc.shadow >> 12]
        arg = abi.decode_arg(shadow)
        call.cmd = arg.cmd
        frame, kind = self.world.lookup(ctx.domid, rpc.ipa)
        kinds = _READABLE if self.limits.writes_read_only else (PageKind.RAM_RW,)
        readable = kind in kinds and frame is not None
        if arg.num_params > abi.MAX_NUM_PARAMS and "D20" not in self.defects:
            return False
        if readable and frame is not None:
            size = abi.arg_size(len(arg.params))
            self.world.touch(frame, 0, size, store=True)
            self.world.data[frame] = shadow[:size] + self.world.data[frame][size:]
        if arg.cmd == abi.RpcCmd.SHM_ALLOC and arg.params:
            call.buffer_type = arg.params[0].a & abi.U32
        elif arg.cmd == abi.RpcCmd.SHM_FREE and arg.params:
            buf = ctx.bufs.get(arg.params[0].b)
            if buf is not None and (buf.rpc or "D14" in self.defects):
                self._free_buf(ctx, buf.cookie)
            call.data_cookie = 0
        return readable

    # The guest returns from an RPC

    def _rpc(self, ctx: DomainContext, regs: Regs) -> Handler:
        thread = regs[3] & abi.U32
        call = next((c for c in ctx.calls if c.thread == thread and not c.in_flight), None)
        if call is None:
            regs[0] = abi.SmcReturn.ERESUME
            return
        call.in_flight, call.thread = True, -1
        resume, x3 = abi.RETURN_FROM_RPC, regs[3]
        if call.op == abi.RpcFunc.ALLOC:
            shadow = self._offer(ctx, regs)
            call.rejected = None if shadow else abi.pair(regs[4], regs[5])
            high, low = abi.split(shadow)
            yield from self._enter(ctx, call, regs, (resume, high, low, x3, regs[4], regs[5], 0))
        elif call.op == abi.RpcFunc.CMD:
            given = abi.pair(regs[1], regs[2]) if "D4" in self.defects else abi.pair(*call.params)
            rpc = ctx.rpcs.get(given)
            if rpc is None:
                return
            if self._reply(ctx, call, regs, rpc, given):
                yield from self._enter(ctx, call, regs, (resume, 0, 0, x3, 0, 0, 0))
            else:
                call.in_flight = False
        else:
            yield from self._enter(ctx, call, regs, (resume, *call.params, x3, 0, 0, 0))

    def _offer(self, ctx: DomainContext, regs: Regs) -> int:
        ipa, cookie = abi.pair(regs[1], regs[2]), abi.pair(regs[4], regs[5])
        frame, kind = self.world.lookup(ctx.domid, ipa)
        if ipa & abi.OFFSET_MASK or kind is not PageKind.RAM_RW or frame is None or cookie in ctx.rpcs:
            return 0
        self.world.refs[frame] += 1
        rpc = ctx.rpcs[cookie] = RpcPage(ipa, frame, self.world.heap_page())
        return rpc.shadow

    def _reply(self, ctx: DomainContext, call: StdCall, regs: Regs, rpc: RpcPage, cookie: int) -> bool:
        """Copy the reply in; false when the guest is asked to free its buffer first."""
        shadow = bytearray(self.world.data[rpc.shadow >> 12])
        frame, kind = self.world.lookup(ctx.domid, rpc.ipa)
        page = self.world.data[frame] if kind in _READABLE and frame is not None else None
        if frame is not None and page is not None:
            self.world.touch(frame, 0, abi.HEADER_SIZE)
        count = abi.U32_AT.unpack_from(page, 28)[0] if page is not None else 0
        if page is None or count > abi.MAX_NUM_PARAMS:
            if page is not None:
                shadow[:32] = page[:32]
            call.asked = call.asked and "D15" in self.defects
            self._set(rpc, shadow, ret=abi.Tee.GENERIC)
            return True
        size = abi.arg_size(count)
        assert frame is not None
        self.world.touch(frame, 0 if "D18" in self.defects else abi.HEADER_SIZE, size)
        shadow[:size] = page[:size]
        arg = abi.decode_arg(bytes(shadow))
        if call.asked:
            call.asked = False
            self._set(rpc, shadow, ret=abi.Tee.GENERIC, num_params=0)
            return True
        asked = arg.cmd if "D11" in self.defects else call.cmd
        if asked == abi.RpcCmd.SHM_ALLOC and arg.ret == 0 and count == 1:
            param = arg.params[0]
            if param.attr == abi.Attr.TMEM_OUTPUT and param.a and "D1" not in self.defects:
                self._set(rpc, shadow, ret=abi.Tee.GENERIC)
                return True
            if param.attr == abi.RPC_ALLOC_ATTR and param.a:
                return self._share(ctx, call, regs, rpc, cookie, shadow, param)
        self.world.data[rpc.shadow >> 12] = bytes(shadow)
        return True

    def _share(
        self,
        ctx: DomainContext,
        call: StdCall,
        regs: Regs,
        rpc: RpcPage,
        cookie: int,
        shadow: bytearray,
        param: abi.Param,
    ) -> bool:
        if call.data_cookie in ctx.bufs:
            self._free_lists(ctx.bufs[call.data_cookie])
        error, pointer = self._translate(ctx, param)
        if not error:
            call.data_cookie = param.c
            ctx.bufs[param.c].rpc = True
            shadow[40:48] = pointer.to_bytes(8, "little")
            self.world.data[rpc.shadow >> 12] = bytes(shadow)
            return True
        call.data_cookie = 0
        shadow[32:56] = abi.PARAM.pack(abi.Attr.VALUE_INPUT, call.buffer_type, param.c, 0)[:24]
        self._set(rpc, shadow, cmd=abi.RpcCmd.SHM_FREE, ret=abi.Tee.GENERIC, num_params=1)
        frame, _ = self.world.lookup(ctx.domid, rpc.ipa)
        assert frame is not None
        self.world.touch(frame, 0, 64, store=True)
        self.world.data[frame] = bytes(shadow[:64]) + self.world.data[frame][64:]
        call.asked, call.op, call.params = True, abi.RpcFunc.CMD, abi.split(cookie)
        call.thread = regs[3] & abi.U32
        regs[0], regs[1], regs[2] = abi.RPC_CMD_RETURN, *call.params
        return False

    def _set(self, rpc: RpcPage, shadow: bytearray, **fields: int) -> None:
        for name, value in fields.items():
            at = abi.ARG_FIELDS[name]
            shadow[at : at + 4] = int(value).to_bytes(4, "little")
        self.world.data[rpc.shadow >> 12] = bytes(shadow)

    # Life of a domain

    def relinquish(self, domid: int) -> None:
        """Let go of everything of a domain."""
        ctx = self.domains[domid]
        for call in list(ctx.calls):
            self._drop(ctx, call)
        for cookie in list(ctx.rpcs):
            self._free_rpc(ctx, cookie)
        for cookie in list(ctx.bufs):
            self._free_buf(ctx, cookie)

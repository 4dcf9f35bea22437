# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulated OP-TEE: clients, threads, and a plan of RPCs each standard call goes through before it ends."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from mediator_ref import abi
from mediator_ref.books import Partition, SharedMemory
from mediator_ref.events import PAGE_SIZE
from mediator_ref.simulator.world import World

Resume = tuple[int, int, int, int]
"""x1, x2, x4, x5 a call is resumed with."""
Run = Generator[tuple[int, int, int], Resume, tuple[int, ...]]

INTR, FREE_ARG, SHM_FREE = "intr", "free arg", "shm free"
UNKNOWN_COOKIE = "unknown cookie"
TOO_LONG = "long"
"""Plan step: a request that says it has 200 parameters."""
_TOO_MANY = 200


def alloc(size: int = PAGE_SIZE) -> str:
    """Plan step: ask the guest for a buffer."""
    return f"alloc {size}"


def ask(cmd: int) -> str:
    """Plan step: a request with one value parameter."""
    return f"cmd {cmd}"


@dataclass
class Client:
    """One guest's partition."""

    registered: dict[int, list[int]] = field(default_factory=dict)
    arg_cache: tuple[int, int] | None = None
    kept: list[SharedMemory] = field(default_factory=list)
    """Buffers of calls that have ended (O2)."""


@dataclass
class Thread:
    """A running call: where its RPC page is, and what it has allocated."""

    run: Run | None = None
    rpc: tuple[int, int] | None = None
    allocated: list[tuple[int, list[int]]] = field(default_factory=list)
    brought: dict[int, list[int]] = field(default_factory=dict)
    """Frames of the buffers in its message, by cookie."""
    arg_ma: int = 0


@dataclass
class Optee:
    """OP-TEE as the hypervisor sees it. ``plan`` is taken by the next standard call that starts."""

    world: World
    threads: int = 2
    capacity: int = 4
    caps: int = 0x5E
    plan: Sequence[str] = ()
    keeps: bool = False
    """Whether buffers that a call brought stay when it has ended (O2)."""
    foreign: int | None = None
    """x0 that EL3 answers the next standard call with, before OP-TEE hears of it."""
    clients: dict[int, Client] = field(default_factory=dict)
    running: dict[tuple[int, int], Thread] = field(default_factory=dict)

    def call(self, regs: tuple[int, ...]) -> tuple[int, ...]:
        """One SMC; registers x0..x7 as EL3 gives them back."""
        fid, client = abi.fid_of(regs[0]), regs[7]
        if fid == abi.CALL_WITH_ARG and self.foreign is not None:
            x0, self.foreign = self.foreign, None
            return (x0, 0x111, 0x222, 0x333, *regs[4:8])
        if fid in (abi.VM_CREATED, abi.VM_DESTROYED):
            return self._lifecycle(fid, regs)
        if fid in (abi.CALL_WITH_ARG, abi.RETURN_FROM_RPC):
            return self._standard(fid, client, regs)
        answers = {
            abi.CALLS_UID: abi.OPTEE_MSG_UID,
            abi.FID["CALLS_REVISION"]: (2, 0, 0, 0),
            abi.FID["GET_OS_UUID"]: (0x486178E0, 0xE7F811E3, 0xBC5E0002, 0xA5D5C51B),
            abi.FID["GET_OS_REVISION"]: (4, 10, 0x1234, 0),
            abi.GET_THREAD_COUNT: (0, self.threads, 0, 0),
            abi.EXCHANGE_CAPABILITIES: (0, self.caps, 0, 4),
            abi.FID["ENABLE_SHM_CACHE"]: (0, 0, 0, 0),
        }
        if fid == abi.DISABLE_SHM_CACHE:
            return self._disable_cache(client, regs)
        if fid not in answers:
            return (abi.SMCCC_UNKNOWN_FUNCTION, *regs[1:8])
        return (*answers[fid], *regs[4:8])

    def _lifecycle(self, fid: int, regs: tuple[int, ...]) -> tuple[int, ...]:
        client = regs[1]
        if fid == abi.VM_CREATED:
            if len(self.clients) >= self.capacity or not client:
                return (abi.SmcReturn.ENOTAVAIL, *regs[1:8])
            self.clients[client] = Client()
        elif client:
            self.clients.pop(client, None)
            for key in [key for key in self.running if key[0] == client]:
                del self.running[key]
        return (0, *regs[1:8])

    def _disable_cache(self, client: int, regs: tuple[int, ...]) -> tuple[int, ...]:
        partition = self.clients[client]
        if any(owner == client for owner, _ in self.running):
            return (abi.SmcReturn.EBUSY, *regs[1:8])
        if partition.arg_cache is None:
            return (abi.SmcReturn.ENOTAVAIL, *regs[1:8])
        cookie, partition.arg_cache = partition.arg_cache[1], None
        return (0, *abi.split(cookie), *regs[3:8])

    def _standard(self, fid: int, client: int, regs: tuple[int, ...]) -> tuple[int, ...]:
        if client not in self.clients:
            return (abi.SmcReturn.ENOTAVAIL, *regs[1:8])
        if fid == abi.CALL_WITH_ARG:
            free = [i for i in range(self.threads) if (client, i) not in self.running]
            if not free:
                return (abi.SmcReturn.ETHREAD_LIMIT, *regs[1:8])
            thread, number = Thread(), free[0]
            thread.rpc, self.clients[client].arg_cache = self.clients[client].arg_cache, None
            thread.run = self._run(thread, client, abi.pair(regs[1], regs[2]), tuple(self.plan))
            self.plan = ()
            self.running[(client, number)] = thread
            return self._advance(client, number, thread, None, regs)
        number = regs[3] & abi.U32
        found = self.running.get((client, number))
        if found is None:
            return (abi.SmcReturn.ERESUME, *regs[1:8])
        return self._advance(client, number, found, (regs[1], regs[2], regs[4], regs[5]), regs)

    def _advance(
        self, client: int, number: int, thread: Thread, sent: Resume | None, regs: tuple[int, ...]
    ) -> tuple[int, ...]:
        assert thread.run is not None
        try:
            x0, x1, x2 = next(thread.run) if sent is None else thread.run.send(sent)
        except StopIteration:
            del self.running[(client, number)]
            if self.keeps:
                self.clients[client].kept += [SharedMemory(c, tuple(frames)) for c, frames in thread.brought.items()]
            if thread.rpc is not None:
                self.clients[client].arg_cache = thread.rpc
            return (0, 0, 0, 0, *regs[4:8])
        return (x0, x1, x2, number, *regs[4:8])

    def partition(self, client: int) -> Partition | None:
        """What an observer reads of a client's list of shared memory."""
        found = self.clients.get(client)
        if found is None:
            return None
        shared = [SharedMemory(cookie, tuple(frames)) for cookie, frames in found.registered.items()] + found.kept
        threads = [thread for (owner, _), thread in self.running.items() if owner == client]
        for page in (found.arg_cache, *(thread.rpc for thread in threads)):
            shared += [SharedMemory(page[1], (page[0] // PAGE_SIZE,))] if page is not None else []
        for thread in threads:
            shared += [SharedMemory(cookie, tuple(frames)) for cookie, frames in thread.brought.items()]
            shared += [SharedMemory(cookie, tuple(frames)) for cookie, frames in thread.allocated]
            shared.append(SharedMemory(0, (thread.arg_ma // PAGE_SIZE,)))
        return Partition(client, tuple(shared))

    # One call

    def _accepts(self, thread: Thread, client: int, arg_ma: int) -> bool:
        """Look up the memory that a message names by reference, in all that the guest shares in any way."""
        arg = abi.decode_arg(self.world.secure_read(arg_ma))
        if arg.cmd not in (abi.MsgCmd.OPEN_SESSION, abi.MsgCmd.INVOKE_COMMAND):
            return True
        brought = (param for param in arg.params if param.type in abi.TMEM_TYPES and param.a)
        thread.brought = {param.c: self._frames(param) for param in brought}
        known = {0, *self.clients[client].registered}  # its messages' pages have cookie 0
        for (owner, _), other in self.running.items():
            if owner == client:
                known |= other.brought.keys() | {cookie for cookie, _ in other.allocated}
        return all(param.c in known for param in arg.params if param.type in abi.RMEM_TYPES)

    def _run(self, thread: Thread, client: int, arg_ma: int, plan: tuple[str, ...]) -> Run:
        thread.arg_ma = arg_ma
        if not self._accepts(thread, client, arg_ma):
            refused = self.world.secure_read(arg_ma)
            result = int(abi.Tee.BAD_PARAMETERS).to_bytes(4, "little") + (3).to_bytes(4, "little")
            self.world.secure_write(arg_ma, refused[:20] + result + refused[28:])
            return ()
        failed = False
        for step in plan:
            word, _, number = step.partition(" ")
            if step == INTR:
                yield abi.RPC_PREFIX | abi.RpcFunc.FOREIGN_INTR, 0x11, 0x22
            elif step == FREE_ARG:
                if thread.rpc is not None:
                    yield (abi.RPC_PREFIX | abi.RpcFunc.FREE, *abi.split(thread.rpc[1]))
                    thread.rpc = None
            elif step == UNKNOWN_COOKIE:
                yield (abi.RPC_CMD_RETURN, *abi.split(0xDEAD))
            elif step == SHM_FREE:
                if thread.allocated:
                    cookie, _ = thread.allocated.pop()
                    yield from self._ask(thread, abi.RpcCmd.SHM_FREE, 0, cookie)
            else:
                page = yield from self._ask(
                    thread,
                    abi.RpcCmd.SHM_ALLOC if word == "alloc" else int(number or abi.RpcCmd.SUSPEND),
                    0,
                    int(number) if word == "alloc" else 7,
                    count=_TOO_MANY if step == TOO_LONG else 1,
                )
                failed = failed or page is None
                if word == "alloc" and page is not None:
                    unusable = self._allocated(thread, client, page)
                    if unusable is not None:
                        failed = True
                    if unusable:
                        yield from self._ask(thread, abi.RpcCmd.SHM_FREE, 0, unusable)
        for _, frames in thread.allocated:
            for mfn in frames:
                self.world.secure_use(client - 1, mfn)
        self._finish(client, arg_ma, failed)
        return ()

    def _ask(
        self, thread: Thread, cmd: int, a: int, b: int, *, count: int = 1
    ) -> Generator[tuple[int, int, int], Resume, bytes | None]:
        """An RPC command; the shadow as it comes back, or ``None`` when there is no page to ask with."""
        if thread.rpc is None:
            x1, x2, x4, x5 = yield abi.RPC_PREFIX | abi.RpcFunc.ALLOC, PAGE_SIZE, 0
            ma, cookie = abi.pair(x1, x2), abi.pair(x4, x5)
            if not ma:
                if cookie:
                    yield (abi.RPC_PREFIX | abi.RpcFunc.FREE, *abi.split(cookie))
                return None
            thread.rpc = (ma, cookie)
        ma, cookie = thread.rpc
        request = abi.encode_arg(
            abi.Arg(cmd=cmd, ret=abi.Tee.GENERIC, num_params=count, params=(abi.Param(abi.Attr.VALUE_INPUT, a, b, 0),))
        )
        self.world.secure_write(ma, request[:64] + self.world.secure_read(ma)[64:])
        yield (abi.RPC_CMD_RETURN, *abi.split(cookie))
        return self.world.secure_read(ma)

    def _allocated(self, thread: Thread, client: int, page: bytes) -> int | None:
        """Take what the guest answered to SHM_ALLOC, as OP-TEE does: it does not look at cmd.

        ``None``: done. Otherwise there is no buffer, and the number is a cookie to free, or 0.
        """
        arg = abi.decode_arg(page)
        if arg.ret or arg.num_params != 1:
            return 0
        param = arg.params[0]
        if param.attr not in (abi.Attr.TMEM_OUTPUT, abi.RPC_ALLOC_ATTR):
            return 0
        if not param.a:
            return param.c
        frames = [param.a >> 12] if param.attr == abi.Attr.TMEM_OUTPUT else self._frames(param)
        thread.allocated.append((param.c, frames))
        for mfn in frames:
            self.world.secure_use(client - 1, mfn)
        return None

    def _frames(self, param: abi.Param) -> list[int]:
        """Frames a page list names."""
        pages = -(-(param.b + (param.a & abi.OFFSET_MASK)) // PAGE_SIZE)
        frames: list[int] = []
        page = param.a & ~abi.OFFSET_MASK
        while len(frames) < pages <= 4096:
            words = abi.LIST_PAGE.unpack(self.world.secure_read(page))
            frames += [word >> 12 for word in words[: min(abi.LIST_ENTRIES, pages - len(frames))]]
            page = words[abi.LIST_ENTRIES] & ~abi.OFFSET_MASK
        return frames

    def _finish(self, client: int, arg_ma: int, failed: bool) -> None:
        """Do the command and leave its results in the shadow argument."""
        page = bytearray(self.world.secure_read(arg_ma))
        arg = abi.decode_arg(bytes(page))
        partition = self.clients[client]
        ret = abi.Tee.GENERIC if failed else abi.Tee.SUCCESS
        if arg.cmd == abi.MsgCmd.REGISTER_SHM:
            ret = self._register(partition, client, arg)
        elif arg.cmd == abi.MsgCmd.UNREGISTER_SHM:
            known = bool(arg.params) and arg.params[0].c in partition.registered
            if known:
                del partition.registered[arg.params[0].c]
            ret = abi.Tee.SUCCESS if known else abi.Tee.BAD_PARAMETERS
        else:
            for index, param in enumerate(arg.params):
                self._touch(client, partition, param)
                at = abi.arg_size(index)
                if param.type in abi.MEMREF_OUT_TYPES:
                    page[at + 16 : at + 24] = (param.b // 2).to_bytes(8, "little")
                elif param.type in abi.VALUE_OUT_TYPES:
                    page[at + 8 : at + 32] = b"\x5a" * 24
        if arg.cmd == abi.MsgCmd.OPEN_SESSION:
            page[8:12] = (0x51).to_bytes(4, "little")
        page[20:28] = int(ret).to_bytes(4, "little") + (0 if not ret else 3).to_bytes(4, "little")
        self.world.secure_write(arg_ma, bytes(page))

    def _register(self, partition: Client, client: int, arg: abi.Arg) -> abi.Tee:
        if len(arg.params) != 1 or arg.params[0].attr != abi.Attr.TMEM_INPUT | abi.ATTR_NONCONTIG:
            return abi.Tee.BAD_PARAMETERS
        param = arg.params[0]
        if not param.a or param.c in partition.registered:
            return abi.Tee.BAD_PARAMETERS
        partition.registered[param.c] = self._frames(param)
        self._touch(client, partition, param)
        return abi.Tee.SUCCESS

    def _touch(self, client: int, partition: Client, param: abi.Param) -> None:
        frames: list[int] = []
        if param.type in abi.TMEM_TYPES and param.a:
            frames = self._frames(param)
        elif param.type in (abi.Attr.RMEM_INPUT, abi.Attr.RMEM_OUTPUT, abi.Attr.RMEM_INOUT):
            frames = partition.registered.get(param.c, [])
        for mfn in frames:
            self.world.secure_use(client - 1, mfn)

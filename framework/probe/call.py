# SPDX-License-Identifier: GPL-2.0-or-later
"""A standard call of the probe, while OP-TEE works on it and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from framework.common.errors import UsageError
from framework.probe.ops import NO_COMMAND, Drive, Op, Read, RpcPage, Write
from framework.probe.wire import Record, Rpc
from mediator_ref.abi import (
    ARG_FIELDS,
    RETURN_FROM_RPC,
    RPC_ALLOC_ATTR,
    U32,
    Arg,
    Param,
    RpcCmd,
    RpcFunc,
    decode_arg,
    encode_arg,
    encode_list_page,
    is_rpc,
    pair,
    split,
)
from mediator_ref.events import PAGE_SIZE

if TYPE_CHECKING:
    from framework.probe.client import Probe
    from framework.probe.message import Buffer

Parking = RpcFunc | RpcCmd
"""Park point of a call: an RPC function (ALLOC, FREE, FOREIGN_INTR, any CMD), or at one command."""


class StdCall:
    """One CALL_WITH_ARG. ``regs`` are x0..x17 as they came back last, ``rpcs`` all requests so far.

    While it waits (``not done``), ``rpc`` is the request, and one of :meth:`give_page`, :meth:`answer`,
    :meth:`resume` and :meth:`finish` goes on. When it is done, ``arg`` and ``page`` are what the guest reads.
    """

    def __init__(self, probe: Probe, arg_page: int, buffers: tuple[Buffer | None, ...], sent: bytes) -> None:
        self._probe = probe
        self.arg_page = arg_page
        self.buffers = buffers
        self.sent = sent
        self.page = sent
        self.regs: tuple[int, ...] = ()
        self.ticks = 0
        self.rpcs: list[Rpc] = []
        self.rpc_pages: dict[int, int] = {}
        self.conduit = "hvc"

    @property
    def x0(self) -> int:
        """x0 as it came back last."""
        return self.regs[0]

    @property
    def done(self) -> bool:
        """False while the call waits for an answer."""
        return not is_rpc(self.x0)

    @property
    def arg(self) -> Arg:
        """The argument page as the guest reads it now."""
        return decode_arg(self.page)

    @property
    def rpc(self) -> Rpc:
        """The request the call waits at."""
        if self.done:
            raise UsageError(f"the call is complete: x0 = {self.x0 & U32:#x}")
        return self.rpcs[-1]

    @property
    def thread(self) -> int:
        """OP-TEE's thread, which the guest hands back in x3."""
        return self.regs[3]

    def buffer(self, index: int = 0) -> Buffer:
        """The memory of parameter ``index`` (of all the message's parameters)."""
        found = self.buffers[index]
        if found is None:
            raise UsageError(f"parameter {index} brought no memory")
        return found

    def rpc_page(self) -> int:
        """IPA of the page in which OP-TEE's command stands."""
        cookie = pair(self.regs[1], self.regs[2])
        # Pages that the probe gave by itself have their own address as cookie.
        return self.rpc_pages.get(cookie, cookie)

    def request(self) -> Arg:
        """The command OP-TEE asks for."""
        return decode_arg(self._probe.read(self.rpc_page(), PAGE_SIZE))

    def drive(
        self, op: Drive, park: Sequence[Parking] = (), before: Sequence[Op] = (), *, timeout_s: float = 60.0
    ) -> Record:
        """Execute ``op`` after ``before`` with the calls's park points; take in what came back."""
        self.conduit = op.conduit
        funcs = tuple(int(p) for p in park if isinstance(p, RpcFunc))
        cmds = tuple(int(p) for p in park if isinstance(p, RpcCmd))
        drive = Drive(op.regs, op.conduit, op.imm, funcs, cmds, op.max_rpcs, op.answer)
        records = self._probe.run(*before, drive, Read(self.arg_page, PAGE_SIZE), timeout_s=timeout_s)
        record, page = records[-2:]
        self.regs, self.page = record.regs, page.data
        self.ticks += record.ticks
        self.rpcs += record.rpcs
        return record

    def resume(
        self, x1: int = 0, x2: int = 0, *, x3: int | None = None, rest: Sequence[int] = (),
        park: Sequence[Parking] = (), before: Sequence[Op] = (), max_rpcs: int = 10000,
    ) -> StdCall:  # fmt: skip
        """RETURN_FROM_RPC with exactly these registers; x3 is the call's thread unless given."""
        thread = self.thread if x3 is None else x3
        regs = (RETURN_FROM_RPC, x1, x2, thread, *rest)
        self.drive(Drive(regs, self.conduit, max_rpcs=max_rpcs), park, before)
        return self

    def give_page(self, ipa: int | None = None, cookie: int | None = None, *, park: Sequence[Parking] = ()) -> StdCall:
        """Answer ALLOC with a page (a new one unless given) under a cookie."""
        page = self._probe.pages(1) if ipa is None else ipa
        name = self._probe.cookie() if cookie is None else cookie
        self.rpc_pages[name] = page
        (x1, x2), (x4, x5) = split(page), split(name)
        # Only pages that are pages can hold commands.
        known = [RpcPage(name, page)] if page % PAGE_SIZE == 0 and page else []
        return self.resume(x1, x2, rest=(x4, x5), park=park, before=known)

    def answer(
        self, *params: Param, ret: int = 0, park: Sequence[Parking] = (), cmd: int | None = None,
        x1: int | None = None, x2: int | None = None,
    ) -> StdCall:  # fmt: skip
        """Answer a command: its page gets ``ret`` and, when given, ``params``; then RETURN_FROM_RPC."""
        page = self.rpc_page()
        if params:
            request = self.request()
            arg = Arg(cmd=request.cmd if cmd is None else cmd, ret=ret, num_params=len(params), params=params)
            before = [Write(page, encode_arg(arg)[: 32 + 32 * len(params)])]
        else:
            before = [Write(page + ARG_FIELDS["ret"], ret.to_bytes(4, "little"))]
            if cmd is not None:
                before.append(Write(page, cmd.to_bytes(4, "little")))
        return self.resume(
            self.regs[1] if x1 is None else x1, self.regs[2] if x2 is None else x2, park=park, before=before
        )

    def give_memory(self, size: int | None = None, *, park: Sequence[Parking] = ()) -> tuple[int, int]:
        """Answer SHM_ALLOC as a driver does: new pages and their list. Returns (first data page, cookie)."""
        size = self.request().params[0].b if size is None else size
        count = max(1, -(-size // PAGE_SIZE))
        data, listed, cookie = self._probe.pages(count), self._probe.pages(1), self._probe.cookie()
        entries = [data + PAGE_SIZE * i for i in range(count)]
        self._probe.write(listed, encode_list_page(entries))
        self.answer(Param(RPC_ALLOC_ATTR, listed, size, cookie), park=park)
        return data, cookie

    def proceed(self, *park: Parking, max_rpcs: int = 10000) -> StdCall:
        """Let the probe answer this request by itself, and go on to the next that ``park`` names."""
        self.drive(Drive(self.regs[:8], self.conduit, answer=True, max_rpcs=max_rpcs), park)
        return self

    def finish(self) -> StdCall:
        """Let the probe answer everything until the call is complete."""
        return self.proceed()

    def asked(self) -> list[str]:
        """All requests in words, for messages of failed tests."""
        return [str(rpc) if rpc.cmd != NO_COMMAND or rpc.func != RpcFunc.CMD else "CMD ?" for rpc in self.rpcs]

# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE messages as the ABI writes them: commands with parameters, whose buffers the probe client lays out.

    OpenSession(INVOKE_TESTS)
    Invoke(session, 1, [tmem(pages=3, offset=0x10)])
    RegisterShm(tmem(pages=2, ref=7))

A parameter that needs memory names what it needs; :meth:`framework.probe.client.Probe.begin` finds pages for
it, writes its page list and tells where they are (:class:`Buffer`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol
from uuid import UUID

from framework.common.errors import UsageError
from framework.probe.ops import Fill, Op, Write
from mediator_ref.abi import (
    ATTR_META,
    ATTR_NONCONTIG,
    LIST_ENTRIES,
    Arg,
    Attr,
    MsgCmd,
    Param,
    encode_arg,
    encode_list_page,
)
from mediator_ref.events import PAGE_SIZE

INVOKE_TESTS = UUID("d96a5b40-c3e5-21e3-8794-1002a5d5c61b")
"""OP-TEE's built-in test TA (CFG_TEE_CORE_EMBED_INTERNAL_TESTS): needs no file and no tee-supplicant."""

PTA_CMD_TRACE = 0
PTA_CMD_PARAMS = 1
"""One INOUT value: a = a + b. One INOUT buffer: its first byte becomes the sum of all its bytes, mod 256."""
PTA_CMD_MEMREF_NULL = 10

NO_TA = UUID("5ec0de00-0000-4000-8000-000000000001")
"""A TA that does not exist: OP-TEE looks for it through every RPC it has (ALLOC, SHM_ALLOC, FS, LOAD_TA)."""

TEE_ITEM_NOT_FOUND = 0xFFFF0008
TEE_NOT_SUPPORTED = 0xFFFF000A

UNANSWERED = 0x5A5A5A5A
"""Value of a message's ``ret`` before the call: no result code, so that an untouched page is no success."""

_DIRECTIONS = {"in": 0, "out": 1, "inout": 2}


@dataclass(frozen=True)
class Buffer:
    """Shared memory that lies in the guest: its data pages, its page list and what a parameter says about it.

    ``pages`` are the IPAs as the list names them, ``lists`` those of the list pages.
    """

    pages: tuple[int, ...]
    lists: tuple[int, ...]
    offset: int
    size: int
    ref: int

    @property
    def buf_ptr(self) -> int:
        """Return the parameter's ``buf_ptr``: the first list page and the offset into the first page."""
        return self.lists[0] | self.offset

    @property
    def data(self) -> int:
        """IPA of the first byte, when the data pages follow each other."""
        return self.pages[0] + self.offset

    def list_ops(self) -> list[Op]:
        """Instructions that write the page list; none when it names no page (it may lie where nothing is)."""
        ops: list[Op] = []
        if not self.pages:
            return ops
        for number, ipa in enumerate(self.lists):
            entries = self.pages[number * LIST_ENTRIES : (number + 1) * LIST_ENTRIES]
            following = self.lists[number + 1] if number + 1 < len(self.lists) else 0
            step = entries[1] - entries[0] if len(entries) > 1 else 0
            if all(b - a == step for a, b in pairwise(entries)):
                ops += [
                    Fill(ipa, PAGE_SIZE // 8),
                    Fill(ipa, len(entries), entries[0], step),
                ]
                ops.append(Fill(ipa + PAGE_SIZE - 8, 1, following))
            else:
                ops.append(Write(ipa, encode_list_page(entries, following)))
        return ops


class Memory(Protocol):
    """Allocator of pages and cookies: the probe's client."""

    def pages(self, count: int) -> int:
        """IPA of that many new pages next to each other, zeroed."""
        ...

    def cookie(self) -> int:
        """Return a number not used before."""
        ...


class ParamSpec(Protocol):
    """A parameter before its memory is found."""

    def place(self, memory: Memory) -> tuple[Param, Buffer | None]:
        """The parameter as it stands in the message, and its buffer if it brought one."""
        ...


@dataclass(frozen=True)
class Plain:
    """A parameter given word by word."""

    param: Param

    def place(self, memory: Memory) -> tuple[Param, Buffer | None]:  # noqa: ARG002
        """Return the parameter as given."""
        return self.param, None


@dataclass(frozen=True)
class Tmem:
    """Memory passed with the call, as a page list. ``None``: chosen by the client."""

    pages: int
    offset: int
    size: int | None
    ref: int | None
    direction: str
    ipas: tuple[int, ...] | None
    buffer: Buffer | None

    def place(self, memory: Memory) -> tuple[Param, Buffer | None]:
        """Find pages for the data and for the list."""
        buffer = self.buffer or self._new(memory)
        attr = Attr.TMEM_INPUT + _DIRECTIONS[self.direction] | ATTR_NONCONTIG
        return Param(attr, buffer.buf_ptr, buffer.size, buffer.ref), buffer

    def _new(self, memory: Memory) -> Buffer:
        ipas = self.ipas
        if ipas is None:
            first = memory.pages(self.pages)
            ipas = tuple(first + PAGE_SIZE * i for i in range(self.pages))
        count = max(1, -(-len(ipas) // LIST_ENTRIES))
        lists = memory.pages(count)
        return Buffer(
            pages=ipas,
            lists=tuple(lists + PAGE_SIZE * i for i in range(count)),
            offset=self.offset,
            size=len(ipas) * PAGE_SIZE - self.offset if self.size is None else self.size,
            ref=memory.cookie() if self.ref is None else self.ref,
        )


def none() -> Plain:
    """No parameter."""
    return Plain(Param(Attr.NONE))


def value(a: int = 0, b: int = 0, c: int = 0, direction: str = "inout") -> Plain:
    """Three numbers."""
    return Plain(Param(Attr.VALUE_INPUT + _DIRECTIONS[direction], a, b, c))


def tmem(
    pages: int = 1,
    offset: int = 0,
    size: int | None = None,
    ref: int | None = None,
    direction: str = "inout",
    ipas: Sequence[int] | None = None,
    buffer: Buffer | None = None,
) -> Tmem:
    """Memory passed with the call: new pages, or those at ``ipas``, or a ``buffer`` that exists.

    ``offset`` counts from the first page's start, ``size`` reaches to the end of the last page unless given.
    """
    if direction not in _DIRECTIONS:
        raise UsageError(f"a direction is one of {', '.join(_DIRECTIONS)}")
    return Tmem(pages, offset, size, ref, direction, None if ipas is None else tuple(ipas), buffer)


def null_tmem(ref: int = 0, size: int = 0, direction: str = "inout") -> Plain:
    """A NULL buffer: no address."""
    return Plain(Param(Attr.TMEM_INPUT + _DIRECTIONS[direction] | ATTR_NONCONTIG, 0, size, ref))


def contiguous(ipa: int, size: int, ref: int = 0, direction: str = "inout") -> Plain:
    """Memory by its address, without a page list: guests must not do that."""
    return Plain(Param(Attr.TMEM_INPUT + _DIRECTIONS[direction], ipa, size, ref))


def rmem(ref: int, size: int, offset: int = 0, direction: str = "inout") -> Plain:
    """Part of memory that was registered under the cookie ``ref``."""
    return Plain(Param(Attr.RMEM_INPUT + _DIRECTIONS[direction], offset, size, ref))


@dataclass(frozen=True)
class Message:
    """``struct optee_msg_arg``. ``num_params`` may lie; ``fill`` repeats behind the message."""

    cmd: int
    func: int = 0
    session: int = 0
    cancel_id: int = 0
    ret: int = UNANSWERED
    ret_origin: int = 0
    params: tuple[ParamSpec, ...] = ()
    num_params: int | None = None
    fill: bytes = b"\0"

    def place(self, memory: Memory) -> tuple[bytes, tuple[Buffer | None, ...]]:
        """The page, and the buffer of each parameter."""
        placed = [spec.place(memory) for spec in self.params]
        params = tuple(param for param, _ in placed)
        count = len(params) if self.num_params is None else self.num_params
        arg = Arg(
            cmd=self.cmd, func=self.func, session=self.session, cancel_id=self.cancel_id, ret=self.ret,
            ret_origin=self.ret_origin, num_params=count, params=params,
        )  # fmt: skip
        return encode_arg(arg, fill=self.fill), tuple(buffer for _, buffer in placed)


def open_session_params(uuid: UUID, login: int = 0) -> tuple[Plain, Plain]:
    """The two meta parameters of OPEN_SESSION: the TA's UUID, and who asks."""
    a, b = struct.unpack("<2Q", uuid.bytes)
    meta = Attr.VALUE_INPUT | ATTR_META
    return Plain(Param(meta, a, b)), Plain(Param(meta, 0, 0, login))


def OpenSession(uuid: UUID, params: Sequence[ParamSpec] = ()) -> Message:  # noqa: N802 - named as in the ABI
    """OPTEE_MSG_CMD_OPEN_SESSION."""
    return Message(MsgCmd.OPEN_SESSION, params=(*open_session_params(uuid), *params))


def Invoke(session: int, func: int, params: Sequence[ParamSpec] = ()) -> Message:  # noqa: N802
    """OPTEE_MSG_CMD_INVOKE_COMMAND."""
    return Message(MsgCmd.INVOKE_COMMAND, func=func, session=session, params=tuple(params))


def CloseSession(session: int) -> Message:  # noqa: N802
    """OPTEE_MSG_CMD_CLOSE_SESSION."""
    return Message(MsgCmd.CLOSE_SESSION, session=session)


def Cancel(session: int, cancel_id: int) -> Message:  # noqa: N802
    """OPTEE_MSG_CMD_CANCEL."""
    return Message(MsgCmd.CANCEL, session=session, cancel_id=cancel_id)


def RegisterShm(memory: Tmem) -> Message:  # noqa: N802
    """OPTEE_MSG_CMD_REGISTER_SHM: its parameter's direction is ``out`` by the ABI."""
    fixed = Tmem(memory.pages, memory.offset, memory.size, memory.ref, "out", memory.ipas, memory.buffer)
    return Message(MsgCmd.REGISTER_SHM, params=(fixed,))


def UnregisterShm(ref: int) -> Message:  # noqa: N802
    """OPTEE_MSG_CMD_UNREGISTER_SHM."""
    return Message(MsgCmd.UNREGISTER_SHM, params=(rmem(ref, 0, direction="in"),))

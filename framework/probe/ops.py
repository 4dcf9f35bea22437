# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions of the probe guest, as typed Python.

The same numbers stand in ``images/probe/probe.h`` and ``layout.h``; ``docs/probe.md`` explains the
instructions. An encoded instruction is 64-bit little-endian words: ``opcode | flags << 16 | words << 32`` and
its operands.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

PROTOCOL = 2
MAILBOX = 0x40100000
PROGRAM = 0x40100020
PROGRAM_SIZE = 0x7FFE0
RESULTS = 0x40180000
RESULTS_SIZE = 0x80000
RAM = 0x40000000
HEAP = 0x40400000
VCPUS_MAX = 8
CALL_REGS = 18
NO_COMMAND = 0xFFFFFFFF
"""Command number in a request's log when its page is not known to the probe."""


class _Flag(IntFlag):
    SMC = 1
    QUIET = 2
    CATCH = 4
    NOT = 8
    ADD = 16
    STOP = 32
    U32 = 64
    ANSWER = 128


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


@dataclass(frozen=True)
class Op:
    """An instruction. ``opcode`` is its number; ``body`` of some is further instructions."""

    opcode: ClassVar[int] = 0

    def operands(self) -> list[int]:
        """The words after the first, up to a body."""
        raise NotImplementedError

    def flags(self) -> int:
        """Bits 16..31 of the first word."""
        flags = _Flag(0)
        for name, flag in (("quiet", _Flag.QUIET), ("catch", _Flag.CATCH)):
            if getattr(self, name, False):
                flags |= flag
        if getattr(self, "conduit", "hvc") == "smc":
            flags |= _Flag.SMC
        return flags


@dataclass(frozen=True)
class Call(Op):
    """One SMC or HVC with x0.. = ``regs`` (up to 18, the rest 0). ``catch``: go on after an exception."""

    opcode: ClassVar[int] = 1
    regs: tuple[int, ...]
    conduit: str = "hvc"
    imm: int = 0
    quiet: bool = False
    catch: bool = False

    def operands(self) -> list[int]:
        return [self.imm, *self.regs]


@dataclass(frozen=True)
class Write(Op):
    """Write bytes to memory."""

    opcode: ClassVar[int] = 2
    ipa: int
    data: bytes
    catch: bool = False

    def operands(self) -> list[int]:
        padded = self.data + bytes(-len(self.data) % 8)
        return [self.ipa, len(self.data), *struct.unpack(f"<{len(padded) // 8}Q", padded)]


@dataclass(frozen=True)
class Read(Op):
    """Read bytes of memory."""

    opcode: ClassVar[int] = 3
    ipa: int
    length: int
    catch: bool = False

    def operands(self) -> list[int]:
        return [self.ipa, self.length]


@dataclass(frozen=True)
class Fill(Op):
    """Write ``words`` 64-bit words: value, value + step, …; a page list: ``Fill(list, n, page, 0x1000)``."""

    opcode: ClassVar[int] = 4
    ipa: int
    words: int
    value: int = 0
    step: int = 0

    def operands(self) -> list[int]:
        return [self.ipa, self.words, self.value, self.step]


@dataclass(frozen=True)
class Hypercall(Op):
    """A Xen hypercall: number and up to five arguments (structures are written to memory first)."""

    opcode: ClassVar[int] = 5
    number: int
    args: tuple[int, ...] = ()
    quiet: bool = False

    def operands(self) -> list[int]:
        return [self.number, *self.args, *([0] * (5 - len(self.args)))]


@dataclass(frozen=True)
class Drive(Op):
    """A standard call with its RPCs answered by the probe until it completes or parks.

    ``funcs``, ``cmds``: RPC functions and RPC commands to park at; ``max_rpcs``: park at that RPC whatever
    it is; ``answer``: ``regs`` are those of a parked RPC, which the probe answers first.
    """

    opcode: ClassVar[int] = 6
    regs: tuple[int, ...]
    conduit: str = "hvc"
    imm: int = 0
    funcs: tuple[int, ...] = ()
    cmds: tuple[int, ...] = ()
    max_rpcs: int = 10000
    answer: bool = False
    quiet: bool = False
    catch: bool = False

    def flags(self) -> int:
        return super().flags() | (_Flag.ANSWER if self.answer else 0)

    def operands(self) -> list[int]:
        funcs = sum(1 << func for func in set(self.funcs))
        cmds = sum(1 << cmd for cmd in {min(cmd, 63) for cmd in self.cmds})
        return [self.imm, funcs, cmds, self.max_rpcs, *self.regs]


@dataclass(frozen=True)
class Run(Op):
    """Start ``body`` on another vCPU and go on at once."""

    opcode: ClassVar[int] = 7
    vcpu: int
    body: tuple[Op, ...]

    def operands(self) -> list[int]:
        return [self.vcpu]


@dataclass(frozen=True)
class Join(Op):
    """Wait until a vCPU has ended its section; its records come inside this one's.

    ``started``: the section, when an earlier program started it.
    """

    opcode: ClassVar[int] = 8
    vcpu: int
    timeout_s: float = 10.0
    started: tuple[Op, ...] = ()

    def operands(self) -> list[int]:
        return [self.vcpu, _us(self.timeout_s)]


@dataclass(frozen=True)
class SetFlag(Op):
    """Set one of 64 flags that all vCPUs see; ``add``: add to it (a barrier is add and wait)."""

    opcode: ClassVar[int] = 9
    index: int
    value: int
    add: bool = False

    def flags(self) -> int:
        return _Flag.ADD if self.add else 0

    def operands(self) -> list[int]:
        return [self.index, self.value]


@dataclass(frozen=True)
class WaitFlag(Op):
    """Wait until a flag is at least ``value``; a timeout ends the section."""

    opcode: ClassVar[int] = 10
    index: int
    value: int
    timeout_s: float = 10.0

    def operands(self) -> list[int]:
        return [self.index, self.value, _us(self.timeout_s)]


@dataclass(frozen=True)
class Delay(Op):
    """Let time pass (the vCPU yields)."""

    opcode: ClassVar[int] = 11
    seconds: float

    def operands(self) -> list[int]:
        return [_us(self.seconds)]


@dataclass(frozen=True)
class Loop(Op):
    """Repeat ``body``."""

    opcode: ClassVar[int] = 12
    count: int
    body: tuple[Op, ...]

    def operands(self) -> list[int]:
        return [self.count]


@dataclass(frozen=True)
class If(Op):
    """Execute ``body`` when ``(source & mask) == value``; ``negate`` turns it round.

    The source is register ``reg`` of the last call, or the 64-bit (``u32``: 32-bit) word at ``ipa``.
    """

    opcode: ClassVar[int] = 13
    mask: int
    value: int
    body: tuple[Op, ...]
    reg: int = 0
    ipa: int | None = None
    u32: bool = False
    negate: bool = False

    def flags(self) -> int:
        return (_Flag.NOT if self.negate else 0) | (_Flag.U32 if self.u32 else 0)

    def operands(self) -> list[int]:
        memory = self.ipa is not None
        return [int(memory), self.ipa if self.ipa is not None else self.reg, self.mask, self.value]


@dataclass(frozen=True)
class Break(Op):
    """Leave the innermost loop; ``stop``: end the section."""

    opcode: ClassVar[int] = 14
    stop: bool = False

    def flags(self) -> int:
        return _Flag.STOP if self.stop else 0

    def operands(self) -> list[int]:
        return []


@dataclass(frozen=True)
class Add(Op):
    """Add to a 64-bit (``u32``: 32-bit) word of memory."""

    opcode: ClassVar[int] = 15
    ipa: int
    value: int
    u32: bool = False

    def flags(self) -> int:
        return _Flag.U32 if self.u32 else 0

    def operands(self) -> list[int]:
        return [self.ipa, self.value]


@dataclass(frozen=True)
class Copy(Op):
    """Copy memory."""

    opcode: ClassVar[int] = 16
    to: int
    source: int
    length: int

    def operands(self) -> list[int]:
        return [self.to, self.source, self.length]


@dataclass(frozen=True)
class Scan(Op):
    """Find words with ``(word & mask) == value`` in memory: how many, and where the first 15 are."""

    opcode: ClassVar[int] = 17
    ipa: int
    length: int
    mask: int
    value: int
    u32: bool = False

    def flags(self) -> int:
        return _Flag.U32 if self.u32 else 0

    def operands(self) -> list[int]:
        return [self.ipa, self.length, self.mask, self.value]


@dataclass(frozen=True)
class RpcPage(Op):
    """Tell the probe where the RPC page with a cookie lies (``ipa`` 0 forgets), so that it can answer."""

    opcode: ClassVar[int] = 18
    cookie: int
    ipa: int

    def operands(self) -> list[int]:
        return [self.cookie, self.ipa]


@dataclass(frozen=True)
class Code(Op):
    """Call machine code that was written to memory, with x0.. = ``regs``; it ends with ``ret``."""

    opcode: ClassVar[int] = 19
    ipa: int
    regs: tuple[int, ...] = (0,)
    catch: bool = False

    def operands(self) -> list[int]:
        return [self.ipa, *self.regs]


OPS: Mapping[int, type[Op]] = {
    op.opcode: op
    for op in (
        Call, Write, Read, Fill, Hypercall, Drive, Run, Join, SetFlag, WaitFlag, Delay, Loop, If, Break, Add,
        Copy, Scan, RpcPage, Code,
    )
}  # fmt: skip

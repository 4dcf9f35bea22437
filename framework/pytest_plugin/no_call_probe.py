# SPDX-License-Identifier: GPL-2.0-or-later
"""A probe whose calls are left out: every test that gets one must fail (``--mc-no-stimulus``).

Everything else happens: the domain is created, memory written and read, hypercalls made. Where a program has a call,
the guest executes a few instructions of its own instead, which leave the registers as they are or set them to zero. A
test that passes all the same would pass whatever the mediator does.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from framework.probe.client import Probe
from framework.probe.ops import Call, Code, Delay, Drive, Op, Write
from framework.probe.program import Program
from framework.probe.wire import Record

_STUB = 0x4030_0000
"""A page that the probe would answer OP-TEE with, which asks for nothing here."""
_RET = 0xD65F03C0
_MOV_ZERO = 0xD2800000
_REGISTERS = 18


class NoCallProbe(Probe):
    """The probe ``real``, whose calls are never made.

    ``answer``: what they seem to answer: ``zeros`` in x0..x17 (OK, whatever was asked), or ``unchanged``, what they
    were given.
    """

    def __init__(self, real: Probe, answer: str) -> None:
        super().__init__(real.transport, name=real.name, domid=real.domid, memory_mib=real.memory_mib)
        moves = [_MOV_ZERO | number for number in range(_REGISTERS)] if answer == "zeros" else []
        words = [*moves, _RET]
        super().execute(Program((Write(_STUB, struct.pack(f"<{len(words)}I", *words)),)))

    def execute(self, program: Program, *, timeout_s: float = 30.0) -> tuple[Record, ...]:
        """Run the rest of a program."""
        return super().execute(without_calls(program), timeout_s=timeout_s)


def without_calls(program: Program) -> Program:
    """``program`` with other instructions where its calls are, that leave the same number of records."""
    return replace(program, ops=tuple(_without(op) for op in program.ops))


def _without(op: Op) -> Op:
    if isinstance(op, Call | Drive):
        return Delay(0.0) if op.quiet else Code(_STUB, op.regs)
    body: tuple[Op, ...] = getattr(op, "body", ())
    if not body:
        return op
    changed: Any = op
    without: Op = replace(changed, body=tuple(_without(inner) for inner in body))
    return without

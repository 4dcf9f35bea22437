# SPDX-License-Identifier: GPL-2.0-or-later
"""A TEE that answers what it likes: what EL3 says becomes another in lock-step, before the mediator hears it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from framework.probe.call import Parking
from framework.trace.format import Kind
from framework.trace.live import Held, Space
from mediator_ref.abi import (
    CALL_WITH_ARG,
    HEADER_SIZE,
    PARAM,
    RETURN_FROM_RPC,
    RPC_CMD_RETURN,
    RPC_PREFIX,
    U32,
    RpcCmd,
    is_rpc,
    pair,
)

_STANDARD = (CALL_WITH_ARG, RETURN_FROM_RPC)


@dataclass(frozen=True)
class Answer:
    """An answer of EL3 that the mediator has not heard yet.

    ``function``: the function id that EL3 was called with. ``argument``: MA of the latest call's shadow argument.
    ``rpc_pages``: MA of the shadow of each RPC page, by cookie.
    """

    held: Held
    function: int
    argument: int
    rpc_pages: Mapping[int, int]

    @property
    def x0(self) -> int:
        """x0 as EL3 left it."""
        return self.held.event.regs[0]

    @property
    def request(self) -> int | None:
        """MA of the request that OP-TEE makes; None when it makes none by a command."""
        if self.function not in _STANDARD or self.x0 & U32 != RPC_CMD_RETURN:
            return None
        return self.rpc_pages.get(pair(*self.held.event.regs[1:3]))

    def say(self, *registers: int) -> None:
        """Change x0 and those that follow it."""
        for number, value in enumerate(registers):
            self.held.write_register(f"x{number}", value)

    def write(self, address: int, data: bytes) -> None:
        """Change memory at a machine address."""
        self.held.write(Space.MA, address, data)

    def put(self, *numbers: tuple[int, int]) -> None:
        """Write 64-bit numbers at offsets of the shadow argument."""
        for offset, number in numbers:
            self.write(self.argument + offset, number.to_bytes(8, "little"))


When = Callable[[Answer], bool]
Lie = Callable[[Answer], object]


class Liar:
    """Consumer of a board's events, which changes the next answer that a lie is about. One lie at a time."""

    def __init__(self) -> None:
        self._lie: tuple[When, Lie] | None = None
        self._functions: dict[int, int] = {}
        self._argument = 0
        self._rpc_pages: dict[int, int] = {}

    def at(self, when: When, lie: Lie) -> None:
        """Tell ``lie`` at the next answer for which ``when`` is true."""
        self._lie = when, lie

    @property
    def told(self) -> bool:
        """Whether the latest lie has been told."""
        return self._lie is None

    def __call__(self, held: Held) -> None:
        regs, vcpu = held.event.regs, held.event.vcpu or 0
        if held.event.kind == Kind.EL3_CALL:
            self._functions[vcpu] = function = regs[0] & U32
            if function == CALL_WITH_ARG:
                self._argument = pair(regs[1], regs[2])
            elif function == RETURN_FROM_RPC and pair(regs[1], regs[2]):
                self._rpc_pages[pair(regs[4], regs[5])] = pair(regs[1], regs[2])
        elif held.event.kind == Kind.EL3_RETURN and self._lie is not None:
            answer = Answer(held, self._functions.get(vcpu, 0), self._argument, self._rpc_pages)
            when, lie = self._lie
            if when(answer):
                self._lie = None
                lie(answer)


def completed(answer: Answer) -> bool:
    """The answer to a standard call, and not a request."""
    return answer.function in _STANDARD and not is_rpc(answer.x0)


def to(function: int) -> When:
    """The answer to a fast call."""
    return lambda answer: answer.function == function


def asks(what: Parking) -> When:
    """The answer to a standard call that is this request."""

    def when(answer: Answer) -> bool:
        if not isinstance(what, RpcCmd):
            return answer.function in _STANDARD and answer.x0 & U32 == RPC_PREFIX | what
        page = answer.request
        return page is not None and int.from_bytes(answer.held.read(Space.MA, page, 4), "little") == what

    return when


def field(index: int, name: str) -> int:
    """Offset of ``a``, ``b`` or ``c`` of a parameter in a message."""
    return HEADER_SIZE + index * PARAM.size + 8 * (1 + "abc".index(name))


def saying(*registers: int) -> Lie:
    """Lie in x0 and the registers that follow it."""
    return lambda answer: answer.say(*registers)


def putting(*numbers: tuple[int, int]) -> Lie:
    """Lie in 64-bit numbers at offsets of the shadow argument."""
    return lambda answer: answer.put(*numbers)

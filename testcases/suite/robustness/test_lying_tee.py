# SPDX-License-Identifier: GPL-2.0-or-later
"""A TEE that answers what it likes: what it says becomes another in lock-step, before the mediator hears it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from framework.probe.link import DoorbellServer
from framework.probe.message import INVOKE_TESTS, PTA_CMD_TRACE, Invoke, OpenSession, RegisterShm, rmem, tmem, value
from framework.trace.format import Kind
from framework.trace.live import Held, Space
from medcheck import Limits, Probe
from mediator_ref.abi import ARG_FIELDS, CALL_WITH_ARG, HEADER_SIZE, PARAM, U32, SmcReturn, is_rpc, pair

COOKIE = 0xC0
GENERIC = 0xFFFF0000
"""TEE_ERROR_GENERIC."""
OTHER = 0x123
"""What the TEE says instead: less than any size that was given."""

Lie = Callable[[Held, int], None]
"""What becomes of an answer to a standard call: the vCPU that waits, and the MA of the shadow argument."""


class Liar:
    """Consumer of a board's events that changes OP-TEE's next final answer to a standard call, once it has a lie."""

    def __init__(self) -> None:
        self.lie: Lie | None = None
        self._argument = 0

    def __call__(self, held: Held) -> None:
        regs = held.event.regs
        if held.event.kind == Kind.EL3_CALL and regs[0] & U32 == CALL_WITH_ARG:
            self._argument = pair(regs[1], regs[2])
        elif held.event.kind == Kind.EL3_RETURN and self.lie is not None and not is_rpc(regs[0]):
            lie, self.lie = self.lie, None
            lie(held, self._argument)


@pytest.fixture
def liar() -> Liar:
    return Liar()


@pytest.fixture
def doorbells(liar: Liar) -> Iterator[DoorbellServer]:
    """The plugin's doorbells, by which the liar hears of the board's events as well."""
    with DoorbellServer(before={Kind.EL3_CALL, Kind.EL3_RETURN}, on_event=liar) as bells:
        yield bells


def says(*numbers: tuple[int, int]) -> Lie:
    """Numbers at offsets of the shadow argument."""

    def lie(held: Held, argument: int) -> None:
        for offset, number in numbers:
            held.write(Space.MA, argument + offset, number.to_bytes(8, "little"))

    return lie


def field(index: int, name: str) -> int:
    """Offset of ``a``, ``b`` or ``c`` of a parameter."""
    return HEADER_SIZE + index * PARAM.size + 8 * (1 + "abc".index(name))


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-9", "R3")
@pytest.mark.parametrize("direction", ["out", "inout"])
def test_r3_every_result_comes_back(probe: Probe, liar: Liar, direction: str) -> None:
    """Three values, the size of memory that the call brought, and that of registered memory."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    assert probe.call_with_arg(RegisterShm(tmem(ref=COOKIE))).arg.ret == 0
    liar.lie = says(
        (field(0, "a"), OTHER), (field(0, "b"), OTHER + 1), (field(0, "c"), OTHER + 2),
        (field(1, "b"), OTHER + 3), (field(2, "b"), OTHER + 4),
    )  # fmt: skip
    brought, registered = tmem(direction=direction), rmem(COOKIE, 4096, direction=direction)
    answer = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [value(1, 2, 3, direction), brought, registered]))
    assert (answer.x0, answer.arg.ret) == (SmcReturn.OK, 0)
    found = answer.arg.params
    assert (found[0].a, found[0].b, found[0].c) == (OTHER, OTHER + 1, OTHER + 2)
    assert [param.b for param in found[1:]] == [OTHER + 3, OTHER + 4]


@pytest.mark.mc_core
@pytest.mark.mc_rule("STD-8", "R18")
@pytest.mark.parametrize("error", [SmcReturn.EBUSY, SmcReturn.ENOMEM, SmcReturn.EBADADDR, SmcReturn.EBADCMD])
def test_r18_an_error_of_optee_leaves_nothing(probe: Probe, liar: Liar, error: SmcReturn) -> None:
    """The guest hears it, the call's thread and buffers are free again, and the next call is like any other."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    for _ in range(3):
        liar.lie = lambda held, _: held.write_register("x0", error)
        refused = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [tmem(ref=COOKIE)]))
        assert refused.x0 == error
    again = probe.call_with_arg(Invoke(session, PTA_CMD_TRACE, [value(1)]))
    assert (again.x0, again.arg.ret) == (SmcReturn.OK, 0)


@pytest.mark.mc_core
@pytest.mark.mc_rule("MEM-8", "R18")
def test_r18_a_registration_that_optee_refuses_is_none(probe: Probe, liar: Liar) -> None:
    """More often than a domain may have buffers: each time it is gone again."""
    for _ in range(Limits().buffers + 1):
        liar.lie = lambda held, at: held.write(Space.MA, at + ARG_FIELDS["ret"], GENERIC.to_bytes(4, "little"))
        refused = probe.call_with_arg(RegisterShm(tmem(ref=COOKIE)))
        assert (refused.x0, refused.arg.ret) == (SmcReturn.OK, GENERIC)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that come and go, many times: nothing of them stays, in Xen or in OP-TEE, and no other guest notices."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from framework.common.errors import GuestError
from framework.guests.xl import GuestConfig
from framework.probe.client import IMAGE_IN_DOM0, Probe
from framework.probe.link import ConsoleTransport
from framework.probe.message import (
    INVOKE_TESTS,
    NO_TA,
    PTA_CMD_PARAMS,
    TEE_ITEM_NOT_FOUND,
    Invoke,
    OpenSession,
    RegisterShm,
    UnregisterShm,
    tmem,
    value,
)
from framework.probe.ops import Drive, Loop, Op
from medcheck import Deviations, MakeProbe, Target
from mediator_ref.abi import CALL_WITH_ARG, RpcCmd, RpcFunc, split

from ..lib.domains import REQUESTS, free_pages

PARTITIONS = 4
"""CFG_VIRT_GUEST_COUNT of images/firmware.yaml: dom0 and three domUs."""
FEW = 20
"""As many domains may come and go before finding O1 costs a partition."""
FOR_EVER = 10_000_000


@dataclass(frozen=True)
class Neighbour:
    """Another domain, with a session of its own in OP-TEE."""

    probe: Probe
    session: int

    @classmethod
    def of(cls, probe: Probe) -> Neighbour:
        """A neighbour that has opened its session."""
        call = probe.call_with_arg(OpenSession(INVOKE_TESTS))
        assert (call.x0, call.arg.ret) == (0, 0)
        return cls(probe, call.arg.session)

    def works(self) -> None:
        """OP-TEE computes for it as ever."""
        call = self.probe.call_with_arg(Invoke(self.session, PTA_CMD_PARAMS, [value(20, 22)]))
        assert (call.x0, call.arg.ret, call.arg.params[0].a) == (0, 0, 42)


def partitions_left(target: Target) -> int:
    """How many more domains OP-TEE takes; all of them are gone again afterwards."""
    made: list[int] = []
    try:
        for number in range(PARTITIONS + 1):
            made.append(
                target.dom0.xl.create(GuestConfig(f"room{number}", IMAGE_IN_DOM0, memory_mib=16, network=False))
            )
    except GuestError:
        pass
    finally:
        for domid in made:
            target.dom0.xl.destroy(domid)
    return len(made)


class Unanswered(ConsoleTransport):
    """Sends a program and does not wait for its end, which never comes: the domain is destroyed in the middle."""

    def _results(self, timeout_s: float) -> bytes | None:  # noqa: ARG002
        return b""


def _send(probe: Probe, *ops: Op) -> None:
    probe.transport = Unanswered(probe.transport._console)  # type: ignore[attr-defined]
    probe.run(*ops)


def nothing(probe: Probe) -> None:
    """It never calls OP-TEE."""
    assert probe.domid is not None


def idle(probe: Probe) -> None:
    """A session is open and a buffer registered; no call is running."""
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.ret == 0
    made = probe.call_with_arg(RegisterShm(tmem(pages=3, ref=7)))
    assert (made.x0, made.arg.ret) == (0, 0)


def inside(probe: Probe) -> None:
    """It is in OP-TEE nearly all the time: each call sums up half a MiB."""
    session = probe.call_with_arg(OpenSession(INVOKE_TESTS)).arg.session
    call = probe.call_with_arg(Invoke(session, PTA_CMD_PARAMS, [tmem(pages=129)]))
    assert (call.x0, call.arg.ret) == (0, 0)
    _send(probe, Loop(FOR_EVER, (Drive((CALL_WITH_ARG, *split(call.arg_page)), quiet=True),)))


def registering(probe: Probe) -> None:
    """It registers and unregisters 129 pages, over and over."""
    made = probe.call_with_arg(RegisterShm(tmem(pages=129, ref=7)))
    gone = probe.call_with_arg(UnregisterShm(7))
    assert (made.x0, made.arg.ret, gone.x0, gone.arg.ret) == (0, 0, 0, 0)
    both = tuple(Drive((CALL_WITH_ARG, *split(call.arg_page)), quiet=True) for call in (made, gone))
    _send(probe, Loop(FOR_EVER, both))


def parked(point: RpcFunc | RpcCmd) -> Callable[[Probe], None]:
    """A call waits at one of OP-TEE's requests."""

    def at_request(probe: Probe) -> None:
        assert not probe.begin(OpenSession(NO_TA), park=[point]).done

    return at_request


POINTS: dict[str, Callable[[Probe], None]] = {
    "before the first call": nothing,
    "between calls": idle,
    "in OP-TEE": inside,
    "registering": registering,
    **{point.name: parked(point) for point in REQUESTS},
}


def come_and_go(
    witness: Probe, make_probe: MakeProbe, target: Target, point: Callable[[Probe], None], rounds: int
) -> int:
    """Create, bring to ``point``, destroy; ``rounds`` times, with everything as after the first round in the end.

    Except for the number of domains that OP-TEE still takes, which is returned.
    """
    rng = random.Random(rounds)
    neighbour = Neighbour.of(witness)
    before = 0
    for number in range(rounds + 1):
        probe = make_probe("doomed", memory_mib=16, slot=0)
        point(probe)
        if point in (inside, registering):
            time.sleep(rng.uniform(0.02, 0.3))
        assert probe.domid is not None
        target.dom0.xl.destroy(probe.domid)
        assert target.dom0.xl.find(probe.domid) is None
        neighbour.works()
        if number == 0:
            before = free_pages(target)
    assert free_pages(target) == before
    left = partitions_left(target)
    heir = make_probe("heir", slot=0)
    # The measure measures: a domain of 32 MiB is seen.
    assert free_pages(target) < before - 8000
    call = heir.call_with_arg(OpenSession(NO_TA))
    assert (call.x0, call.arg.ret) == (0, TEE_ITEM_NOT_FOUND)
    neighbour.works()
    return left


@pytest.mark.mc_rule("R1", "R5", "R14", "R18", "R20", "R21", "LIFE-1", "LIFE-2", "LIFE-3", "LIFE-5")
@pytest.mark.parametrize(
    "rounds",
    [pytest.param(5, marks=pytest.mark.mc_core), pytest.param(200, marks=[pytest.mark.slow, pytest.mark.nightly])],
)
def test_r1_domains_come_and_go(
    probe: Probe, make_probe: MakeProbe, target: Target, deviations: Deviations, rounds: int
) -> None:
    """A domain opens a session, registers a buffer and is destroyed: Xen's memory is the same to the page.

    OP-TEE's partitions are all there again, too, unless OP-TEE itself has used up its memory (finding O1).
    """
    left = come_and_go(probe, make_probe, target, idle, rounds)
    said = "\n".join(target.board.consoles["optee"].tail(50))
    if left == PARTITIONS - 3 and rounds > FEW and "Can't allocate memory for TA data" in said:
        deviations.elsewhere("O1", f"OP-TEE takes {left} more domains instead of {PARTITIONS - 2} after {rounds}")
        return
    assert left == PARTITIONS - 2


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.mc_rule("R1", "R5", "R14", "R18", "R21", "LIFE-2", "LIFE-3")
@pytest.mark.parametrize("name", POINTS)
def test_r1_destroyed_at_each_point_again_and_again(
    probe: Probe, make_probe: MakeProbe, target: Target, name: str
) -> None:
    """Ten domains in a row destroyed at the same point of their lives, some of them in the middle of a call."""
    assert come_and_go(probe, make_probe, target, POINTS[name], 10) == PARTITIONS - 2

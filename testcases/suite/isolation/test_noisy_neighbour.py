# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain that does its worst, beside one that works."""

from __future__ import annotations

import random
import threading

import pytest

from framework.guests.xtest import run_xtest
from framework.probe.message import INVOKE_TESTS, NO_TA, OpenSession, RegisterShm, UnregisterShm, tmem
from framework.probe.ops import Add, Drive, Loop, Op, Write
from medcheck import MakeProbe, Probe, Slowdown, StdCall, Target
from mediator_ref.abi import CALL_WITH_ARG, RpcFunc, SmcReturn, split

from ..lib.domains import MOST_CALLS
from ..lib.random_calls import function_id, message, word

CASES = ("1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008")
CALLS = 2000
"""As many calls the attacker must have made while xtest ran; it makes several times that."""


class Attacker:
    """Hostile calls from a probe, one program after the other, in a thread until the block ends.

    ``calls`` is the guest's own count: its programs add to a word of its memory after each call. ``refused``: how
    often it got ETHREAD_LIMIT, with as many calls waiting as it may have.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.calls = 0
        self.refused = 0
        self._count = probe.pages(1)
        self._page = probe.pages(1)
        self._rng = random.Random(5)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="attacker", daemon=True)

    def __enter__(self) -> Attacker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.calls = int.from_bytes(self.probe.read(self._count, 8), "little")
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                for attack in (self._threads, self._buffers, self._any_message, self._any_function):
                    attack()
        except BaseException as failure:
            self._failure = failure

    def _run(self, *ops: Op) -> None:
        self.probe.run(*ops, timeout_s=120)

    def _counted(self, call: Drive) -> tuple[Op, Op]:
        return call, Add(self._count, 1)

    def _any_function(self) -> None:
        calls = [Drive((function_id(self._rng), *(word(self._rng) for _ in range(7))), quiet=True) for _ in range(20)]
        self._run(Loop(20, tuple(op for call in calls for op in self._counted(call))))

    def _any_message(self) -> None:
        call = Drive((CALL_WITH_ARG, *split(self._page)), quiet=True)
        for _ in range(5):
            self._run(Write(self._page, message(self._rng)), Loop(20, self._counted(call)))

    def _buffers(self) -> None:
        register = self.probe.begin(RegisterShm(tmem(ref=0xBAD, ipas=[self._page] * 129)))
        unregister = self.probe.begin(UnregisterShm(0xBAD))
        pages = [split(call.arg_page) for call in (register, unregister)]
        both = tuple(op for page in pages for op in self._counted(Drive((CALL_WITH_ARG, *page), quiet=True)))
        self._run(Loop(50, both))

    def _threads(self) -> None:
        """Calls wait in OP-TEE until it has no thread left for this guest; then a hundred more."""
        waiting: list[StdCall] = []
        while len(waiting) < MOST_CALLS and not self._stop.is_set():
            call = self.probe.begin(OpenSession(NO_TA), park=[RpcFunc.ALLOC], page=self.probe.pages(1))
            if call.done:
                # Later, OP-TEE may have no memory left for this guest and answer at once.
                self.refused += call.x0 == SmcReturn.ETHREAD_LIMIT
                self._run(Loop(100, self._counted(Drive((CALL_WITH_ARG, *split(call.arg_page)), quiet=True))))
                break
            waiting.append(call)
        for call in waiting:
            call.finish()


@pytest.mark.slow
@pytest.mark.mc_checkpoint("ready")
@pytest.mark.mc_rule("R2", "R5", "R14", "R18", "STD-1", "STD-6")
def test_r5_xtest_beside_an_attacker(make_probe: MakeProbe, target: Target, slowdown: Slowdown) -> None:
    """A probe attacks with all it has; a Linux guest's xtest passes meanwhile. How much longer it takes is reported."""
    name, guest = next(iter(target.guests.items()))
    # The first run loads TAs and fills caches; it is no measure.
    assert run_xtest(guest, CASES, alive=target.check_alive).good
    alone = run_xtest(guest, CASES, alive=target.check_alive)
    assert alone.good, alone.reason
    probe = make_probe("attacker", memory_mib=64)
    with Attacker(probe) as attacker:
        beside = run_xtest(guest, CASES, alive=target.check_alive)
    assert beside.good, beside.reason
    assert [case.id for case in beside.cases] == [case.id for case in alone.cases]
    assert attacker.calls >= CALLS
    assert attacker.refused, "the attacker never had all of its threads waiting"
    slowdown(name, beside.seconds / alone.seconds)
    print(f"{name}: {alone.seconds:.1f} s alone, {beside.seconds:.1f} s beside {attacker.calls} hostile calls")
    assert probe.call_with_arg(OpenSession(INVOKE_TESTS)).x0 == 0

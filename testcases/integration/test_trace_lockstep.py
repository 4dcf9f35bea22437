# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU with the trace plugin in lock-step with a consumer: what it may do, and when it is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.common.errors import TraceError
from framework.trace.build import PluginOptions
from framework.trace.event import Event
from framework.trace.format import Kind
from framework.trace.live import Held, LiveConsumer, Space
from framework.trace.reader import Reader
from framework.trace.walk import stage2
from testcases.integration.trace_payload import ARG, CALLS, DOORBELL, IDLE_S, LIST, MMIO, NEEDS, READONLY, Bench

pytestmark = NEEDS


@dataclass
class Lockstep:
    """A board in lock-step with a handler in this process."""

    bench: Bench
    socket: Path

    def run(
        self,
        handler: Callable[[Held], None],
        *,
        hold: tuple[Kind, ...],
        before: tuple[Kind, ...] = (),
        rounds: int = 1,
        options: dict[str, object] | None = None,
    ) -> tuple[int, str]:
        """Serve one board to its end; QEMU's exit code and standard error."""
        plugin = PluginOptions(lockstep=self.socket, **(options or {}))  # type: ignore[arg-type]
        with LiveConsumer(self.socket, hold=hold, send=CALLS, before=before) as consumer:
            board = self.bench.start(plugin, rounds)
            consumer.accept(IDLE_S)
            try:
                consumer.serve(handler)
            finally:
                stderr = board.communicate(timeout=IDLE_S)[1]
            return board.returncode, stderr


@pytest.fixture
def lockstep(bench: Bench, tmp_path: Path) -> Iterator[Lockstep]:
    yield Lockstep(bench, tmp_path / "s")


@pytest.mark.parametrize("waiting", [True, False])
def test_a_doorbell_lets_the_consumer_talk_to_the_guest(lockstep: Lockstep, waiting: bool) -> None:
    """What is written to x1 and to guest memory while the vCPU waits is what the guest's next call
    carries; also when nothing waits for the answer to the write."""
    seen: list[Event] = []

    def handler(held: Held) -> None:
        if held.event.kind == Kind.DOORBELL:
            mailbox = held.event.regs[0]
            assert held.read_ipa(mailbox, 8) == (0x5555).to_bytes(8, "little")
            held.write_register("x1", 0xBEEF)
            assert held.read_register("x1") == 0xBEEF
            word = (0xFEED).to_bytes(8, "little")
            if waiting:
                held.write_ipa(mailbox, word)
            else:
                held.release(writes=[(mailbox, word)])
        seen.append(held.event)

    code, stderr = lockstep.run(handler, hold=(Kind.DOORBELL,))
    assert code == 0, stderr
    at = next(i for i, event in enumerate(seen) if event.kind == Kind.DOORBELL)
    assert seen[at].regs[0] == DOORBELL
    assert seen[at + 1].kind == Kind.GUEST_CALL and seen[at + 1].regs[1:3] == (0xBEEF, 0xFEED)


def test_a_return_from_el3_can_be_changed(lockstep: Lockstep) -> None:
    """Fault injection: what the consumer writes at EL3's return is what the guest gets."""
    answers: list[tuple[int, int]] = []

    def handler(held: Held) -> None:
        if held.event.kind == Kind.EL3_RETURN and held.event.regs[0] == 0x384FB3E0:
            held.write_register("x0", 0xABAD1DEA)
        if held.event.kind == Kind.GUEST_RETURN:
            answers.append((held.event.parent, held.event.regs[0]))

    code, stderr = lockstep.run(handler, hold=(Kind.EL3_RETURN,))
    assert code == 0, stderr
    assert answers[0][1] == 0xABAD1DEA and 0x384FB3E0 not in [x0 for _, x0 in answers]


def test_what_is_changed_before_an_event_is_recorded_is_in_its_record(lockstep: Lockstep) -> None:
    """The consumer is asked first, with the number that the record then has; what it writes is what is recorded and
    what goes on."""
    asked: list[int] = []
    seen: list[Event] = []

    def handler(held: Held) -> None:
        if held.before:
            asked.append(held.event.seq)
            assert held.event.regs[0] == held.read_register("x0")
            held.write_register("x5", 0x5ABD + len(asked))
        else:
            seen.append(held.event)

    path = lockstep.bench.folder / "before.mct"
    code, stderr = lockstep.run(handler, hold=(), before=(Kind.EL3_CALL, Kind.GUEST_RETURN), options={"out": path})
    assert code == 0, stderr
    changed = [event for event in seen if event.kind in (Kind.EL3_CALL, Kind.GUEST_RETURN)]
    assert [event.seq for event in changed] == asked
    assert [event.regs[5] for event in changed] == [0x5ABE + number for number in range(len(asked))]
    recorded = {event.seq: event.regs for event in Reader(path).events()}
    assert [recorded[event.seq] for event in changed] == [event.regs for event in changed]


def test_a_released_vcpu_can_be_delayed(lockstep: Lockstep) -> None:
    times: list[int] = []

    def handler(held: Held) -> None:
        times.append(held.event.time_ns)
        held.release(0.2 if len(times) == 1 else 0.0)

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert times[1] - times[0] >= 200_000_000 > times[2] - times[1]


def test_the_plugins_walk_is_the_walk_of_the_architecture(lockstep: Lockstep) -> None:
    checked = 0

    def handler(held: Held) -> None:
        nonlocal checked
        if held.event.kind != Kind.GUEST_CALL or checked:
            return
        vttbr, vtcr = held.read_register("VTTBR_EL2"), held.read_register("VTCR_EL2")
        for ipa in (ARG, LIST + 8, READONLY, MMIO, 0x4000_1234, 0, 0x8020_0000, 0x8000_5000, 1 << 39):
            mine = stage2(lambda at: int.from_bytes(held.read(Space.MA, at, 8), "little"), vttbr, vtcr, ipa)
            plugin = held.translate(ipa)
            assert (plugin.ma, plugin.pte) == (mine.ma, mine.pte)
            checked += 1

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert checked == 9


def test_requests_that_cannot_be_met_say_why_and_hurt_nobody(lockstep: Lockstep) -> None:
    refused: list[str] = []

    def handler(held: Held) -> None:
        if refused:
            return
        for request in (
            lambda: held.read_register("x99"),
            lambda: held.read_ipa(0x8020_0000, 8),
            lambda: held.read_ipa(MMIO, 8),  # device memory: reading has side effects
            lambda: held.read(Space.MA, 0x0E10_0000, 8),  # secure RAM
            lambda: held.read(Space.MA, ARG, 2 << 20),
        ):
            with pytest.raises(TraceError) as caught:
                request()
            refused.append(caught.value.what)

    assert lockstep.run(handler, hold=CALLS)[0] == 0
    assert [text.split(": ")[1][:20] for text in refused] == [
        "no such register, or",
        "the address is not m",
        "the address is not m",
        "the memory there can",
        "at most 1048576 at a",
    ]


@pytest.mark.parametrize(("stop", "text"), [(True, "stopping the board"), (False, "the board goes on without it")])
def test_a_consumer_that_dies_never_hangs_the_board(lockstep: Lockstep, stop: bool, text: str) -> None:
    path = lockstep.bench.folder / f"died{stop}.mct"

    def handler(held: Held) -> None:
        if held.event.seq > 20:
            raise ZeroDivisionError

    errors: list[str] = []
    with LiveConsumer(lockstep.socket, hold=CALLS) as consumer:
        options = PluginOptions(out=path, lockstep=lockstep.socket, stop_on_loss=stop)
        board = lockstep.bench.start(options, rounds=10_000_000 if stop else 50)
        consumer.accept(IDLE_S)
        with pytest.raises(ZeroDivisionError):
            consumer.serve(handler)
        errors.append(board.communicate(timeout=IDLE_S)[1])
    assert "the lock-step consumer is gone: it closed its socket" in errors[0] and text in errors[0]
    reader = Reader(path)
    assert sum(1 for _ in reader.events()) > 21 and reader.segments[0].complete  # recording went on to the end


def test_a_silent_consumer_is_given_up(lockstep: Lockstep) -> None:
    with LiveConsumer(lockstep.socket, hold=CALLS) as consumer:
        options = PluginOptions(lockstep=lockstep.socket, timeout_s=0.3)
        board = lockstep.bench.start(options, rounds=10_000_000)
        consumer.accept(IDLE_S)
        next(consumer.events())
        stderr = board.communicate(timeout=IDLE_S)[1]
    assert "the lock-step consumer is gone: no answer in time; stopping the board" in stderr


def test_a_consumer_may_leave_or_stop_the_board(lockstep: Lockstep) -> None:
    code, stderr = lockstep.run(lambda held: held.detach(), hold=CALLS, rounds=20)
    assert code == 0 and "gone" not in stderr
    stopped = threading.Event()

    def stop(held: Held) -> None:
        if held.waiting and not stopped.is_set():
            stopped.set()
            held.stop()

    stderr = lockstep.run(stop, hold=CALLS, rounds=10_000_000)[1]
    assert "the lock-step consumer asked for it; stopping the board" in stderr

# SPDX-License-Identifier: GPL-2.0-or-later
"""Places for boards: bounded over processes, free again whatever way a process ends."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from framework.common.locks import flock
from framework.target.slots import CLONE_BYTES, BoardSlots, slots


@pytest.mark.parametrize(
    ("smp", "cores", "memory", "expected"),
    [(2, 2, 64 << 30, 2), (2, 8, 64 << 30, 8), (1, 2, 64 << 30, 4), (2, 64, 3 * CLONE_BYTES, 3), (4, 1, 0, 1)],
)
def test_places_follow_cores_and_memory(smp, cores, memory, expected):
    assert slots(smp, cores=cores, memory=memory) == expected


def _work(folder, size, inside, most, rounds):
    slots = BoardSlots(size, folder)
    for _ in range(rounds):
        with slots.slot():
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            with inside.get_lock():
                inside.value -= 1


def test_twenty_processes_never_hold_more_than_the_places(tmp_path):
    context = multiprocessing.get_context("fork")
    inside, most = context.Value("i", 0), context.Value("i", 0)
    crowd = [context.Process(target=_work, args=(tmp_path, 2, inside, most, 3)) for _ in range(20)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert {process.exitcode for process in crowd} == {0}
    assert 1 <= most.value <= 2


def _hold(folder, ready):
    with BoardSlots(1, folder).slot():
        ready.set()
        signal.pause()


def test_the_place_of_a_killed_process_is_free_again(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    said = []

    def free(text):
        said.append(text)
        os.kill(holder.pid, signal.SIGKILL)

    with BoardSlots(1, tmp_path, free).slot():
        assert said == ["all 1 slots for boards are taken; waiting for one"]
    holder.join(30)


def _free(folder):
    try:
        with flock(folder / "slot-0", exclusive=True, wait=False):
            return True
    except BlockingIOError:
        return False


def test_a_process_never_waits_for_itself(tmp_path):
    said = []
    slots = BoardSlots(1, tmp_path, said.append)
    with slots.slot():
        with slots.slot():
            assert not _free(tmp_path)
        assert not _free(tmp_path), "the inner one took the outer one's slot along"
    assert _free(tmp_path)
    with slots.slot():
        assert not _free(tmp_path)
    assert not said

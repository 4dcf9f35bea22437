# SPDX-License-Identifier: GPL-2.0-or-later
"""Boards whose probes wait already: a stimulus in a fraction of a second.

    boards = TargetProvider(stack, spec)
    with waiting_probes(boards, folder) as (target, (probe,)):
        assert probe.smc(CALLS_UID)[:4] == OPTEE_MSG_UID
    assert not check_file(target.trace).failed

The trace begins with the domains' creation, recorded when the snapshot was made
(:attr:`framework.target.checkpoints.Checkpoint.probes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.probe import waiting
from framework.probe.client import Probe
from framework.probe.link import DoorbellServer
from framework.target.checkpoints import PROBE, Checkpoint
from framework.target.provider import TargetProvider
from framework.target.target import Target


@contextmanager
def waiting_probes(
    boards: TargetProvider, folder: Path, checkpoint: Checkpoint | str = PROBE, *, trace: bool = True
) -> Iterator[tuple[Target, list[Probe]]]:
    """Yield a clone of ``probe``, ``probe_pair`` or ``probe_smp`` and its probes, which take programs by doorbell.

    ``folder`` receives its logs and, with ``trace``, ``trace/board.trace``. Raises what
    :meth:`framework.target.provider.TargetProvider.clone` raises.
    """
    with (
        DoorbellServer() as bells,
        boards.clone(folder, checkpoint, trace=trace, lockstep=bells.socket) as target,
    ):
        yield target, take_over(target, bells)


def take_over(target: Target, bells: DoorbellServer) -> list[Probe]:
    """Return the probes that wait on a board, in the order of their creation; ``bells`` is its lock-step consumer."""
    return waiting.take_over(target.notes["probes"], bells)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed of a probe guest: programs and calls a second through the doorbell; every sample is a new clone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from framework.artifacts.cache import BuildCache
from framework.bench.context import Context
from framework.board.spec import BoardSpec
from framework.common.errors import InfrastructureError
from framework.common.paths import cache_root
from framework.probe.build import build_probe
from framework.probe.client import Probe, create_probe
from framework.probe.link import DoorbellServer
from framework.probe.ops import Call
from framework.target.provider import TargetProvider
from mediator_ref.abi import CALLS_UID, OPTEE_MSG_UID

CALLS = 4000
"""Calls of one sample."""

BATCH = 50
"""Calls in one program of the batched measurement."""

_SAMPLES = 5
_WARM_UP = 200


def ask(probe: Probe, calls: int, batch: int = 1) -> float:
    """Calls a second of CALLS_UID, ``batch`` of them in a program. Raises InfrastructureError when an answer is not
    OP-TEE's: then nothing was measured."""
    ops = [Call((CALLS_UID,))] * batch
    wrong = 0
    begin = time.perf_counter()
    for _ in range(calls // batch):
        wrong += sum(record.regs[:4] != OPTEE_MSG_UID for record in probe.run(*ops))
    seconds = time.perf_counter() - begin
    if wrong:
        raise InfrastructureError(f"{wrong} of {calls} answers were not OP-TEE's", where=probe.name)
    return calls // batch * batch / seconds


def _rates(context: Context, batch: int) -> list[float]:
    boards = TargetProvider(context.stack(), BoardSpec.load("default"), context.progress.say)
    image = build_probe(BuildCache(cache_root()))
    found = []
    for _ in range(_SAMPLES):
        with (
            tempfile.TemporaryDirectory(prefix="medcheck-bench-") as name,
            DoorbellServer() as bells,
            boards.clone(Path(name), "dom0", lockstep=bells.socket) as target,
        ):
            probe = create_probe(target.dom0, "probe0", "guest0", target.board.consoles["guest0"], image)
            probe.transport = bells.transport(probe.domid)
            ask(probe, _WARM_UP, batch)
            found.append(ask(probe, CALLS, batch))
            context.progress.say(f"{found[-1]:.0f} calls/s, {batch} in a program")
    return found


def probe_calls(batch: int = 1) -> Callable[[Context], list[float]]:
    """A benchmark: calls a second with ``batch`` of them in each program."""
    return lambda context: _rates(context, batch)

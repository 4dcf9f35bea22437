"""How fast a clone is there, and what it takes; every sample is a new clone of the cached template."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from framework.bench.context import Context
from framework.board.clone import clone
from framework.board.hostspeed import host_factor
from framework.board.spec import BoardSpec
from framework.board.template import TemplateStore
from framework.moments import READY, template
from framework.session import Session

SAMPLES = 50
_IDLE_SECONDS = 2.0


Look = Callable[[Session, Callable[[], float]], float]
"""What to measure of a clone that runs, given the seconds since it was asked for."""


def running(_session: Session, seconds: Callable[[], float]) -> float:
    """Seconds until the virtual CPUs run, the template's check included."""
    return seconds()


def answer(session: Session, seconds: Callable[[], float]) -> float:
    """Seconds until dom0 has executed a command and its answer is here."""
    # The quotes keep the echo of the typed line from looking like the answer.
    session.dom0.console.sendline('echo ans""wer')
    session.dom0.console.expect([rb"answer\r?\n"], idle_timeout=30)
    return seconds()


def smc(session: Session, seconds: Callable[[], float]) -> float:
    """Seconds until a domU's xtest has opened a session, invoked it and closed it again: dozens of SMCs."""
    console = next(iter(session.guests.values())).console
    console.sendline("xtest -t regression 1002")
    console.expect([rb"regression_1002 OK"], idle_timeout=30)
    return seconds()


def private(session: Session, _seconds: Callable[[], float]) -> float:
    """Megabytes that a clone has for itself while its guests idle."""
    time.sleep(_IDLE_SECONDS)
    return _anonymous_mb(session)


def private_busy(session: Session, _seconds: Callable[[], float]) -> float:
    """Megabytes that a clone has for itself after xtest 1001 and 1004 in a domU."""
    console = next(iter(session.guests.values())).console
    for case in ("1001", "1004"):
        console.sendline(f"xtest -t regression {case}")
        console.expect([rb"TEE test application done!"], idle_timeout=60)
    return _anonymous_mb(session)


def _anonymous_mb(session: Session) -> float:
    rollup = Path(f"/proc/{session.board.pid}/smaps_rollup").read_text()
    # Not Private_*: those count pages of the template and of QEMU's binary that only this clone has mapped.
    found = re.findall(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    return sum(map(int, found)) * 1024 / 1e6


def clones(look: Look, samples: int = SAMPLES, at_once: int = 1) -> Callable[[Context], list[float]]:
    """A benchmark: ``samples`` clones, always ``at_once`` of them side by side."""
    return lambda context: _measure(context, look, samples, at_once)


def _measure(context: Context, look: Look, samples: int, at_once: int) -> list[float]:
    stack, spec = context.stack(), BoardSpec.load("default")
    templates = TemplateStore(progress=context.progress)
    with template(templates, spec, stack, READY, context.progress):
        host_factor()

    def sample(_number: int) -> float:
        with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
            begin = time.monotonic()
            with template(templates, spec, stack, READY) as found:
                board = clone(found, spec, stack, Path(folder))
            with Session(spec, stack, Path(folder), board=board) as session:
                session.adopt(found.about, wake=False)
                return look(session, lambda: time.monotonic() - begin)

    with ThreadPoolExecutor(at_once) as workers:
        return list(workers.map(sample, range(samples)))

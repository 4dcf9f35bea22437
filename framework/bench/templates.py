"""How fast a clone is there, and what it takes; every sample is a new clone of the cached template."""

from __future__ import annotations

import re
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from framework.artifacts.stack import Overrides
from framework.board.clone import clone
from framework.board.hostspeed import host_factor
from framework.board.spec import BoardSpec
from framework.board.template import TemplateStore
from framework.moments import READY, template
from framework.progress import Progress
from framework.session import Session, open_store, prepare_stack

SAMPLES = 20
_IDLE_SECONDS = 2.0


class Context(Protocol):
    """What a benchmark may use (:class:`framework.bench.run.Context`)."""

    @property
    def options(self) -> Namespace:
        """The command line."""

    @property
    def overrides(self) -> Overrides:
        """The user's own parts."""

    @property
    def progress(self) -> Progress:
        """Who is told."""


def clone_running(context: Context) -> list[float]:
    """Seconds until the virtual CPUs run, the template's check included."""
    return _measure(context, lambda _session, seconds: seconds())


def clone_answer(context: Context) -> list[float]:
    """Seconds until dom0 has executed a command and its answer is here."""

    def answer(session: Session, seconds: Callable[[], float]) -> float:
        # The quotes keep the echo of the typed line from looking like the answer.
        session.dom0.console.sendline('echo ans""wer')
        session.dom0.console.expect([rb"answer\r?\n"], idle_timeout=30)
        return seconds()

    return _measure(context, answer)


def clone_smc(context: Context) -> list[float]:
    """Seconds until a domU has run xtest 1004, connecting to it over SSH included."""

    def smc(session: Session, seconds: Callable[[], float]) -> float:
        guest = next(iter(session.guests.values()))
        guest.ssh.run("xtest -t regression 1004").check()
        return seconds()

    return _measure(context, smc, samples=SAMPLES // 2)


def clone_private(context: Context) -> list[float]:
    """Megabytes that a clone has for itself while its guests idle."""

    def private(session: Session, _seconds: Callable[[], float]) -> float:
        time.sleep(_IDLE_SECONDS)
        rollup = Path(f"/proc/{session.board.pid}/smaps_rollup").read_text()
        # Not Private_*: those count pages of the template and of QEMU's binary that only this clone has mapped.
        found = re.findall(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
        return sum(map(int, found)) * 1024 / 1e6

    return _measure(context, private, samples=5)


def _measure(
    context: Context, look: Callable[[Session, Callable[[], float]], float], samples: int = SAMPLES
) -> list[float]:
    store = open_store(context.options.offline, context.options.mirror, context.progress)
    stack = prepare_stack(context.overrides, store, context.progress)
    spec = BoardSpec.load("default")
    templates = TemplateStore(progress=context.progress)
    with template(templates, spec, stack, READY, context.progress):
        host_factor()
    values = []
    for _ in range(samples):
        with tempfile.TemporaryDirectory(prefix="medcheck-bench-") as folder:
            begin = time.monotonic()
            with template(templates, spec, stack, READY) as found:
                board = clone(found, spec, stack, Path(folder))
            with Session(spec, stack, Path(folder), board=board) as session:
                session.adopt(found.about, wake=False)
                values.append(look(session, lambda since=begin: time.monotonic() - since))  # type: ignore[misc]
    return values

"""Fixtures of the project's own board tests: probe guests, and what a test says about listed deviations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from framework.artifacts.stack import Stack
    from framework.guests.probe import Probe
    from framework.session import Session

MakeProbe = Callable[..., "Probe"]


class ProbeBoard:
    """A board with dom0 alone, booted at first use and again after a test that left it dead."""

    def __init__(self, stack: Stack, logs: Path) -> None:
        self._stack = stack
        self._logs = logs
        self._boots = 0
        self._session: Session | None = None

    def session(self) -> Session:
        """A board that is alive."""
        from framework.board.spec import BoardSpec
        from framework.progress import Silent
        from framework.session import Session

        if self._session is not None and not (self._session.board.alive and self._healthy(self._session)):
            self.discard()
        if self._session is None:
            self._boots += 1
            session = Session(BoardSpec.load("probe"), self._stack, self._logs / f"probe-{self._boots}")
            try:
                session.boot(Silent())
            except BaseException:
                session.close()
                raise
            self._session = session
        return self._session

    def discard(self) -> None:
        """End the board; the next test boots a fresh one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @staticmethod
    def _healthy(session: Session) -> bool:
        return not any(problem.fatal for problem in session.board.problems)


@pytest.fixture(scope="session")
def probe_board(request: pytest.FixtureRequest, stack: Stack) -> Iterator[ProbeBoard]:
    """The board that all probe guests of this process share."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    board = ProbeBoard(stack, request.config.getoption("board_logs") / f"{worker}-{os.getpid()}")
    yield board
    board.discard()


@pytest.fixture(scope="session")
def probe_image() -> Path:
    """The probe guest, built from ``images/probe``."""
    from framework.artifacts.cache import BuildCache
    from framework.guests.probe_build import build_probe
    from framework.paths import cache_root

    return build_probe(BuildCache(cache_root()))


@pytest.fixture
def probe_session(probe_board: ProbeBoard) -> Session:
    """The board under this test's probes."""
    return probe_board.session()


@pytest.fixture
def make_probe(probe_session: Session, probe_image: Path) -> Iterator[MakeProbe]:
    """Make a fresh probe domain: ``make_probe(name, vcpus, memory_mib, tee)``; all are destroyed afterwards."""
    from framework.guests.probe import create_probe

    made: list[Probe] = []

    def make(name: str = "probe0", vcpus: int = 1, memory_mib: int = 32, tee: bool = True) -> Probe:
        port = f"guest{len(made)}"
        probe = create_probe(
            probe_session.dom0, name, port, probe_session.board.consoles[port], probe_image, vcpus, memory_mib, tee
        )
        made.append(probe)
        return probe

    yield make
    if not probe_session.board.alive or any(problem.fatal for problem in probe_session.board.problems):
        return
    for probe in made:
        if probe_session.dom0.xl.find(probe.domid) is not None:
            probe_session.dom0.xl.destroy(probe.domid)


@pytest.fixture
def probe(make_probe: MakeProbe) -> Probe:
    """A probe guest of its own for the test, with one virtual CPU."""
    return make_probe()


@pytest.fixture
def probe_pair(make_probe: MakeProbe) -> tuple[Probe, Probe]:
    """Two probe guests on one board."""
    return make_probe("probe0"), make_probe("probe1")


@pytest.fixture
def expendable_probe(make_probe: MakeProbe, probe_board: ProbeBoard) -> Iterator[Probe]:
    """A probe guest whose test may leave the mediator, Xen or OP-TEE in ruins: the board is thrown away."""
    yield make_probe()
    probe_board.discard()


class Deviations:
    """What a test says about the list of known deviations; it goes into the report of the test."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def seen(self, name: str, evidence: str) -> None:
        """The deviation's observable appeared. Raises KeyError for one that is not on the list."""
        from mediator_ref.deviations import DEVIATIONS

        title = DEVIATIONS[name].title
        self._node.user_properties.append(("deviation", f"{name}: {title}: {evidence}"))


@pytest.fixture
def deviations(request: pytest.FixtureRequest) -> Deviations:
    """The list of known deviations."""
    return Deviations(request.node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the deviations that were seen: a passing test must not hide them."""
    seen = {
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "deviation"
    }
    if seen:
        terminalreporter.section("known deviations seen")
        for line in sorted(map(str, seen)):
            terminalreporter.line(line)

"""The pytest plugin: booted boards as fixtures. Heavy imports happen inside fixtures, so collecting stays instant.

Fixtures, from wide to narrow: ``stack`` (files), ``live`` (a booted :class:`~framework.session.Session` shared by the
tests of one pytest process), ``board``, ``dom0``, ``domus`` (all Linux guests), ``domu`` (the first of them).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from framework.artifacts.stack import Overrides, Stack
    from framework.board.board import Board
    from framework.guests.dom0 import Dom0
    from framework.guests.linux import LinuxGuest
    from framework.session import Session

_PARTS = {
    "xen": "Xen image to test instead of the pinned build",
    "xen-syms": "symbols of --xen",
    "optee": "folder with tee-{header,pager,pageable}_v2.bin",
    "kernel": "arm64 Image for dom0 and domUs",
    "kernel-modules": "modules of --kernel",
    "xtest-root": "folder with usr/bin/xtest and its TAs",
}
_MARKERS = {
    "board": "needs a booted board (given automatically to users of the board's fixtures)",
    "artifacts": "needs fetched artifacts, but no booted board",
    "slow": "takes minutes",
    "rule(id, ...)": "the requirements, rules and deviations that the test exercises",
}
_BOARD_FIXTURES = {"live", "board", "dom0", "domu", "domus"}
_TAIL_LINES = 25

_session_key = pytest.StashKey["Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options to choose the board and the parts under test."""
    group = parser.getgroup("medcheck", "boards with Xen and OP-TEE")
    group.addoption("--board", default="default", help="board: a name of `medcheck boards` or a YAML file")
    group.addoption("--domus", type=int, default=None, help="number of Linux domUs")
    group.addoption("--xen-variant", default="debug", help="the pinned Xen's build: debug or release")
    for name, text in _PARTS.items():
        group.addoption(f"--{name}", type=Path, default=None, metavar="PATH", help=text)
    group.addoption("--board-logs", type=Path, default=Path("reports/tests"), help="where boards keep their logs")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for name, text in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a board's fixture carries the ``board`` marker, so that ``-m "not board"`` works."""
    for item in items:
        if _BOARD_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.board)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed board test shows the end of every console and what was recognised there."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    session = item.session.stash.get(_session_key, None)
    if session is None or not report.failed or item.get_closest_marker("board") is None:
        return
    for problem in session.board.problems:
        report.sections.append((f"console {problem.console}: {problem.kind}", problem.line))
    for name, console in session.board.consoles.items():
        report.sections.append((f"console {name} ({console.log})", "\n".join(console.tail(_TAIL_LINES))))


def overrides_of(config: pytest.Config) -> Overrides:
    """The user's own parts, as given to pytest."""
    from framework.artifacts.stack import Overrides

    given = {name.replace("-", "_"): config.getoption(name.replace("-", "_")) for name in _PARTS}
    return Overrides(
        xen_variant=config.getoption("xen_variant"),
        **{key: path.absolute() if path else None for key, path in given.items()},
    )


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Stack:
    """The files of the stack under test; fetched and built first if that is allowed."""
    from framework.progress import Silent
    from framework.session import open_store, prepare_stack

    offline = os.environ.get("MEDCHECK_OFFLINE") == "1"
    return prepare_stack(overrides_of(request.config), open_store(offline=offline), Silent())


@pytest.fixture(scope="session")
def live(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Session]:
    """A cold-booted board with all its guests ready, shared by the tests of this process."""
    from framework.board.spec import BoardSpec
    from framework.progress import Silent
    from framework.session import Session, with_guests

    spec = with_guests(BoardSpec.load(request.config.getoption("board")), request.config.getoption("domus"))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    logs = request.config.getoption("board_logs") / f"{worker}-{os.getpid()}"
    with Session(spec, stack, logs) as session:
        request.session.stash[_session_key] = session
        session.boot(Silent())
        yield session


@pytest.fixture
def board(live: Session) -> Board:
    """The running board; a test that finds it dead fails at once, with the reason."""
    live.check_alive()
    return live.board


@pytest.fixture
def dom0(live: Session, board: Board) -> Dom0:  # noqa: ARG001 - the board is checked first
    """The control domain."""
    return live.dom0


@pytest.fixture
def domus(live: Session, board: Board) -> dict[str, LinuxGuest]:  # noqa: ARG001
    """All Linux guests by name."""
    return dict(live.guests)


@pytest.fixture
def domu(domus: dict[str, LinuxGuest]) -> LinuxGuest:
    """The first Linux guest."""
    return next(iter(domus.values()))


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a folder: readable, safe, at most 120 characters."""
    return re.sub(r"[^\w.\[\]-]+", "_", nodeid)[-120:].strip("_")


@pytest.fixture
def results_dir(request: pytest.FixtureRequest) -> Path:
    """A folder for what a test wants to keep, named after the test's id."""
    folder: Path = request.config.getoption("board_logs") / folder_name(request.node.nodeid)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

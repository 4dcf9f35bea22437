"""The pytest plugin: booted boards as fixtures. Heavy imports happen inside fixtures, so collecting stays instant.

The ladder of boards: ``board`` is a fresh clone for each test and the default; ``module_board`` a clone that a module's
tests share; ``cold_board`` boots from power-on. Each has its :class:`~framework.target.target.Target` (``target``,
``module_target``, ``cold_target``); ``dom0``, ``domus`` (all Linux guests), ``domu`` (the first) belong to ``board``.
Clones come from a snapshot that is made at first use and cached (``boards``); ``stack``, ``spec``: what is tested.

Under pytest-xdist each worker has its own ``boards``; how many run at once over all of them, the slots decide.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework.artifacts.overrides import add_options

if TYPE_CHECKING:
    from framework.artifacts.stack import Overrides, Stack
    from framework.board.board import Board
    from framework.board.spec import BoardSpec
    from framework.guests.dom0 import Dom0
    from framework.guests.linux import LinuxGuest
    from framework.target.provider import SharedBoard, TargetProvider
    from framework.target.target import Target

_MARKERS = {
    "board": "needs a booted board (given automatically to users of the board's fixtures)",
    "artifacts": "needs fetched artifacts, but no booted board",
    "slow": "takes minutes",
    "nightly": "takes many minutes: left to the nightly run; `medcheck test` asks for it only with an -m of your own",
    "checkpoint(which)": "where the test's clone begins: ready (default), dom0 or a Checkpoint",
    "traced": "every SMC of the test's board is recorded",
    "rule(id, ...)": "the requirements, rules and deviations that the test exercises",
}
_BOARD_FIXTURES = {
    "target",
    "board",
    "dom0",
    "domu",
    "domus",
    "module_target",
    "module_board",
    "cold_target",
    "cold_board",
}
_TAIL_LINES = 25

_session_key = pytest.StashKey["Target"]()
_failed_key = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options to choose the board and the parts under test."""
    group = parser.getgroup("medcheck", "boards with Xen and OP-TEE")
    group.addoption("--board", default="default", help="board: a name of `medcheck boards` or a YAML file")
    group.addoption("--domus", type=int, default=None, help="number of Linux domUs")
    add_options(group.addoption, "--", argparse.ArgumentTypeError)
    group.addoption("--board-logs", type=Path, default=Path("reports/tests"), help="where boards keep their logs")
    group.addoption("--save-on-failure", action="store_true", help="keep a failed test's board, for `medcheck resume`")
    group.addoption(
        "--board-source",
        choices=("clone", "cold-shared"),
        default="clone",
        help="clone (default): each test has a board of its own; cold-shared: for measurements, one cold-booted "
        "board for all tests, booted anew after a test that failed or broke it",
    )


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
    if report.failed:
        item.stash[_failed_key] = True
    target = item.stash.get(_session_key, None)
    if target is None or not report.failed or item.get_closest_marker("board") is None:
        return
    for problem in target.board.problems:
        report.sections.append((f"console {problem.console}: {problem.kind}", problem.line))
    for name, console in target.board.consoles.items():
        report.sections.append((f"console {name} ({console.log})", "\n".join(console.tail(_TAIL_LINES))))


def overrides_of(config: pytest.Config) -> Overrides:
    """The user's own parts, as given to pytest."""
    from framework.artifacts.stack import Overrides

    return Overrides.given(vars(config.option))


@contextmanager
def _wrong_use(config: pytest.Config) -> Iterator[None]:
    """A wrong option concerns all tests alike: it is said once, and the run ends as with an option of pytest's own."""
    from framework.common.errors import UsageError

    try:
        yield
    except UsageError as error:
        # A worker of pytest-xdist that ends its run counts as crashed.
        if hasattr(config, "workerinput"):
            raise
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Stack:
    """The files of the stack under test; fetched and built first if that is allowed."""
    from framework.common.progress import Silent
    from framework.target.stack import open_store, prepare_stack

    offline = os.environ.get("MEDCHECK_OFFLINE") == "1"
    with _wrong_use(request.config):
        return prepare_stack(overrides_of(request.config), open_store(offline=offline), Silent())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Say once, before there are workers, which would say it for each test, that there is no such board."""
    _spec(config)


def _spec(config: pytest.Config) -> BoardSpec:
    from framework.board.spec import BoardSpec
    from framework.target.stack import with_guests

    with _wrong_use(config):
        return with_guests(BoardSpec.load(config.getoption("board")), config.getoption("domus"))


@pytest.fixture(scope="session")
def spec(request: pytest.FixtureRequest) -> BoardSpec:
    """The board under test, as chosen by ``--board`` and ``--domus``."""
    return _spec(request.config)


@pytest.fixture(scope="session")
def boards(request: pytest.FixtureRequest, stack: Stack, spec: BoardSpec) -> TargetProvider:
    """The maker of boards for this process."""
    from framework.target.provider import TargetProvider

    with _wrong_use(request.config):
        return TargetProvider(stack, spec, _speaker(request.config))


def _speaker(config: pytest.Config) -> Callable[[str], None]:
    """How fixtures tell a waiting person something at once, whatever pytest captures."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist writes its terminal's output to nowhere; its standard error is that of pytest.
    worker = getattr(config, "workerinput", {}).get("workerid")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if worker:
                sys.stderr.write(f"[{worker}] {text}\n")
                sys.stderr.flush()
            elif reporter:
                reporter.ensure_newline()
                reporter.write_line(text)

    return say


@pytest.fixture
def lockstep_socket() -> Path | None:
    """Where somebody listens to the test's board in lock-step: nobody does. Override it to listen."""
    return None


@pytest.fixture
def target(request: pytest.FixtureRequest, boards: TargetProvider, lockstep_socket: Path | None) -> Iterator[Target]:
    """A target of the test's own: a fresh clone with all guests up, gone without trace afterwards.

    Markers: ``checkpoint(...)`` clones another one (a name or a :class:`~framework.target.checkpoints.Checkpoint`);
    ``traced`` records every SMC from the clone's first instruction.
    """
    from framework.target.checkpoints import get_checkpoint

    node = request.node
    wanted = node.get_closest_marker("checkpoint")
    checkpoint = get_checkpoint(wanted.args[0] if wanted else "ready")
    traced = node.get_closest_marker("traced") is not None
    if request.config.getoption("board_source") == "clone" or lockstep_socket is not None:
        lent = boards.clone(_folder(request), checkpoint, trace=traced, lockstep=lockstep_socket)
    else:
        shared: SharedBoard = request.getfixturevalue("_shared_board")
        lent = shared.lend(checkpoint, trace=traced, failed=lambda: node.stash.get(_failed_key, False))
    with lent as target:
        yield from _lent(request, target)


@pytest.fixture(scope="session")
def _shared_board(request: pytest.FixtureRequest, boards: TargetProvider) -> Iterator[SharedBoard]:
    """The board of ``--board-source cold-shared``."""
    from framework.target.provider import SharedBoard

    logs: Path = request.config.getoption("board_logs")
    shared = SharedBoard(boards, logs / "shared")
    yield shared
    shared.close()
    reasons = ", ".join(f"{count} because {reason}" for reason, count in shared.boots.items())
    _speaker(request.config)(f"shared board: {shared.boots.total()} boots for {shared.tests} tests ({reasons})")


@pytest.fixture(scope="module")
def module_target(request: pytest.FixtureRequest, boards: TargetProvider) -> Iterator[Target]:
    """A clone that the tests of a module share."""
    with boards.clone(_folder(request), "ready") as target:
        yield target


@pytest.fixture
def cold_target(request: pytest.FixtureRequest, boards: TargetProvider) -> Iterator[Target]:
    """A board booted from power-on for this test, all guests ready."""
    with boards.cold(_folder(request)) as target:
        yield from _lent(request, target)


@pytest.fixture
def board(target: Target) -> Board:
    """The test's own running board; a test that finds it dead fails at once, with the reason."""
    target.check_alive()
    return target.board


@pytest.fixture
def module_board(request: pytest.FixtureRequest, module_target: Target) -> Board:
    """The module's running board; dead for all of them once one test has killed it."""
    request.node.stash[_session_key] = module_target
    module_target.check_alive()
    return module_target.board


@pytest.fixture
def cold_board(cold_target: Target) -> Board:
    """A board that was booted from power-on for this test."""
    return cold_target.board


@pytest.fixture
def dom0(target: Target, board: Board) -> Dom0:  # noqa: ARG001 - the board is checked first
    """The control domain of the test's own board."""
    return target.dom0


@pytest.fixture
def domus(target: Target, board: Board) -> dict[str, LinuxGuest]:  # noqa: ARG001
    """All Linux guests of the test's own board by name."""
    return dict(target.guests)


@pytest.fixture
def domu(domus: dict[str, LinuxGuest]) -> LinuxGuest:
    """The first Linux guest."""
    return next(iter(domus.values()))


def _lent(request: pytest.FixtureRequest, target: Target) -> Iterator[Target]:
    """Let a test have a session; keep its state if the test failed and that was asked for."""
    node = request.node
    node.stash[_session_key] = target
    yield target
    if node.stash.get(_failed_key, False) and request.config.getoption("save_on_failure"):
        from framework.target.postmortem import keep

        identity = keep(target, node.nodeid)
        node.add_report_section("teardown", "kept board", f"medcheck resume {identity}")
        _speaker(request.config)(f"{node.nodeid}: kept; bring it back with `medcheck resume {identity}`")


def _folder(request: pytest.FixtureRequest) -> Path:
    """Where a board of this test or module keeps its logs."""
    logs: Path = request.config.getoption("board_logs")
    return logs / folder_name(request.node.nodeid)


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a folder: readable, safe, at most 120 characters, one for each id."""
    name = re.sub(r"[^\w.\[\]-]+", "_", nodeid).strip("_")
    if len(name) <= 120:
        return name
    return f"{name[-110:]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"


@pytest.fixture
def results_dir(request: pytest.FixtureRequest) -> Path:
    """A folder for what a test wants to keep, named after the test's id."""
    folder: Path = request.config.getoption("board_logs") / folder_name(request.node.nodeid)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

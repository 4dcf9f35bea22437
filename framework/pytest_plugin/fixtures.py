# SPDX-License-Identifier: GPL-2.0-or-later
"""Boards as fixtures.

Kinds of boards: ``board`` is a fresh clone for each test and the default; ``module_board`` a clone that a module's
tests share; ``cold_board`` boots from power-on. Each has its :class:`~framework.target.target.Target` (``target``,
``module_target``, ``cold_target``); ``dom0``, ``domus`` (all Linux guests), ``domu`` (the first) belong to ``board``.
Clones come from a snapshot that is made at first use and cached (``target_provider``); ``stack``, ``spec``: what is
tested.

Under pytest-xdist each worker has its own ``target_provider``; how many run at once over all of them, the slots decide.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.pytest_plugin.options import overrides_of, say, spec_of, wrong_use
from framework.pytest_plugin.verdict import add_trace

if TYPE_CHECKING:
    from framework.artifacts.stack import Stack
    from framework.board.board import Board
    from framework.board.spec import BoardSpec
    from framework.guests.dom0 import Dom0
    from framework.guests.linux import LinuxGuest
    from framework.probe.link import DoorbellServer
    from framework.target.provider import SharedBoard, TargetProvider
    from framework.target.target import Target

target_key = pytest.StashKey["Target"]()
"""The target that a test has, for its report."""
failed_key = pytest.StashKey[bool]()
"""Whether a phase of the test has failed."""
before_run_key = pytest.StashKey[Callable[["Board"], object]]()
"""In a configuration's stash: what gets each restored board before its first instruction."""


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, spec: BoardSpec) -> Stack:
    """The files of the stack under test; fetched and built first if that is allowed."""
    from framework.common.progress import Silent
    from framework.target.stack import open_store, prepare_stack

    offline = os.environ.get("MEDCHECK_OFFLINE") == "1"
    with wrong_use(request.config):
        return prepare_stack(overrides_of(request.config), open_store(offline=offline), Silent(), cpu=spec.cpu)


@pytest.fixture(scope="session")
def spec(request: pytest.FixtureRequest) -> BoardSpec:
    """The board under test, as chosen by ``--mc-board`` and ``--mc-domus``."""
    return spec_of(request.config)


@pytest.fixture(scope="session")
def target_provider(request: pytest.FixtureRequest, stack: Stack, spec: BoardSpec) -> TargetProvider:
    """The maker of boards for this process."""
    from framework.target.provider import TargetProvider

    with wrong_use(request.config):
        return TargetProvider(stack, spec, say(request.config), request.config.stash.get(before_run_key, None))


@pytest.fixture
def doorbells() -> Iterator[DoorbellServer]:
    """The doorbells of the test's board, which runs in lock-step: its probes do 2000 programs a second."""
    from framework.probe.link import DoorbellServer

    with DoorbellServer() as bells:
        yield bells


@pytest.fixture
def lockstep_socket(request: pytest.FixtureRequest) -> Path | None:
    """The socket of the consumer that follows the test's board in lock-step: the doorbells', where a test has them.

    Override it to follow the board yourself.
    """
    if "doorbells" not in request.fixturenames:
        return None
    bells: DoorbellServer = request.getfixturevalue("doorbells")
    return bells.socket


@pytest.fixture
def target(
    request: pytest.FixtureRequest, target_provider: TargetProvider, lockstep_socket: Path | None
) -> Iterator[Target]:
    """A target of the test's own: a fresh clone with all guests up, removed completely afterwards.

    Markers: ``mc_checkpoint(...)`` clones another one (a name or a :class:`~framework.target.checkpoints.Checkpoint`);
    ``mc_traced`` records every SMC from the clone's first instruction, and has the checker judge them.
    """
    from framework.target.checkpoints import get_checkpoint

    node = request.node
    wanted = node.get_closest_marker("mc_checkpoint")
    checkpoint = get_checkpoint(wanted.args[0] if wanted else "ready")
    traced = _traced(request)
    shares = request.config.getoption("mc_board_source") != "clone" and lockstep_socket is None
    if shares:
        shared: SharedBoard = request.getfixturevalue("_shared_board")
        lent = shared.lend(checkpoint, trace=traced, failed=lambda: node.stash.get(failed_key, False))
    else:
        lent = target_provider.clone(folder_of(request), checkpoint, trace=traced, lockstep=lockstep_socket)
    with lent as target:
        yield from _lent(request, target, ended=not shares)


@pytest.fixture(scope="session")
def _shared_board(request: pytest.FixtureRequest, target_provider: TargetProvider) -> Iterator[SharedBoard]:
    """The board of ``--mc-board-source cold-shared``."""
    from framework.target.provider import SharedBoard

    logs: Path = request.config.getoption("mc_board_logs")
    shared = SharedBoard(target_provider, logs / "shared")
    yield shared
    shared.close()
    reasons = ", ".join(f"{count} because {reason}" for reason, count in shared.boots.items())
    say(request.config)(f"shared board: {shared.boots.total()} boots for {shared.tests} tests ({reasons})")


@pytest.fixture(scope="module")
def module_target(request: pytest.FixtureRequest, target_provider: TargetProvider) -> Iterator[Target]:
    """A clone that the tests of a module share; it is not traced."""
    with target_provider.clone(folder_of(request), "ready") as target:
        yield target


@pytest.fixture
def cold_target(request: pytest.FixtureRequest, target_provider: TargetProvider) -> Iterator[Target]:
    """A board booted from power-on for this test, all guests ready; the marker ``mc_traced`` as for ``target``."""
    with target_provider.cold(folder_of(request), trace=_traced(request)) as target:
        yield from _lent(request, target)


@pytest.fixture
def board(target: Target) -> Board:
    """The test's own running board; a test that finds it dead fails at once, with the reason."""
    target.check_alive()
    return target.board


@pytest.fixture
def module_board(request: pytest.FixtureRequest, module_target: Target) -> Board:
    """The module's running board; dead for all of them once one test has killed it."""
    request.node.stash[target_key] = module_target
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


@pytest.fixture
def results_dir(request: pytest.FixtureRequest) -> Path:
    """A folder for a test's own files, named after the test's id."""
    folder = folder_of(request)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _traced(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("mc_traced") is not None


def _lent(request: pytest.FixtureRequest, target: Target, *, ended: bool = True) -> Iterator[Target]:
    """Give a test its target; save its state if the test failed and that was requested."""
    node = request.node
    node.stash[target_key] = target
    trace = None if target.trace is None else add_trace(node, target.trace, ended=ended)
    yield target
    if trace is not None:
        from framework.target.liveness import hypervisor_of

        trace.hypervisor = hypervisor_of(target)
    if node.stash.get(failed_key, False) and request.config.getoption("mc_save_on_failure"):
        from framework.target.postmortem import save

        identity = save(target, node.nodeid)
        node.add_report_section("teardown", "postmortem snapshot", f"medcheck resume {identity}")
        say(request.config)(f"{node.nodeid}: board saved; resume it with `medcheck resume {identity}`")


def folder_of(request: pytest.FixtureRequest) -> Path:
    """Return the folder for the logs of a board of this test or module."""
    logs: Path = request.config.getoption("mc_board_logs")
    return logs / folder_name(request.node.nodeid)


def folder_name(nodeid: str) -> str:
    """A test's id as the name of a folder: readable, safe, at most 120 characters, one for each id."""
    name = re.sub(r"[^\w.\[\]-]+", "_", nodeid).strip("_")
    if len(name) <= 120:
        return name
    return f"{name[-110:]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and markers of the plugin, and what they choose: the parts under test and the board."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from framework.artifacts.overrides import OPTIONS, add_options

if TYPE_CHECKING:
    from framework.artifacts.stack import Overrides
    from framework.board.spec import BoardSpec

_MARKERS = {
    "mc_board": "needs a booted board (given automatically to users of the board's fixtures)",
    "mc_checkpoint(which)": "where the test's clone begins: ready (default), dom0 or a Checkpoint",
    "mc_traced": "every SMC of the test's board is recorded and judged (given automatically to users of a probe)",
    "mc_rule(id, ...)": "the requirements, rules and deviations that the test exercises",
    "mc_core": "belongs to the profile `standard` of `medcheck run`",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options to choose the board and the parts under test."""
    group = parser.getgroup("medcheck", "boards with Xen and OP-TEE")
    group.addoption("--mc-board", default="default", help="board: a name of `medcheck boards` or a YAML file")
    group.addoption("--mc-domus", type=int, default=None, help="number of Linux domUs")
    add_options(group.addoption, "--mc-", argparse.ArgumentTypeError)
    group.addoption("--mc-board-logs", type=Path, default=Path("reports/tests"), help="where boards keep their logs")
    group.addoption(
        "--mc-save-on-failure", action="store_true", help="save a failed test's board, for `medcheck resume`"
    )
    group.addoption("--mc-fail-fast", action="store_true", help="end the run at the first nonconformance")
    group.addoption(
        "--mc-board-source",
        choices=("clone", "cold-shared"),
        default="clone",
        help="clone (default): each test has a board of its own; cold-shared: for measurements, one cold-booted "
        "board for all tests, booted anew after a test that failed or broke it",
    )
    group.addoption(
        "--mc-no-stimulus",
        choices=("zeros", "unchanged"),
        help="a test of the tests: leave out every call of a probe (it seems to answer zeros, or to change nothing); "
        "each test that has a probe must fail then, and the run fails where one does not",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for name, text in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Say once, before there are workers, which would say it for each test, that there is no such board."""
    spec_of(config)


def overrides_of(config: pytest.Config) -> Overrides:
    """The user's own parts, as given to pytest."""
    from framework.artifacts.stack import Overrides

    return Overrides.given({name.removeprefix("mc_"): value for name, value in vars(config.option).items()})


def spec_of(config: pytest.Config) -> BoardSpec:
    """The board that ``--mc-board`` and ``--mc-domus`` choose. Ends the run when there is none."""
    from framework.board.spec import BoardSpec
    from framework.target.stack import with_guests

    with wrong_use(config):
        return with_guests(BoardSpec.load(config.getoption("mc_board")), config.getoption("mc_domus"))


@contextmanager
def wrong_use(config: pytest.Config) -> Iterator[None]:
    """End the run for a UsageError inside, as with an option of pytest's own: a wrong option concerns all tests
    alike."""
    from framework.common.errors import UsageError

    try:
        yield
    except UsageError as error:
        # A worker of pytest-xdist that ends its run counts as crashed.
        if hasattr(config, "workerinput"):
            raise
        pytest.exit(_in_pytests_words(str(error)), returncode=pytest.ExitCode.USAGE_ERROR)


def _in_pytests_words(text: str) -> str:
    """Rewrite an error that names options of the command line with the plugin's names of them."""
    names = "|".join((*OPTIONS, "board", "domus"))
    return re.sub(rf"(?<![\w-])--({names})(?![\w-])", r"--mc-\1", text)


def say(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that prints a line at once, whatever pytest captures."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist writes its terminal's output to nowhere; its standard error is that of pytest.
    worker = getattr(config, "workerinput", {}).get("workerid")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if worker:
                sys.stderr.write(f"[{worker}] {text}\n")
                sys.stderr.flush()
            elif reporter:
                reporter.ensure_newline()
                reporter.write_line(text)

    return line

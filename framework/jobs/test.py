# SPDX-License-Identifier: GPL-2.0-or-later
"""Prepares what the board tests need, with its progress shown, and runs pytest (``medcheck test``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from framework.artifacts.stack import Overrides
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import INSTALLED, ROOT, SUITE
from framework.common.terminal import Output
from framework.jobs.pytest_process import follow
from framework.target.stack import open_store, prepare_stack

_EXIT = {0: ExitCode.GOOD, 1: ExitCode.FAILED, 3: ExitCode.INFRASTRUCTURE, 4: ExitCode.USAGE, 5: ExitCode.USAGE}
"""Meaning of pytest's exit codes here (pytest.ExitCode): passed, failed, internal error, usage, no tests."""
_INTERRUPTED = 2
_ALONE = re.compile(r"-n|--numprocesses|--dist|-s$|--pdb|--trace$|--capture|-p(no:|$)|--collect-only|--co$|--durations")
"""Options of pytest's that make no sense, or say something else, with several processes."""


def run_tests(
    arguments: Sequence[str], overrides: Overrides, *, unit: bool, offline: bool, mirrors: str | None, output: Output
) -> int:
    """Run pytest over the project's tests; ``unit`` keeps to those that need neither network nor board.

    The ``overrides`` are built once, and the tests get the files. An installed wheel has the conformance suite and no
    other tests. Raises KeyboardInterrupt when pytest was interrupted.
    """
    if unit and INSTALLED:
        raise UsageError("the project's own tests are not installed", hint="run --unit in a checkout of medcheck")
    if unit and overrides != Overrides():
        raise UsageError(f"--unit needs no board, so no --{overrides.chosen()[0].partition('=')[0]}")
    parts: list[str] = []
    if not unit:
        with output:
            stack = prepare_stack(overrides, open_store(offline, mirrors, output.progress), output.progress)
        if overrides != Overrides():
            parts = [f"--mc-{word}" for word in stack.frozen(overrides).words()]
    base = SUITE if INSTALLED else ROOT
    given = [argument.split("::")[0] for argument in arguments if not argument.startswith("-")]
    everything = ["testcases/unit", "testcases/style"] if unit else [str(SUITE) if INSTALLED else "testcases"]
    settings = ["-c", str(SUITE / "suite.ini"), f"--rootdir={SUITE}"] if INSTALLED else []
    paths = [] if any((base / path).exists() for path in given) else everything
    # The fixtures find everything in the cache now; a test that would download is a defect.
    environment = {**os.environ, "MEDCHECK_OFFLINE": "1"}
    # With a -m of the user's nothing is added; otherwise what a change cannot wait for is left out.
    selected = any(re.match(r"-m($|[^-])|--markexpr", argument) for argument in arguments)
    chosen = [] if selected else ["-m", "not nightly"]
    if paths and not INSTALLED and not any(_ALONE.match(argument) for argument in arguments):
        # A process for each core; how many of them have a board at the same time, the slots say.
        chosen += ["-n", str(len(os.sched_getaffinity(0))), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", *settings, *chosen, *parts, *arguments, *paths]
    with subprocess.Popen(command, cwd=base, env=environment) as process:
        interrupted = follow(process)
    if interrupted or process.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    return _EXIT.get(process.returncode, ExitCode.INFRASTRUCTURE)

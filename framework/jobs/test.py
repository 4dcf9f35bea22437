"""``medcheck test``: makes ready what the board tests need, with its progress shown, and hands over to pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from framework.artifacts.stack import Overrides
from framework.common.errors import ExitCode
from framework.common.paths import ROOT
from framework.common.terminal import Output
from framework.jobs.pytest_process import follow
from framework.target.stack import open_store, prepare_stack

_EXIT = {0: ExitCode.GOOD, 1: ExitCode.FAILED, 3: ExitCode.INFRASTRUCTURE, 4: ExitCode.USAGE, 5: ExitCode.USAGE}
"""What pytest's exit codes mean here (pytest.ExitCode): passed, failed, internal error, usage, no tests."""
_INTERRUPTED = 2


def run_tests(arguments: Sequence[str], *, unit: bool, offline: bool, mirrors: str | None, output: Output) -> int:
    """Run pytest over the project's tests; ``unit`` keeps to those that need neither network nor board.

    Raises KeyboardInterrupt when pytest was interrupted.
    """
    if not unit:
        with output:
            prepare_stack(Overrides(), open_store(offline, mirrors, output.progress), output.progress)
    given = [argument.split("::")[0] for argument in arguments if not argument.startswith("-")]
    everything = ["testcases/unit", "testcases/style"] if unit else ["testcases"]
    paths = [] if any((ROOT / path).exists() for path in given) else everything
    # The fixtures find everything in the cache now; a test that would download is a defect.
    environment = {**os.environ, "MEDCHECK_OFFLINE": "1"}
    # Whoever selects by marker knows what he wants; everybody else gets what a change can wait for.
    selected = any(re.match(r"-m($|[^-])|--markexpr", argument) for argument in arguments)
    command = [sys.executable, "-m", "pytest", *([] if selected else ["-m", "not nightly"]), *arguments, *paths]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        interrupted = follow(process)
    if interrupted or process.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    return _EXIT.get(process.returncode, ExitCode.INFRASTRUCTURE)

"""``medcheck test``: makes ready what the board tests need, with its progress shown, and hands over to pytest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.artifacts.stack import Overrides
from framework.console_ui import Output
from framework.errors import ExitCode
from framework.session import open_store, prepare_stack

_ROOT = Path(__file__).resolve().parent.parent
_EXIT = {
    pytest.ExitCode.OK: ExitCode.GOOD,
    pytest.ExitCode.TESTS_FAILED: ExitCode.FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED: ExitCode.USAGE,
    pytest.ExitCode.USAGE_ERROR: ExitCode.USAGE,
    pytest.ExitCode.INTERNAL_ERROR: ExitCode.INFRASTRUCTURE,
}


def run_tests(
    arguments: Sequence[str], *, unit: bool, offline: bool, mirrors: str | None, output: Output
) -> int:
    """Run pytest over the project's tests; ``unit`` keeps to those that need neither network nor board."""
    if not unit:
        with output:
            prepare_stack(Overrides(), open_store(offline, mirrors, output.progress), output.progress)
    os.chdir(_ROOT)
    # The fixtures find everything in the cache now; a test that would download is a defect.
    os.environ["MEDCHECK_OFFLINE"] = "1"
    given = [argument for argument in arguments if not argument.startswith("-")]
    paths = [] if any(Path(argument.split("::")[0]).exists() for argument in given) else [_folder(unit)]
    code = pytest.main([*arguments, *paths])
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return _EXIT.get(pytest.ExitCode(code), ExitCode.INFRASTRUCTURE)


def _folder(unit: bool) -> str:
    return "testcases/unit" if unit else "testcases"

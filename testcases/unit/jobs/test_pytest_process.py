# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts while a pytest runs, with a program in its place that takes a while to take its boards down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from framework.common.paths import ROOT

FAKE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
signal.signal(signal.SIGHUP, lambda *_: sys.exit("hung up"))
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    open(sys.argv[1], "w").write("boards are down")
    sys.exit(2)
"""

FRONT = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
from pathlib import Path
from framework.cli import main as cli
from framework.jobs import test, testsuite
from framework.artifacts.stack import Overrides
from framework.common.progress import Silent
folder = Path(sys.argv[1])
real = subprocess.Popen
def fake(command, **options):
    return real([sys.executable, str(folder / "fake.py"), str(folder / "down")], **options)
subprocess.Popen = fake
def stimuli(*_):
    testsuite.run_stimuli(["x"], Overrides(), "default", None, folder, Silent())
    return 0
if sys.argv[2] == "run":
    cli._boards = stimuli
    cli.main(["boards"])
cli.main(["test", "--unit"])
"""


@pytest.mark.parametrize(
    ("number", "command"),
    [(signal.SIGINT, "test"), (signal.SIGINT, "run"), (signal.SIGTERM, "test"), (signal.SIGHUP, "run")],
)
def test_an_interrupted_pytest_takes_its_boards_down_before_the_command_ends(
    tmp_path: Path, number: signal.Signals, command: str
) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    log = tmp_path / "testcases.log"
    front = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FRONT), str(tmp_path), command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert front.stdout is not None
    if command == "test":
        assert front.stdout.readline() == "begun\n"
    else:
        while not (log.exists() and b"begun" in log.read_bytes()):
            assert front.poll() is None, front.stdout.read()
    if number == signal.SIGINT:
        # As a terminal does: to everything in the foreground.
        os.killpg(front.pid, number)
    else:
        front.send_signal(number)
    text, _ = front.communicate(timeout=30)
    assert front.returncode == 130, text
    assert (tmp_path / "down").read_text() == "boards are down"

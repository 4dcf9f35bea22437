# SPDX-License-Identifier: GPL-2.0-or-later
"""One pytest process that runs single tests of the suite with mutants, from outside
(:mod:`framework.pytest_plugin.mutant_worker` is its inside)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from framework.common import safe_files
from framework.common.errors import InfrastructureError
from framework.common.paths import ROOT, SUITE
from framework.mutants.xen import MutantXen

_LONGEST = 1 << 20
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """What one test said with one mutant. ``failures`` are (phase, exception, words), ``broken`` the rules, ``stuck``
    where Xen stood when the time was over, ``dead`` whether Xen's console shows its end, ``met`` the switches that it
    reached, ``boot`` those that were reached before its board was saved."""

    passed: bool
    failures: tuple[tuple[str, str, str], ...]
    broken: tuple[str, ...]
    expired: bool
    stuck: str
    dead: bool
    met: tuple[int, ...]
    boot: tuple[int, ...]
    seconds: float


class Worker:
    """The process. ``selection`` are pytest's own arguments for which tests are collected, ``options`` name the board
    and the parts under test. Ends with its context."""

    def __init__(
        self, xen: MutantXen, selection: Sequence[str], options: Sequence[str], folder: Path, number: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        requests, answers = os.pipe(), os.pipe()
        self._log = folder / f"worker-{number}.log"
        command = [sys.executable, "-m", "pytest", "-c", str(SUITE / "suite.ini"), f"--rootdir={SUITE}", str(SUITE)]
        command += ["-p", "framework.pytest_plugin.mutant_worker", "-p", "no:cacheprovider", "-q", *selection]
        command += [f"--mc-mutants={xen.folder}", f"--mc-xen={xen.image}", f"--mc-xen-syms={xen.symbols}", *options]
        command += [f"--mc-mutant-requests={requests[0]}", f"--mc-mutant-answers={answers[1]}"]
        command += [f"--mc-board-logs={(folder / f'boards-{number}').absolute()}"]
        with os.fdopen(safe_files.create(self._log), "wb", buffering=0) as sink:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                pass_fds=(requests[0], answers[1]), env={**os.environ, "MEDCHECK_OFFLINE": "1"},
            )  # fmt: skip
        os.close(requests[0])
        os.close(answers[1])
        self._requests = os.fdopen(requests[1], "w", encoding="utf-8", buffering=1)
        self._answers = os.fdopen(answers[0], encoding="utf-8")
        try:
            found: dict[str, list[str]] = self._answer()["tests"]
        except BaseException:
            self.close()
            raise
        self.tests = tuple(found)
        self.rules = {test: frozenset(rules) for test, rules in found.items()}
        """What each test says that it exercises."""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def run(self, test: str, number: int, limit: float, *, met: bool = False) -> Run:
        """Run one test with one mutant; its board may wait for ``limit`` seconds in all.

        :raises InfrastructureError: the process has ended.
        """
        self._requests.write(json.dumps({"test": test, "number": number, "limit": limit, "met": met}) + "\n")
        answer = self._answer()
        return Run(
            answer["outcome"] == "passed", tuple((a, b, c) for a, b, c in answer["failures"]),
            tuple(answer["broken"]), answer["expired"], answer["stuck"], answer["dead"], tuple(answer["met"]),
            tuple(answer["boot"]), answer["seconds"],
        )  # fmt: skip

    def close(self) -> None:
        """End the process and its boards; may be called twice."""
        with suppress(OSError):
            self._requests.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
        self._answers.close()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline(_LONGEST)
        if not line.endswith("\n"):
            self._process.wait()
            tail = "\n".join(safe_files.tail(self._log, 4096).decode(errors="replace").splitlines()[-8:])
            raise InfrastructureError(
                f"the tests' process ended ({self._process.returncode}):\n{tail}", where=str(self._log)
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

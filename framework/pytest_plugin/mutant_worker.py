# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest session that runs single tests on request, each with one mutant of Xen switched on.

Loaded for `medcheck mutants` only (``-p framework.pytest_plugin.mutant_worker``). Tests are collected once; requests
and answers are lines of JSON on two descriptors (:mod:`framework.mutants.worker`). An imported module, a prepared stack
and a verified snapshot serve thousands of runs, so a run costs little more than its board.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from framework.pytest_plugin.fixtures import before_run_key, target_key

if TYPE_CHECKING:
    from framework.mutants.xen import MutantXen
    from framework.target.target import Target

_STUCK = re.compile(r"\S+ in Xen \(EL2\), \d+ times in a row")
_POLL_SECONDS = 0.5
_WORDS = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    """The descriptors of requests and answers, and the folder of the Xen with all mutants."""
    group = parser.getgroup("medcheck")
    group.addoption("--mc-mutants", type=Path, help="the folder of the Xen with all mutants")
    group.addoption("--mc-mutant-requests", type=int, help="descriptor to read requests from")
    group.addoption("--mc-mutant-answers", type=int, help="descriptor to write answers to")


def pytest_configure(config: pytest.Config) -> None:
    """Have every restored board switched to the mutant of the current request."""
    worker = _Worker(config)
    config.stash[before_run_key] = worker.switch
    config.pluginmanager.register(worker, "medcheck-mutant-worker")


class _Root:
    """The next test, to pytest: one that shares nothing but the session with the last, whose fixtures go."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session

    def listchain(self) -> list[Any]:
        return [self._session]


class _Worker:
    def __init__(self, config: pytest.Config) -> None:
        from framework.mutants.xen import read

        self._xen: MutantXen = read(config.getoption("mc_mutants"))
        self._requests: int = config.getoption("mc_mutant_requests")
        self._answers: int = config.getoption("mc_mutant_answers")
        self._number = 0
        self._wants_met = False
        self._met: list[int] = []
        self._boot: list[int] = []
        self._failures: list[tuple[str, str, str]] = []
        self._dead = False

    def switch(self, board: Any) -> None:
        """Switch the mutant on in a board that has not begun to run."""
        if not self._number and not self._boot:
            self._boot = self._xen.met(board)
        self._xen.set(board, self._number)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer requests until there are no more."""
        items = {item.nodeid: item for item in session.items if _repeatable(item)}
        self._answer({"tests": {name: _rules(item) for name, item in items.items()}})
        with os.fdopen(os.dup(self._requests), encoding="utf-8") as requests:
            for line in requests:
                request = json.loads(line)
                self._answer(self._run(session, items[request["test"]], request))
        return True

    def _run(self, session: pytest.Session, item: pytest.Item, request: dict[str, Any]) -> dict[str, Any]:
        self._number, self._wants_met = request["number"], request["met"]
        self._met, self._failures, self._dead = [], [], False
        # As when it was collected: what an earlier run noted is not this one's.
        item.user_properties.clear()
        item.stash = pytest.Stash()
        init = getattr(item, "_initrequest", None)
        if init is not None:
            init()
        begin = time.monotonic()
        with _limit(item, request["limit"]) as limit:
            reports = runtestprotocol(item, log=False, nextitem=_Root(session))  # type: ignore[arg-type]
        rules = [text for name, text in item.user_properties if name == "rule"]
        return {
            "outcome": next((r.outcome for r in reports if r.outcome != "passed"), "passed"),
            "failures": self._failures,
            "broken": sorted(text.removesuffix("=fail") for text in map(str, rules) if text.endswith("=fail")),
            "expired": limit.expired,
            "stuck": limit.stuck,
            "dead": self._dead,
            "met": self._met,
            "boot": self._boot if request["met"] else [],
            "seconds": round(time.monotonic() - begin, 3),
        }

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember what failed, by the kind of its exception, before the board goes."""
        report = yield
        if report.failed and call.excinfo is not None:
            value = call.excinfo.value
            self._failures.append((report.when or "", type(value).__name__, str(value)[:_WORDS]))
        target = item.stash.get(target_key, None)
        if target is not None and report.when == "call":
            self._look(target)
        return report

    def _look(self, target: Target) -> None:
        from framework.common.errors import MedcheckError
        from framework.target.liveness import xen_died

        self._dead = xen_died(target)
        if self._wants_met and target.board.alive:
            try:
                self._met = self._xen.met(target.board)
            except MedcheckError as error:
                self._failures.append(("met", type(error).__name__, str(error)[:_WORDS]))

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode() + b"\n"
        while data:
            data = data[os.write(self._answers, data) :]


def _rules(item: pytest.Item) -> list[str]:
    """What a test says that it exercises."""
    return sorted({str(rule) for mark in item.iter_markers("mc_rule") for rule in mark.args})


def _repeatable(item: pytest.Item) -> bool:
    """Whether a test's only board is a fresh clone: another board would not know of the mutant."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return "target" in fixtures and not fixtures & {"cold_target", "module_target"}


class _Limit:
    """Ends the waits of a test's board when the time is up, and says where Xen was then."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self.expired = False
        self.stuck = ""
        self.over = threading.Event()

    def watch(self, seconds: float) -> None:
        from framework.common.errors import BoardError

        if self.over.wait(seconds):
            return
        self.expired = True
        while not self.over.is_set():
            target = self._item.stash.get(target_key, None)
            if target is not None:
                detector = target.board.on_silence
                before = None if detector is None else detector.sample()
                self.over.wait(1.0)
                text = (detector.explain(before) or "") if detector is not None and target.board.alive else ""
                found = _STUCK.search(text)
                self.stuck = found[0] if found else ""
                target.abort(BoardError("the time that this test may take with a mutant is over"))
                return
            self.over.wait(_POLL_SECONDS)


@contextmanager
def _limit(item: pytest.Item, seconds: float) -> Iterator[_Limit]:
    limit = _Limit(item)
    thread = threading.Thread(target=limit.watch, args=(seconds,), daemon=True)
    thread.start()
    try:
        yield limit
    finally:
        limit.over.set()
        thread.join()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The checker's verdict over a test's traces: given when the test is over and its boards are gone.

A test passes only if what the mediator did meanwhile was seen from beginning to end and conforms, or differs by listed
deviations alone. A trace that is missing, damaged, cut off or empty proves nothing: the test fails as incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from framework.pytest_plugin.options import say

if TYPE_CHECKING:
    from framework.conformance.result import ConformanceResult
    from framework.target.liveness import Hypervisor
    from framework.target.target import Target

BOARD_FIXTURES = frozenset({"target", "module_target", "cold_target"})
"""The fixtures that every other one of a booted board asks for."""


@dataclass
class Trace:
    """A trace to judge; ``ended`` is False while its board serves further tests, so that it has no end yet.
    ``hypervisor``: what was seen of the board's hypervisor at the end of the test."""

    path: Path
    ended: bool = True
    hypervisor: Hypervisor | None = None


_traces_key = pytest.StashKey[list[Trace]]()
_ran_key = pytest.StashKey[bool]()


class Judge(Protocol):
    """The fixture ``judge``: see there."""

    def __call__(self, board: Target | Path) -> None:
        """Have a board's trace, or a trace file, judged when the test is over."""


def add_trace(node: pytest.Item, path: Path, *, ended: bool = True) -> Trace:
    """Have a trace judged at the end of a test; adding it twice judges it once."""
    traces = node.stash.setdefault(_traces_key, [])
    for trace in traces:
        if trace.path == path:
            return trace
    traces.append(Trace(path, ended))
    return traces[-1]


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """Have the traces of further boards judged like that of the test's own: ``judge(target)``, while it runs.

    ``judge(path)`` takes a trace file as well.
    """

    def later(board: Target | Path) -> None:
        path = board if isinstance(board, Path) else board.trace
        assert path is not None, "a board that is judged is traced"
        add_trace(request.node, path)

    return later


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Remember that the test itself has begun: a test that failed or was skipped before needs no trace."""
    item.stash[_ran_key] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Judge when all fixtures are torn down: the boards are gone and their traces complete."""
    try:
        result = yield
    except BaseException as error:
        for words in _objections(item):
            error.add_note(words)
        raise
    if found := list(_objections(item)):
        pytest.fail("\n\n".join(found), pytrace=False)
    return result


def _objections(item: pytest.Item) -> Iterator[str]:
    """Give the reasons why the traces of a test do not let it pass."""
    if not item.stash.get(_ran_key, False):
        return
    traces = item.stash.get(_traces_key, [])
    boards = BOARD_FIXTURES & set(getattr(item, "fixturenames", ()))
    if boards and item.get_closest_marker("mc_traced") is not None and not traces:
        yield "incomplete: the test asks for a trace, and no board of it was traced"
    yield from filter(None, (_judge(item, trace) for trace in traces))


def _judge(node: pytest.Item, trace: Trace) -> str:
    """Hold a trace against the reference; returns why the test fails, or nothing."""
    from framework.common.disclosure import TELL_FIRST
    from framework.common.errors import TraceError
    from framework.common.paths import atomic_write_text
    from framework.conformance.checker import check_file
    from framework.conformance.result import RESULT_FILE
    from framework.target.liveness import Hypervisor, threads_said
    from mediator_ref import Limits

    try:
        seen = trace.hypervisor or Hypervisor(None)
        limits = Limits(threads=threads_said(trace.path.parent.parent))
        result = check_file(trace.path, limits=limits, board_alive=seen.alive, memory_free=seen.memory_free)
    except (OSError, TraceError) as error:
        return f"incomplete: the trace cannot be read, so nothing was checked: {error}"
    logs: Path = node.config.getoption("mc_board_logs")
    if trace.path.absolute().is_relative_to(logs.absolute()):
        content = json.dumps({"test": node.nodeid, **result.to_json()})
        atomic_write_text(trace.path.parent / RESULT_FILE, content)
    node.user_properties.append(("events_checked", str(result.events_checked)))
    for rule in result.rules:
        if rule.verdict in ("pass", "deviation", "fail"):
            node.user_properties.append(("rule", f"{rule.id}={rule.verdict}"))
    for deviation in result.deviations:
        if deviation.status == "seen":
            private = f" ({TELL_FIRST})" if deviation.report_privately else ""
            note(node, f"{deviation.id} seen by the checker: {deviation.evidence}{private}")
    if result.failed:
        _speak_up(node, result)
    return _objection(result, trace)


def _speak_up(node: pytest.Item, result: ConformanceResult) -> None:
    """Say at once which rules a test's boards broke; with ``--mc-fail-fast``, that ends the run."""
    from framework.conformance.result import SAID

    broken = ", ".join(f"{rule.id} ({rule.title})" for rule in result.rules if rule.verdict == "fail")
    say(node.config)(f"{SAID}{broken} in {node.nodeid}")
    if node.config.getoption("mc_fail_fast"):
        node.session.shouldfail = f"{broken} broken"


def _objection(result: ConformanceResult, trace: Trace) -> str:
    """Return why a result does not let a test pass; empty if it does."""
    if result.failed:
        texts = [item.explanation for item in result.nonconformances[:3]]
        return f"the mediator does not conform ({result.failed} checks failed):\n\n" + "\n\n".join(texts)
    if result.incomplete and trace.ended:
        return f"incomplete: {'; '.join(result.gaps)} ({trace.path})"
    if result.notes:
        return f"incomplete: {'; '.join(result.notes)} ({trace.path})"
    if result.verdict == "not checked":
        return f"incomplete: nothing in the trace could be checked: it holds no call to OP-TEE ({trace.path})"
    return ""


def note(node: pytest.Item, text: str) -> None:
    """Note a deviation for the report of a test and the summary of the run."""
    node.user_properties.append(("deviation", text))

"""Fixtures of the project's own board tests: probe guests on a fresh board, judged by what they see and by the checker.

A test that uses a probe gets a clone of the checkpoint at which dom0 is ready, with every SMC recorded. When it is
over and the board is gone, the trace is held against the reference: a nonconformance that is not a listed deviation
fails the test, whatever the guest itself saw.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from framework.conformance.result import ConformanceResult
    from framework.probe.client import Probe
    from framework.probe.link import DoorbellServer
    from framework.target.target import Target

MakeProbe = Callable[..., "Probe"]

_THREADS = re.compile(rb"OP-TEE supports (\d+) simultaneous threads per guest")
_traces_key = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--no-stimulus``: a test of the tests."""
    parser.getgroup("medcheck").addoption(
        "--no-stimulus",
        choices=("zeros", "unchanged"),
        help="leave out every call of a probe (it seems to answer zeros, or to change nothing): each test that has a "
        "probe must fail then, and the run fails where one does not",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Without stimulus a probe's test that fails is as it should be, and one that passes proves nothing."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    muted = item.config.getoption("no_stimulus") and "make_probe" in getattr(item, "fixturenames", ())
    if muted and call.when == "call" and not report.skipped:
        if report.passed:
            report.longrepr = f"{item.nodeid} passes although its probe made no call"
        report.outcome = "failed" if report.passed else "passed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever makes probes begins where dom0 is ready, unless another checkpoint was asked for, and is traced."""
    for item in items:
        if "make_probe" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.traced)
            if item.get_closest_marker("checkpoint") is None:
                item.add_marker(pytest.mark.checkpoint("dom0"))


@pytest.fixture(autouse=True)
def verdict_of_the_checker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first and so torn down last, when the board is gone and its trace is complete."""
    yield
    for trace in request.node.stash.get(_traces_key, []):
        _judge(request.node, trace)


def _judge(node: pytest.Item, trace: Path) -> None:
    """Hold a trace against the reference; a nonconformance fails the test."""
    from framework.conformance.checker import check_file
    from mediator_ref import Limits

    # The trace begins after Xen asked OP-TEE for its number of threads; the console remembers the answer.
    said = _THREADS.search((trace.parent.parent / "consoles/xen.log").read_bytes())
    result = check_file(trace, limits=Limits(threads=int(said[1]) if said else None))
    node.user_properties.append(("events_checked", str(result.events_checked)))
    for rule in result.rules:
        if rule.verdict in ("pass", "deviation", "fail"):
            node.user_properties.append(("rule", f"{rule.id}={rule.verdict}"))
    for deviation in result.deviations:
        if deviation.status == "seen":
            private = " (report to the Xen security team before publishing)" if deviation.report_privately else ""
            _note(node, f"{deviation.id} seen by the checker: {deviation.evidence}{private}")
    if result.failed:
        pytest.fail(_story(result), pytrace=False)


def _story(result: ConformanceResult) -> str:
    stories = [item.explanation for item in result.nonconformances[:3]]
    return f"the mediator does not conform ({result.failed} checks failed):\n\n" + "\n\n".join(stories)


@pytest.fixture(scope="session")
def probe_image() -> Path:
    """The probe guest, built from ``images/probe``."""
    from framework.artifacts.cache import BuildCache
    from framework.common.paths import cache_root
    from framework.probe.build import build_probe

    return build_probe(BuildCache(cache_root()))


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[[Target], None]:
    """Have the traces of further boards judged like that of a probe's board: ``judge(target)``, while it runs."""

    def later(target: Target) -> None:
        assert target.trace is not None, "a board that is judged is traced"
        request.node.stash.setdefault(_traces_key, []).append(target.trace)

    return later


@pytest.fixture
def make_probe(
    request: pytest.FixtureRequest, target: Target, probe_image: Path, judge: Callable[[Target], None]
) -> MakeProbe:
    """Make a probe domain: ``make_probe(name, vcpus, memory_mib, tee, slot)``; it ends with the test's board.

    ``slot`` counts the board's console ports that no Linux guest has; a port whose domain is gone can be used again.
    """
    from framework.probe.client import create_probe

    if target.trace is not None:
        judge(target)
    made: list[Probe] = []

    def make(
        name: str = "probe0", vcpus: int = 1, memory_mib: int = 32, tee: bool = True, slot: int | None = None
    ) -> Probe:
        # The first ports belong to the Linux guests of a board that is "ready".
        port = f"guest{len(target.guests) + (len(made) if slot is None else slot)}"
        console = target.board.consoles[port]
        probe = create_probe(target.dom0, name, port, console, probe_image, vcpus, memory_mib, tee)
        answer = request.config.getoption("no_stimulus")
        if answer:
            from testcases.suite.lib.no_call_probe import NoCallProbe

            probe = NoCallProbe(probe, memory_mib, answer)
        made.append(probe)
        return probe

    return make


@pytest.fixture
def probe(make_probe: MakeProbe) -> Probe:
    """A probe guest with one virtual CPU."""
    return make_probe()


@pytest.fixture
def doorbells() -> Iterator[DoorbellServer]:
    """The doorbells of the test's board, which runs in lock-step: its probes do 2000 programs a second."""
    from framework.probe.link import DoorbellServer

    # Not in the test's own folder: a socket's path is at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="medcheck-") as folder,
        DoorbellServer(Path(folder) / "lockstep") as bells,
    ):
        yield bells


@pytest.fixture
def lockstep_socket(request: pytest.FixtureRequest) -> Path | None:
    """Overrides the plugin's: set up before the board of a test that wants doorbells."""
    if "doorbells" not in request.fixturenames:
        return None
    bells: DoorbellServer = request.getfixturevalue("doorbells")
    return bells.socket


@pytest.fixture
def fast_probe(make_probe: MakeProbe, doorbells: DoorbellServer) -> Probe:
    """A probe guest with one virtual CPU that takes its programs through the doorbell; its board is expendable."""
    probe = make_probe()
    probe.transport = doorbells.transport(probe.domid)
    return probe


@pytest.fixture
def probe_pair(make_probe: MakeProbe) -> tuple[Probe, Probe]:
    """Two probe guests on one board."""
    return make_probe("probe0"), make_probe("probe1")


@pytest.fixture
def expendable_probe(make_probe: MakeProbe) -> Probe:
    """A probe guest whose test may leave the mediator, Xen or OP-TEE in ruins; no other test meets that board."""
    return make_probe()


class Deviations:
    """What a test says about the list of known deviations; it goes into the report of the test."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def seen(self, name: str, evidence: str) -> None:
        """The deviation's observable appeared. Raises KeyError for one that is not on the list."""
        from mediator_ref.deviations import DEVIATIONS

        _note(self._node, f"{name} seen by the guest: {DEVIATIONS[name].title}: {evidence}")

    def elsewhere(self, name: str, evidence: str) -> None:
        """A defect that is not the mediator's appeared (``docs/findings/O1.md`` is ``O1``)."""
        _note(self._node, f"{name} seen by the test, not the mediator's: {evidence}")


def _note(node: pytest.Item, text: str) -> None:
    node.user_properties.append(("deviation", text))


@pytest.fixture
def deviations(request: pytest.FixtureRequest) -> Deviations:
    """The list of known deviations."""
    return Deviations(request.node)


Slowdown = Callable[[str, float], None]


@pytest.fixture
def slowdown(request: pytest.FixtureRequest) -> Slowdown:
    """Tell the report a guest's xtest time over that of the same guest alone: ``slowdown("vm1", 1.83)``."""

    def measured(guest: str, factor: float) -> None:
        request.node.user_properties.append(("slowdown", f"{guest}={factor:.3f}"))

    return measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the deviations that were seen: a passing test must not hide them."""
    seen = {
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "deviation"
    }
    if seen:
        terminalreporter.section("known deviations seen")
        for line in sorted(seen):
            terminalreporter.line(line)

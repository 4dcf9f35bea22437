# SPDX-License-Identifier: GPL-2.0-or-later
"""Probe guests as fixtures, and what a test that has one may tell its report.

A test that uses a probe gets a clone of the checkpoint at which dom0 is ready, with every SMC recorded. When it is
over and the board is gone, the trace is held against the reference (:mod:`framework.pytest_plugin.verdict`): a
nonconformance that is not a listed deviation fails the test, whatever the guest itself saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from framework.pytest_plugin.verdict import note

if TYPE_CHECKING:
    from framework.probe.client import Probe
    from framework.probe.link import DoorbellServer
    from framework.target.target import Target

Slowdown = Callable[[str, float], None]
"""The fixture ``slowdown``: see there."""


class MakeProbe(Protocol):
    """The fixture ``make_probe``: see there."""

    def __call__(
        self, name: str = "probe0", vcpus: int = 1, memory_mib: int = 32, tee: bool = True, slot: int | None = None
    ) -> Probe:
        """Make a probe domain."""


@pytest.fixture(scope="session")
def probe_image() -> Path:
    """The probe guest, built from its sources with the package."""
    from framework.artifacts.cache import BuildCache
    from framework.common.paths import cache_root
    from framework.probe.build import build_probe

    return build_probe(BuildCache(cache_root()))


@pytest.fixture
def make_probe(request: pytest.FixtureRequest, target: Target, probe_image: Path) -> MakeProbe:
    """Make a probe domain: ``make_probe(name, vcpus, memory_mib, tee, slot)``; it ends with the test's board.

    ``slot`` counts the board's console ports that no Linux guest has; a port whose domain is gone can be used again.
    """
    from framework.probe.client import create_probe

    made: list[Probe] = []

    def make(
        name: str = "probe0", vcpus: int = 1, memory_mib: int = 32, tee: bool = True, slot: int | None = None
    ) -> Probe:
        # The first ports belong to the Linux guests of a board that is "ready".
        port = f"guest{len(target.guests) + (len(made) if slot is None else slot)}"
        console = target.board.consoles[port]
        probe = create_probe(target.dom0, name, port, console, probe_image, vcpus, memory_mib, tee)
        answer = request.config.getoption("mc_no_stimulus")
        if answer:
            from framework.pytest_plugin.no_call_probe import NoCallProbe

            probe = NoCallProbe(probe, memory_mib, answer)
        made.append(probe)
        return probe

    return make


@pytest.fixture
def probe(make_probe: MakeProbe) -> Probe:
    """A probe guest with one virtual CPU."""
    return make_probe()


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
    """A probe guest whose test may leave the mediator, Xen or OP-TEE unusable; no other test meets that board."""
    return make_probe()


class Deviations:
    """A test's notes about known deviations, for its report."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def seen(self, name: str, evidence: str) -> None:
        """The deviation's observable appeared. Raises KeyError for one that is not on the list."""
        from mediator_ref.deviations import DEVIATIONS

        note(self._node, f"{name} seen by the guest: {DEVIATIONS[name].title}: {evidence}")

    def elsewhere(self, name: str, evidence: str) -> None:
        """A defect that is not the mediator's appeared (``docs/findings/O1.md`` is ``O1``)."""
        note(self._node, f"{name} seen by the test, not the mediator's: {evidence}")


@pytest.fixture
def deviations(request: pytest.FixtureRequest) -> Deviations:
    """The list of known deviations."""
    return Deviations(request.node)


@pytest.fixture
def slowdown(request: pytest.FixtureRequest) -> Slowdown:
    """Tell the report a guest's xtest time over that of the same guest alone: ``slowdown("vm1", 1.83)``."""

    def measured(guest: str, factor: float) -> None:
        request.node.user_properties.append(("slowdown", f"{guest}={factor:.3f}"))

    return measured

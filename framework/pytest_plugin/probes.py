# SPDX-License-Identifier: GPL-2.0-or-later
"""Probe guests as fixtures, and what a test that has one may tell its report.

A test that uses a probe gets a clone of a checkpoint at which that probe waits for programs, with every SMC recorded.
When it is over and the board is gone, the trace is held against the reference
(:mod:`framework.pytest_plugin.verdict`): a nonconformance that is not a listed deviation fails the test, whatever the
guest itself saw.
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
    from framework.probe.schedule import Schedule
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

    Takes two seconds, and its programs go over its console: for what the fixtures below do not have, and for tests
    that are about a domain's creation. ``slot`` counts the board's console ports that neither a Linux guest nor a
    waiting probe has; a port whose domain is gone can be used again.
    """
    from framework.probe.client import create_probe

    made: list[Probe] = []
    waiting = len(target.notes.get("probes", ()))
    taken = len(target.guests) + waiting

    def make(
        name: str = "probe0", vcpus: int = 1, memory_mib: int = 32, tee: bool = True, slot: int | None = None
    ) -> Probe:
        port = f"guest{taken + (len(made) if slot is None else slot)}"
        console = target.board.consoles[port]
        image = None if waiting or made else probe_image
        probe = create_probe(target.dom0, name, port, console, image, vcpus, memory_mib, tee)
        made.append(_as_asked(request.config, probe))
        return made[-1]

    return make


@pytest.fixture
def _probes(
    request: pytest.FixtureRequest, target: Target, doorbells: DoorbellServer, make_probe: MakeProbe
) -> list[Probe]:
    """The probes that wait on the test's board; on one of a checkpoint without any, a new one."""
    from framework.target.probes import take_over

    if "probes" in target.notes:
        return [_as_asked(request.config, probe) for probe in take_over(target, doorbells)]
    probe = make_probe()
    probe.transport = doorbells.transport(probe.domid)
    return [probe]


@pytest.fixture
def probe(_probes: list[Probe]) -> Probe:
    """A probe guest with one virtual CPU and 64 MiB, which waits for programs when the board is restored.

    It takes them through the doorbell. A test may leave the mediator, Xen or OP-TEE unusable: the board is its own.
    """
    return _probes[0]


@pytest.fixture
def smp_probe(_probes: list[Probe]) -> Probe:
    """A probe like ``probe`` with two virtual CPUs."""
    return _probes[0]


@pytest.fixture
def schedule(smp_probe: Probe, target: Target, doorbells: DoorbellServer) -> Schedule:
    """Makes the order of what the two virtual CPUs of ``smp_probe`` do: one stands at a point of Xen."""
    from framework.probe.schedule import Schedule

    return Schedule(smp_probe, doorbells, target.dom0.xl)


@pytest.fixture
def probe_pair(_probes: list[Probe]) -> tuple[Probe, Probe]:
    """Two probes like ``probe`` on one board."""
    first, second = _probes
    return first, second


WAITING = {"probe_pair": "probe_pair", "smp_probe": "probe_smp", "probe": "probe"}
"""Where the board of a test begins that has one of these fixtures."""


def _as_asked(config: pytest.Config, probe: Probe) -> Probe:
    """The probe, or with ``--mc-no-stimulus`` one whose calls are left out."""
    answer = config.getoption("mc_no_stimulus")
    if not answer:
        return probe
    from framework.pytest_plugin.no_call_probe import NoCallProbe

    return NoCallProbe(probe, answer)


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of version 0.1 that still work in 0.2: options, markers and fixtures. Each use is reported at the end of the
run.

The report goes to the terminal and is no warning: under ``-W error`` a warning would break what is promised to work.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from framework.probe.client import Probe
    from framework.target.provider import TargetProvider
    from framework.target.target import Target

OPTIONS = {
    **{
        f"--{name}": f"--mc-{name}"
        for name in (
            "board", "domus", "xen-variant", "xen", "xen-syms", "optee", "kernel", "kernel-modules", "xtest-root",
            "board-logs", "board-source", "no-stimulus",
        )
    },
    "--keep-on-failure": "--mc-save-on-failure",
}  # fmt: skip
"""Options by their names of 0.1."""

MARKERS = {"moment": "mc_checkpoint", "traced": "mc_traced", "rule": "mc_rule", "board": "mc_board"}
"""Markers by their names of 0.1."""

PROPERTY = "former_name"
"""The user property of a report that names an old name; it reaches the terminal from any worker."""

_used_key = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Rewrite old options, once every plugin and conftest.py has named its own: those keep what is theirs."""
    result = yield
    used = early_config.stash.setdefault(_used_key, [])
    _, unknown = parser.parse_known_and_unknown_args(args)
    for old in (argument.partition("=")[0] for argument in unknown):
        new = OPTIONS.get(old)
        if new is None:
            continue
        args[:] = [new + argument[len(old) :] if argument.partition("=")[0] == old else argument for argument in args]
        used.append(f"option {old}: {new}")
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Register the old markers."""
    for old, new in MARKERS.items():
        config.addinivalue_line("markers", f"{old}: the name of {new} until 0.2")


def translate_markers(items: list[pytest.Item]) -> None:
    """Give each item that carries an old marker the new one, with the same arguments."""
    for item in items:
        for old, new in MARKERS.items():
            for mark in list(item.iter_markers(old)):
                item.add_marker(getattr(pytest.mark, new)(*mark.args, **mark.kwargs))
                _tell(item, f"marker {old}: {new}")


def _tell(item: pytest.Item, text: str) -> None:
    if (PROPERTY, text) not in item.user_properties:
        item.user_properties.append((PROPERTY, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name each old name that was used, and the new one."""
    used = config.stash.get(_used_key, []) + [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == PROPERTY
    ]
    if used:
        terminalreporter.section("medcheck: names that go with 0.3, and the new ones")
        for line in dict.fromkeys(used):
            terminalreporter.line(line)


@pytest.fixture
def live(request: pytest.FixtureRequest, target: Target) -> Target:
    """The name of ``target`` until 0.2."""
    _tell(request.node, "fixture live: target")
    return target


@pytest.fixture
def module_live(request: pytest.FixtureRequest, module_target: Target) -> Target:
    """The name of ``module_target`` until 0.2."""
    _tell(request.node, "fixture module_live: module_target")
    return module_target


@pytest.fixture
def cold_live(request: pytest.FixtureRequest, cold_target: Target) -> Target:
    """The name of ``cold_target`` until 0.2."""
    _tell(request.node, "fixture cold_live: cold_target")
    return cold_target


@pytest.fixture(scope="session")
def boards(request: pytest.FixtureRequest, target_provider: TargetProvider) -> TargetProvider:
    """The name of ``target_provider`` until 0.2."""
    for item in request.session.items:
        if "boards" in getattr(item, "fixturenames", ()):
            _tell(item, "fixture boards: target_provider")
    return target_provider


@pytest.fixture
def fast_probe(request: pytest.FixtureRequest, probe: Probe) -> Probe:
    """The name of a ``probe`` with a doorbell until 0.2: each has one now."""
    _tell(request.node, "fixture fast_probe: probe")
    return probe


@pytest.fixture
def expendable_probe(request: pytest.FixtureRequest, probe: Probe) -> Probe:
    """The name of a ``probe`` whose board the test may wreck until 0.2: any may."""
    _tell(request.node, "fixture expendable_probe: probe")
    return probe

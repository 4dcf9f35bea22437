# SPDX-License-Identifier: GPL-2.0-or-later
"""medcheck's public face: what a test author and a tool that reads traces import.

    from medcheck import MakeProbe, OpenSession, messages, abi

    def test_a_session_is_opened(probe):
        call = probe.call_with_arg(OpenSession(messages.INVOKE_TESTS))
        assert (call.x0, call.arg.ret) == (abi.SmcReturn.OK, 0)

Everything here keeps its meaning from one release to the next, or is announced in CHANGELOG.md before it goes; other
modules may change with any release. The fixtures (``probe``, ``target``, ``judge`` …) come with the pytest plugin.

A name is imported when it is first used: ``import medcheck`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.artifacts.stack import Overrides, Stack
    from framework.board.spec import BoardSpec
    from framework.common.errors import (
        ArtifactError,
        BoardError,
        BuildError,
        ConfigError,
        ExitCode,
        GuestCrash,
        GuestError,
        InfrastructureError,
        MedcheckError,
        TraceError,
        UsageError,
    )
    from framework.conformance.checker import check_file as check_trace
    from framework.conformance.result import ConformanceResult
    from framework.fuzz.machine import play
    from framework.fuzz.steps import Step as FuzzStep
    from framework.guests.dom0 import Dom0
    from framework.guests.linux import LinuxGuest
    from framework.guests.xl import GuestConfig
    from framework.probe import message as messages
    from framework.probe import ops
    from framework.probe import xen as hypercalls
    from framework.probe.call import StdCall
    from framework.probe.client import Probe, ProbeFault
    from framework.probe.message import (
        Cancel,
        CloseSession,
        Invoke,
        OpenSession,
        RegisterShm,
        UnregisterShm,
    )
    from framework.pytest_plugin.probes import Deviations, MakeProbe, Slowdown
    from framework.pytest_plugin.verdict import Judge
    from framework.target.checkpoints import Checkpoint
    from framework.target.provider import TargetProvider
    from framework.target.target import Target
    from mediator_ref import DEVIATIONS, RULES, Deviation, Limits, Rule, abi

    __version__: str

__all__ = [
    "DEVIATIONS",
    "RULES",
    "ArtifactError",
    "BoardError",
    "BoardSpec",
    "BuildError",
    "Cancel",
    "Checkpoint",
    "CloseSession",
    "ConfigError",
    "ConformanceResult",
    "Deviation",
    "Deviations",
    "Dom0",
    "ExitCode",
    "FuzzStep",
    "GuestConfig",
    "GuestCrash",
    "GuestError",
    "InfrastructureError",
    "Invoke",
    "Judge",
    "Limits",
    "LinuxGuest",
    "MakeProbe",
    "MedcheckError",
    "OpenSession",
    "Overrides",
    "Probe",
    "ProbeFault",
    "RegisterShm",
    "Rule",
    "Slowdown",
    "Stack",
    "StdCall",
    "Target",
    "TargetProvider",
    "TraceError",
    "UnregisterShm",
    "UsageError",
    "__version__",
    "abi",
    "check_trace",
    "hypercalls",
    "messages",
    "ops",
    "play",
]

_HOMES = {
    "framework.artifacts.stack": (
        "Overrides",
        "Stack",
    ),
    "framework.board.spec": ("BoardSpec",),
    "framework.common.errors": (
        "ArtifactError",
        "BoardError",
        "BuildError",
        "ConfigError",
        "ExitCode",
        "GuestCrash",
        "GuestError",
        "InfrastructureError",
        "MedcheckError",
        "TraceError",
        "UsageError",
    ),
    "framework.conformance.checker": ("check_trace",),
    "framework.conformance.result": ("ConformanceResult",),
    "framework.fuzz.machine": ("play",),
    "framework.fuzz.steps": ("FuzzStep",),
    "framework.guests.dom0": ("Dom0",),
    "framework.guests.linux": ("LinuxGuest",),
    "framework.guests.xl": ("GuestConfig",),
    "framework.probe": (
        "hypercalls",
        "messages",
        "ops",
    ),
    "framework.probe.call": ("StdCall",),
    "framework.probe.client": (
        "Probe",
        "ProbeFault",
    ),
    "framework.probe.message": (
        "Cancel",
        "CloseSession",
        "Invoke",
        "OpenSession",
        "RegisterShm",
        "UnregisterShm",
    ),
    "framework.pytest_plugin.probes": (
        "Deviations",
        "MakeProbe",
        "Slowdown",
    ),
    "framework.pytest_plugin.verdict": ("Judge",),
    "framework.target.checkpoints": ("Checkpoint",),
    "framework.target.provider": ("TargetProvider",),
    "framework.target.target": ("Target",),
    "mediator_ref": (
        "DEVIATIONS",
        "Deviation",
        "Limits",
        "RULES",
        "Rule",
        "abi",
    ),
}
"""The module of every public name."""

_NAMES_THERE = {"FuzzStep": "Step", "check_trace": "check_file", "hypercalls": "xen", "messages": "message"}
"""What a public name is called in its module, where that differs."""

if not TYPE_CHECKING:  # or any name would be one

    def __getattr__(name: str) -> object:
        """Import a public name at its first use (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            found: object = version("medcheck")
        else:
            home = next((home for home, names in _HOMES.items() if name in names), None)
            if home is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            found = _import(home, _NAMES_THERE.get(name, name))
        globals()[name] = found
        return found


def _import(home: str, name: str) -> object:
    """A name of a module, or a module of a package."""
    module = import_module(home)
    return getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

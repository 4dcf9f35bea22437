# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes that wait for their first program, saved with their board and taken over in a clone.

Creating a probe's domain costs more than most tests do with it. Here it is done once: the clone's probes run already
and look for a program at their doorbells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.probe.client import Dom0Like, Probe, create_probe
from framework.probe.link import ConsoleLike, DoorbellServer

SOURCES = tuple(Path(__file__).with_name(name) for name in ("client.py", "link.py", "waiting.py"))
"""Inputs, beside the image, that decide which state the board is left in."""


@dataclass(frozen=True)
class ProbeSpec:
    """One probe domain to create, with OP-TEE."""

    name: str
    vcpus: int = 1
    memory_mib: int = 64


def leave(
    dom0: Dom0Like,
    specs: Iterable[ProbeSpec],
    consoles: Mapping[str, ConsoleLike],
    bells: DoorbellServer,
    image: Path,
) -> list[dict[str, Any]]:
    """Create probes on the console ports ``guest0``, ``guest1``, …, and leave each at its doorbell.

    Returns what :func:`take_over` needs, as plain JSON. Raises GuestError when one does not answer at its doorbell.
    """
    notes: list[dict[str, Any]] = []
    for number, spec in enumerate(specs):
        port = f"guest{number}"
        first = None if notes else image
        probe = create_probe(dom0, spec.name, port, consoles[port], first, vcpus=spec.vcpus, memory_mib=spec.memory_mib)
        # One that has been answered there rings 50 times a second and not 4 times.
        probe.transport = bells.transport(probe.domid)
        probe.run()
        notes.append({"name": spec.name, "domid": probe.domid, "memory_mib": spec.memory_mib})
    return notes


def take_over(notes: Sequence[Mapping[str, Any]], bells: DoorbellServer) -> list[Probe]:
    """Return the clients of a clone's probes, in the order of their creation; nothing is sent yet."""
    return [
        Probe(bells.transport(note["domid"]), name=note["name"], domid=note["domid"], memory_mib=note["memory_mib"])
        for note in notes
    ]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What unit tests share: they wait for nothing that they do not test."""

from __future__ import annotations

import os

import pytest

from framework.console import wait_policy
from framework.guests import ssh, ssh_talk


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks at what a disk holds after a power cut, and a busy disk takes a while to write it."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """SSH waits as on an idle host, and looks ten times as often whether the other side is dead."""
    for module in (ssh, ssh_talk, wait_policy):
        monkeypatch.setattr(module, "host_factor", lambda: 1.0)
    for module in (ssh, ssh_talk):
        monkeypatch.setattr(module, "TICK", 0.05)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of tests whose TEE lies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from framework.probe.link import DoorbellServer
from framework.trace.format import Kind

from ..lib.lying_tee import Liar


@pytest.fixture
def liar() -> Liar:
    """The TEE's other voice; silent until it is told a lie."""
    return Liar()


@pytest.fixture
def doorbells(request: pytest.FixtureRequest) -> Iterator[DoorbellServer]:
    """The plugin's doorbells, by which the liar of a test that has one hears of the board's events as well."""
    liar: Liar | None = request.getfixturevalue("liar") if "liar" in request.fixturenames else None
    before = {Kind.EL3_CALL, Kind.EL3_RETURN} if liar is not None else set()
    with DoorbellServer(before=before, on_event=liar) as bells:
        yield bells

# SPDX-License-Identifier: GPL-2.0-or-later
"""Time limits of the project's own tests; fixtures come from the plugin (framework.pytest_plugin), as for users."""

from __future__ import annotations

import pytest

_SECONDS = {"nightly": 2 * 3600, "slow": 1800}
"""Limits by marker, the longest first; pyproject.toml has that of all other tests."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give long tests a longer limit, unless a test sets its own."""
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        wanted = [seconds for name, seconds in _SECONDS.items() if item.get_closest_marker(name)]
        if wanted and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(wanted[0]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plugin: boards, guests and probes as fixtures, and the checker's verdict over what the mediator did.

Everything a test author gets comes with the installed package; no conftest.py is needed. ``-p no:medcheck`` leaves it
out. Options and markers begin with ``mc``, for other plugins have boards and rules too. Heavy imports happen inside
fixtures: collecting stays instant.
"""

from __future__ import annotations

# In the order of their imports: pytest rewrites the assertions of a module only if nothing has imported it before.
pytest_plugins = (
    "framework.pytest_plugin.former",
    "framework.pytest_plugin.options",
    "framework.pytest_plugin.verdict",
    "framework.pytest_plugin.fixtures",
    "framework.pytest_plugin.probes",
    "framework.pytest_plugin.hooks",
)

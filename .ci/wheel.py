# SPDX-License-Identifier: GPL-2.0-or-later
"""What a wheel holds beside the packages as they lie in the checkout; an editable installation needs none of it."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MOVED = {
    "images": "framework/images",
    "testcases/suite": "framework/suite",
    # A single module cannot say that it is typed (PEP 561), a package can.
    "medcheck.py": "medcheck/__init__.py",
    ".ci/py.typed": "medcheck/py.typed",
}


class Hook(BuildHookInterface):
    """Puts images, suite and public face where an installed package looks for them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to the wheel; ``version`` is ``standard`` or ``editable``."""
        if version == "standard":
            build_data["force_include"].update(MOVED)

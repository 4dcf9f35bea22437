# SPDX-License-Identifier: GPL-2.0-or-later
"""argparse's types that several commands use."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600}


def whole(text: str) -> int:
    """argparse's type of a number of things."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"expected a number, found '{text}'")
    return int(text)


def seconds(text: str) -> float:
    """argparse's type of a duration such as 90s, 30m or 2h, in seconds."""
    found = re.fullmatch(r"([0-9]{1,6})([smh])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 30m or 2h, found '{text}'")
    return float(found[1]) * _UNITS[found[2]]

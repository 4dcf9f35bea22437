# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy of the user's on what makes a result fail. A module of its own: the command line needs nothing else."""

from __future__ import annotations

from enum import StrEnum


class FailOn(StrEnum):
    """Policy on what fails, beyond nonconformances, which always do."""

    NONCONFORMANCE = "nonconformance"
    ISOLATION = "isolation"
    """Also a known deviation that breaks isolation."""
    ANY_DEVIATION = "any-deviation"

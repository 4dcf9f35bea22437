# SPDX-License-Identifier: GPL-2.0-or-later
"""Label of isolation findings, shown wherever one is named; SECURITY.md gives the reasons."""

from __future__ import annotations

TELL_FIRST = "isolation finding: tell the mediator's maintainers first, see SECURITY.md"
"""One label for terminals, reports and test results; a report that carries it is marked as a whole."""

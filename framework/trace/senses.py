# SPDX-License-Identifier: GPL-2.0-or-later
"""Senses: what a trace may show beside the calls themselves. Each has its price, so a run chooses."""

from __future__ import annotations

import os
from enum import StrEnum

from framework.common.errors import UsageError

VARIABLE = "MEDCHECK_SENSES"
"""Environment variable with the choice, for tests that pytest starts."""


class Sense(StrEnum):
    """One sense of the trace plugin.

    ``COVERAGE``: which instructions of the mediator ran. ``READS``: what EL2 reads and writes of a guest's pages.
    ``TIME``: how many instructions EL2 takes. ``BOOKS``: the lists that Xen keeps of a domain's calls, RPC pages and
    buffers. ``FRAMES``: the references of the pages that they and the calls name. ``HEAP``: free memory of Xen's.
    ``PARTITION``: the list that OP-TEE keeps of the memory that a guest shares with it.
    """

    COVERAGE = "coverage"
    READS = "reads"
    TIME = "time"
    BOOKS = "books"
    FRAMES = "frames"
    HEAP = "heap"
    PARTITION = "partition"


ALL = frozenset(Sense)


def chosen(text: str | None = None) -> frozenset[Sense]:
    """The senses that ``text`` names: ``all``, ``none``, or some, comma separated; without it, those of
    :data:`VARIABLE`, and without that, all.

    Raises UsageError for a word that is none.
    """
    text = os.environ.get(VARIABLE) or "all" if text is None else text
    if text in ("all", "none"):
        return ALL if text == "all" else frozenset()
    try:
        return frozenset(Sense(word.strip()) for word in text.split(","))
    except ValueError as error:
        known = ", ".join((*Sense, "all", "none"))
        raise UsageError(f"there is no sense {text!r}", hint=f"some of {known}, comma separated") from error

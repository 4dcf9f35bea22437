# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits of a mediator, and where its versions differ. Parameters, so that the reference fits others than Xen's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per domain (Xen ``optee.c``: MAX_SHM_BUFFER_COUNT, MAX_SHM_BUFFER_PG, MAX_TOTAL_SMH_BUF_PG).

    ``threads``: simultaneous standard calls, what OP-TEE answers to GET_THREAD_COUNT (``None``: taken from the trace,
    not checked before it was seen). ``total_pages`` is exclusive: at most ``total_pages - 1`` pages are allowed.
    """

    threads: int | None = None
    buffers: int = 16
    buffer_pages: int = 129
    total_pages: int = 16384
    writes_read_only: bool = True
    """Whether a request is written into read-only RAM of a guest: Xen before 4.22."""

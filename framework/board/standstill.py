"""Hung or slow: what of a board moved between two looks, and where its CPUs are if nothing did.

Three things move on a healthy board: bytes on consoles, SMCs in the trace (bytes of the trace file), and the
virtual CPUs (CPU time of QEMU's vCPU threads, which a sleeping CPU does not use). Time limits scale with
:func:`framework.board.hostspeed.host_factor`; a board that moves is slow, not hung.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framework.board.board import Board

Locate = Callable[[int], str | None]
"""Names the place of an address in somebody's symbols (``map_domain_page+0x24``); None for an unknown one."""

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Look:
    """What a board had done up to one moment: bytes per console, bytes of trace, CPU seconds per vCPU."""

    consoles: dict[str, int]
    trace_bytes: int
    cpu_seconds: dict[int, float]


def look(board: Board, trace: Path | None = None) -> Look:
    """Look at a board without disturbing it. Raises BoardError when it is gone."""
    cpus = {}
    for cpu in board.qmp.execute("query-cpus-fast"):
        stat = Path(f"/proc/{board.pid}/task/{cpu['thread-id']}/stat").read_text().rpartition(")")[2].split()
        cpus[int(cpu["cpu-index"])] = (int(stat[11]) + int(stat[12])) / _TICKS
    return Look(
        {name: console.bytes_seen for name, console in board.consoles.items()},
        trace.stat().st_size if trace is not None and trace.exists() else 0,
        cpus,
    )


def still(before: Look, now: Look, *, traced: bool = False) -> list[str]:
    """Name what stood still between two looks: ``consoles``, ``SMCs`` (only of a traced board), ``CPU n``."""
    found = [] if now.consoles != before.consoles else ["consoles"]
    if traced and now.trace_bytes == before.trace_bytes:
        found.append("SMCs")
    return found + [f"CPU {n}" for n, used in now.cpu_seconds.items() if used <= before.cpu_seconds.get(n, 0.0)]


def verdict(board: Board, before: Look, now: Look, *, traced: bool = False, locate: Locate | None = None) -> str:
    """Say in words whether a board is hung or slow, what stood still, and where every CPU is, with its
    registers."""
    quiet = still(before, now, traced=traced)
    everything = 1 + int(traced) + len(now.cpu_seconds)
    word = "hung" if len(quiet) == everything else "slow" if "consoles" in quiet else "running"
    registers = board.qmp.hmp("info registers -a").replace("\r", "")
    places = []
    for cpu, text in re.findall(r"CPU#(\d+)\s+PC=([0-9a-f]+)", registers):
        place = locate(int(text, 16)) if locate is not None else None
        places.append(f"CPU {cpu} at {int(text, 16):#x}{f' ({place})' if place else ''}")
    return f"{word}; stood still: {', '.join(quiet) or 'nothing'}; {'; '.join(places)}\n{registers}"

"""What a console says when something broke: one table, recognised while the bytes come in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """One thing to recognise in a console line.

    ``literal`` is searched first: it costs a memory scan, where the regular expression of every sign at
    every byte would cost more than everything else a console does. ``fatal``: nothing on this board moves
    any more.
    """

    kind: str
    literal: bytes
    pattern: re.Pattern[bytes]
    fatal: bool = False


def _sign(kind: str, literal: str, pattern: str | None = None, *, fatal: bool = False) -> Sign:
    return Sign(kind, literal.encode(), re.compile((pattern or re.escape(literal)).encode()), fatal)


SIGNS: tuple[Sign, ...] = (
    _sign("xen-panic", "Panic on CPU", r"\(XEN\).*Panic on CPU", fatal=True),
    _sign("xen-assertion", "Assertion '", r"\(XEN\).*Assertion '.*' failed"),
    _sign("xen-bug", "Xen BUG at"),
    _sign("xen-crash", "Xen call trace:", r"\(XEN\).*Xen call trace:"),
    _sign("optee-panic", "Panic at ", r"E/TC:.*Panic at ", fatal=True),
    _sign("optee-panic", "TEE-CORE panic", fatal=True),
    _sign("optee-panic", "Panic '", r"E/TC:.*Panic '", fatal=True),
    _sign("optee-assertion", "assertion", r"E/TC:.*assertion"),
    _sign("linux-panic", "Kernel panic - not syncing"),
    _sign("linux-oops", "Internal error: "),
    _sign("linux-bug", "kernel BUG at"),
    _sign("linux-stall", "detected stalls", r"rcu: INFO: rcu_\w+ (self-)?detected stalls?"),
    _sign("linux-stall", "self-detected stall", r"rcu: INFO: rcu_\w+ self-detected stall"),
    _sign("linux-lockup", "BUG: soft lockup"),
    _sign("linux-hang", "blocked for more than", r"INFO: task .* blocked for more than \d+ seconds"),
    _sign("firmware-panic", "PANIC at PC", fatal=True),
)
"""Sources: xen/common/{symbols,bug}.c and drivers/char/console.c, optee_os core/kernel/{panic,assert}.c,
Linux kernel/{panic,rcu/tree_stall.h,watchdog.c,hung_task.c} and arch/arm64/kernel/traps.c, TF-A
common/backtrace."""


@dataclass(frozen=True)
class Problem:
    """A broken thing seen on a console: ``at`` is in seconds since power-on, ``line`` as printed."""

    kind: str
    console: str
    line: str
    at: float
    fatal: bool


def scan(block: bytes) -> Iterator[tuple[Sign, bytes]]:
    """Yield each sign with the line it stands in, for a block of whole lines."""
    for sign in SIGNS:
        if sign.literal not in block:
            continue
        for match in sign.pattern.finditer(block):
            yield sign, line_around(block, match.start(), match.end())


def line_around(block: bytes, start: int, end: int) -> bytes:
    """Return the whole line that a match lies in, without its line end."""
    begin = block.rfind(b"\n", 0, start) + 1
    finish = block.find(b"\n", end)
    return block[begin : finish if finish >= 0 else len(block)].rstrip(b"\r")

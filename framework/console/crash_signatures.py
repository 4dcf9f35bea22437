"""What a console says when something broke: one table, recognised while the bytes come in."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CrashSignature:
    """One thing to recognise in a console line.

    ``literal`` is searched first: a memory scan, where the regular expression of every sign at every byte
    would cost more than everything else a console does. Signs share short literals, to be scanned for once.
    ``fatal``: nothing on this board moves any more.
    """

    kind: str
    literal: bytes
    pattern: re.Pattern[bytes]
    fatal: bool = False


def _sign(kind: str, literal: str, pattern: str | None = None, *, fatal: bool = False) -> CrashSignature:
    return CrashSignature(
        kind, literal.encode(), re.compile((pattern or re.escape(literal)).encode(), re.MULTILINE), fatal
    )


CRASH_SIGNATURES: tuple[CrashSignature, ...] = (
    _sign("xen-panic", "anic", r"\(XEN\).*Panic on CPU", fatal=True),
    _sign("xen-assertion", "ssertion", r"\(XEN\).*Assertion '.*' failed"),
    _sign("xen-bug", "BUG", r"\(XEN\).*Xen BUG at"),
    _sign("xen-warning", "Xen WARN at"),
    _sign("xen-domain-crash", "crash", r"\(XEN\).*(domain_crash called from|crashed (on cpu#|by domain ))"),
    _sign("optee-panic", "anic", r"E/TC:.*\bPanic( '.*)?( at |\r?$)", fatal=True),
    _sign("optee-assertion", "ssertion", r"E/TC:.*assertion (.* )?failed"),
    _sign("linux-panic", "anic", r"Kernel panic - not syncing"),
    _sign("linux-oops", "Internal error: "),
    _sign("linux-bug", "BUG", r"kernel BUG at"),
    _sign("linux-stall", "rcu: INFO", r"rcu: INFO: rcu_\w+ (self-)?detected (expedited )?stall"),
    _sign("linux-lockup", "BUG", r"BUG: soft lockup"),
    _sign("linux-hang", "blocked for more than", r"INFO: task .* blocked for more than \d+ seconds"),
    _sign("firmware-panic", "PANIC at PC", fatal=True),
)
"""Sources: Xen xen/arch/arm/traps.c, xen/common/domain.c and xen/drivers/char/console.c; OP-TEE OS
core/kernel/panic.c and assert.c; Linux kernel/panic.c, kernel/rcu/tree_stall.h, kernel/watchdog.c,
kernel/hung_task.c and arch/arm64/kernel/traps.c; TF-A common/aarch64/debug.S."""

_BY_LITERAL = {
    literal: tuple(sign for sign in CRASH_SIGNATURES if sign.literal == literal)
    for literal in dict.fromkeys(sign.literal for sign in CRASH_SIGNATURES)
}


@dataclass(frozen=True)
class Problem:
    """A broken thing seen on a console: ``at`` is in seconds since power-on, ``line`` as printed."""

    kind: str
    console: str
    line: str
    at: float
    fatal: bool


def scan(block: bytes) -> list[tuple[CrashSignature, bytes]]:
    """Return each sign with the line it stands in, in the order of the lines, for a block of whole lines."""
    found = []
    for literal, signs in _BY_LITERAL.items():
        if literal not in block:
            continue
        for sign in signs:
            for match in sign.pattern.finditer(block):
                found.append((match.start(), sign, line_around(block, match.start(), match.end())))
    return [(sign, line) for _, sign, line in sorted(found, key=lambda item: item[0])]


def line_around(block: bytes, start: int, end: int) -> bytes:
    """Return the whole line that a match lies in, without its line end."""
    begin = block.rfind(b"\n", 0, start) + 1
    finish = block.find(b"\n", end)
    return block[begin : finish if finish >= 0 else len(block)].rstrip(b"\r")

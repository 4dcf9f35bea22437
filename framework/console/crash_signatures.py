# SPDX-License-Identifier: GPL-2.0-or-later
"""Table of crash signatures: lines that consoles show when something broke, and which speaker may print each.

Guests decide what their consoles say, so nothing here trusts a line: a signature belongs to one speaker, a speaker is
heard on certain consoles only, and on a console that several share (dom0's kernel writes on Xen's, and a debug Xen
puts there what a domU prints, behind ``(XEN) d1v0``) the beginning of the line says whose line it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("xen", "optee", "dom0", "guest")
"""Consoles by what speaks on them; each ``guest0``, ``guest1``, ... has the role ``guest``."""


@dataclass(frozen=True)
class CrashSignature:
    """One thing to recognise in a console line, on consoles of one role.

    ``literal`` is searched first: a memory scan, where the regular expression of every signature at every line would
    cost more than everything else a console does. Signatures share short literals, to be scanned for once.
    ``pattern`` is anchored at the beginning of the line. ``fatal``: nothing on this board moves any more.
    ``follows`` matches a line that goes on with what this one began; its group is the text to add.
    """

    kind: str
    literal: bytes
    pattern: re.Pattern[bytes]
    fatal: bool = False
    follows: re.Pattern[bytes] | None = None


_OTHER = r"(?:(?!\(XEN\)).){0,200}"
_SPEAKERS: Mapping[tuple[str, str], str] = {
    # A line that dom0 left unfinished may stand before Xen's. What follows Xen's prefix is the message itself or
    # Xen's time stamp, never "d1v0": that is a guest's text, as is all behind "(d1)".
    ("xen", "xen"): r"(?!\(d[1-9])" + _OTHER + r"\(XEN\) {1,4}(?:\[[^\]]{0,40}\] )?",
    ("firmware", "xen"): r"(?!\(d[1-9])" + _OTHER,
    # TF-A prints its crashes on the secure UART; a trusted application's lines begin with a label such as "M/TA:".
    ("firmware", "optee"): r"(?:(?![A-Z]/[A-Z]{2}:).){0,200}",
    # OP-TEE puts "*" before its lines when it could not wait for the console.
    ("optee", "optee"): r"(?:(?![A-Z]/[A-Z]{2}:).){0,200}E/TC:",
    ("linux", "guest"): r".{0,400}?",
    ("linux", "dom0"): r".{0,400}?",
    # dom0's kernel prints on Xen's console until its own is there, and for good if that never comes.
    ("linux", "xen"): r"(?!\(d[1-9])" + _OTHER,
}
"""Speakers that are accepted on consoles of each role, and how their lines begin there."""

_REASON = r"\(XEN\) {0,4}(?:\[[^\]]{0,40}\] )?(?! {0,4}\*)(.*)"

# Speaker, kind, literal, message (the literal itself unless given), roles on which it is fatal, lines that go on.
_TABLE: tuple[tuple[str, str, str, str | None, tuple[str, ...], str | None], ...] = (
    ("xen", "xen-panic", "anic", r"Panic on CPU", ("xen",), _REASON),
    ("xen", "xen-assertion", "ssertion", r"Assertion '.{0,300}' failed", (), None),
    ("xen", "xen-bug", "BUG", r"Xen BUG at", (), None),
    ("xen", "xen-warning", "Xen WARN at", None, (), None),
    ("xen", "xen-domain-crash", "crash",
     r"(?:domain_crash called from|[Dd]omain \d{1,18} .{0,80}?crashed (?:on cpu#|by domain ))", (), None),
    ("xen", "dom0-crash", "Hardware Dom", r"Hardware Dom\d{1,18} (?:crashed|halted|shutdown|watchdog)", ("xen",), None),
    ("optee", "optee-panic", "anic", r".{0,200}?\bPanic(?: '.{0,300}')?(?: at |$)", ("optee",), None),
    ("optee", "optee-assertion", "ssertion", r".{0,200}?assertion (?:.{0,300} )?failed", (), None),
    ("linux", "linux-panic", "anic", r"Kernel panic - not syncing", ("xen",), None),
    ("linux", "linux-oops", "Internal error: ", None, (), None),
    ("linux", "linux-bug", "BUG", r"kernel BUG at", (), None),
    ("linux", "linux-stall", "INFO: rcu", r"INFO: rcu_\w{1,40} (?:self-)?detected (?:expedited )?stall", (), None),
    ("linux", "linux-lockup", "BUG", r"BUG: (?:soft|workqueue) lockup", (), None),
    ("linux", "linux-lockup", "hard LOCKUP", r"Watchdog detected hard LOCKUP on cpu", (), None),
    ("linux", "linux-hang", "blocked ",
     r"INFO: task .{1,120}? blocked (?:in I/O wait |on .{1,60}? )?for more than \d{1,18} seconds", (), None),
    ("linux", "linux-oom", "ut of memory", r"[Oo]ut of memory: Kill(?:ed)? process \d{1,18}", (), None),
    ("firmware", "firmware-panic", "PANIC ", r"PANIC (?:at PC|in EL\d)", ("xen", "optee"), None),
    ("firmware", "firmware-panic", "in EL3", r"Unhandled .{0,40}?in EL3", ("xen", "optee"), None),
)  # fmt: skip
"""Sources: Xen xen/arch/arm/traps.c, xen/common/domain.c, xen/common/shutdown.c and xen/drivers/char/console.c; OP-TEE
OS core/kernel/panic.c and assert.c; Linux kernel/panic.c, kernel/rcu/tree_stall.h (and what it was before 4.20),
kernel/watchdog.c, kernel/watchdog_perf.c, kernel/hung_task.c, mm/oom_kill.c and arch/arm64/kernel/traps.c; TF-A
common/aarch64/debug.S and bl31/aarch64/crash_reporting.S."""


def _signatures(role: str) -> tuple[CrashSignature, ...]:
    found = []
    for speaker, kind, literal, message, fatal, follows in _TABLE:
        begins = _SPEAKERS.get((speaker, role))
        if begins is not None:
            pattern = re.compile(rf"\A{begins}{message or re.escape(literal)}".encode())
            on = None if follows is None else re.compile(rf"\A{follows}".encode())
            found.append(CrashSignature(kind, literal.encode(), pattern, role in fatal, on))
    return tuple(found)


CRASH_SIGNATURES: Mapping[str, tuple[CrashSignature, ...]] = {role: _signatures(role) for role in ROLES}
"""Signatures that are recognised on consoles of each role."""

DOM0_DEATHS = frozenset({"linux-panic", "linux-oops", "linux-bug", "dom0-crash"})
"""Kinds that mean dom0's death when they stand on Xen's console."""


def role_of(console: str) -> str:
    """Return the role of a console by its name: ``guest`` for what has no role of its own."""
    return console if console in ROLES else "guest"

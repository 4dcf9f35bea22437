# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen itself, on its serial console: asked by debug key, without dom0, and so without a connection to it."""

from __future__ import annotations

from typing import Protocol

from framework.common.errors import BoardError
from framework.diagnosis.crash import ConsoleLike

_SWITCH = b"\x01\x01\x01"
"""Ctrl-A three times: what is typed then goes to the next in turn of Xen and domains (xen/drivers/char/console.c)."""
_MEMORY_INFO = b"m"
_MOST_DOMAINS = 8

_FREE = rb"\n\(XEN\) (?:\[[^\]\r\n]{0,40}\])? {1,8}Dom heap: ([0-9]{1,12})kB free"
"""The key's last line (pagealloc_info() in xen/common/page_alloc.c). Those of guests begin otherwise."""
_INPUT = rb"\*\*\* Serial input to ([A-Za-z0-9]{1,20})"
_ALL = rb"\A.*\Z"


class Typable(ConsoleLike, Protocol):
    """A console that takes bytes which are no line."""

    def send(self, text: str | bytes) -> None:
        """Type something."""
        ...


def free_kib(console: Typable, idle_timeout: float = 10.0) -> int:
    """Ask Xen how much memory it has left for domains, in KiB.

    Raises BoardError when it does not answer, for one because its console takes no input.
    """
    # What it said before is no answer.
    console.expect([_ALL], idle_timeout)
    for _ in range(_MOST_DOMAINS):
        if _switch(console, idle_timeout) != b"Xen":
            continue
        console.send(_MEMORY_INFO)
        answer = console.expect([_FREE, _INPUT], idle_timeout)
        if answer.re.pattern == _INPUT:
            # Xen 4.17 takes the first three keys after a cold boot for six: what was typed has gone to the next one.
            continue
        free = int(answer[1])
        # Back to where it went before: to dom0, where Xen's command line does not say otherwise.
        _switch(console, idle_timeout)
        return free
    raise BoardError("what is typed on its console never comes to Xen", where="console xen")


def _switch(console: Typable, idle_timeout: float) -> bytes:
    """Lead what is typed to the next one in turn; its name."""
    console.send(_SWITCH)
    return console.expect([_INPUT], idle_timeout)[1]

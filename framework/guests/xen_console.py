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
_ELSEWHERE = rb"\*\*\* Serial input to (?!Xen)"


class Typable(ConsoleLike, Protocol):
    """A console that takes bytes which are no line."""

    def send(self, text: str | bytes) -> None:
        """Type something."""
        ...


def free_kib(console: Typable, idle_timeout: float = 10.0) -> int:
    """Ask Xen how much memory it has left for domains, in KiB.

    Raises BoardError when it does not answer, for one because its console takes no input.
    """
    for _ in range(_MOST_DOMAINS):
        console.send(_SWITCH + _MEMORY_INFO)
        match = console.expect([_FREE, _ELSEWHERE], idle_timeout)
        if match[0].endswith(b"free"):
            # Back to where it went before: to dom0, where Xen's command line does not say otherwise.
            console.send(_SWITCH)
            return int(match[1])
    raise BoardError("what is typed on its console never comes to Xen", where="console xen")

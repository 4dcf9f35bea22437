# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's memory, as Xen itself tells it on its console."""

from __future__ import annotations

import re
from typing import Any

import pytest

from framework.common.errors import BoardError
from framework.guests.xen_console import free_kib

INFO = b"\r\n(XEN) [2026-01-01 00:00:09] Physical memory information:\r\n(XEN)     Dom heap: %dkB free\r\n"
FORGED = b"\r\n(XEN) d1v0 (XEN)     Dom heap: 1kB free\r\n(d2)     Dom heap: 2kB free\r\n"
TO_XEN, TO_DOM0 = b"\r\n(XEN) *** Serial input to Xen\r\n", b"\r\n(XEN) *** Serial input to DOM0\r\n"


class Console:
    """Xen's console with its input at Xen or at dom0; three times Ctrl-A moves it on."""

    name = "xen"

    def __init__(self, *, at_xen: bool, deaf: bool = False, twice: bool = False, before: bytes = b"") -> None:
        self.at_xen = at_xen
        self.deaf = deaf
        self.twice = twice
        self.said = before
        self.kib = 0

    def send(self, text: bytes) -> None:
        if self.deaf:
            self.said += TO_DOM0
            return
        if text == b"m" and self.at_xen:
            self.kib += 1
            self.said += INFO % self.kib
        elif text != b"m":
            self.at_xen = not self.at_xen
            self.said += TO_XEN if self.at_xen else TO_DOM0
            if self.twice:
                self.twice = False
                self.send(text)

    def expect(self, patterns: list[bytes], idle_timeout: float) -> re.Match[bytes]:  # noqa: ARG002
        found = [match for pattern in patterns if (match := re.search(pattern, self.said, re.DOTALL))]
        match = min(found, key=lambda match: match.start())
        self.said = self.said[match.end() :]
        return match


@pytest.mark.parametrize("at_xen", [False, True])
def test_xen_is_asked_wherever_its_input_goes_and_a_guest_cannot_answer(at_xen: bool) -> None:
    console: Any = Console(at_xen=at_xen, before=FORGED + TO_DOM0 + INFO % 99)
    # Each answer is to its own question.
    assert [free_kib(console) for _ in range(3)] == [1, 2, 3]
    assert not console.at_xen


def test_xen_is_asked_again_when_it_takes_the_first_keys_twice() -> None:
    console: Any = Console(at_xen=False, twice=True)
    assert free_kib(console) == 1
    assert not console.at_xen


def test_a_console_without_input_is_no_answer() -> None:
    console: Any = Console(at_xen=False, deaf=True)
    with pytest.raises(BoardError, match="never comes to Xen"):
        free_kib(console)

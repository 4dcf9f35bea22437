# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a sign of life of a hypervisor, and what as its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import BoardError, GuestError
from framework.target import liveness
from framework.target.liveness import Hypervisor, hypervisor_of


def target(alive: bool, problems: tuple[tuple[str, bool], ...] = (), info: Any = None, told: int | None = None) -> Any:
    """A board whose Xen tells ``told`` KiB on its console, or nothing, and ``info`` to dom0."""

    def ask() -> dict[str, str]:
        if isinstance(info, Exception):
            raise info
        return dict(info or {})

    found = [SimpleNamespace(kind=kind, fatal=fatal) for kind, fatal in problems]
    return SimpleNamespace(
        board=SimpleNamespace(alive=alive, problems=found, consoles={"xen": told}),
        dom0=SimpleNamespace(xl=SimpleNamespace(info=ask)),
    )


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> None:
    def free_kib(told: int | None) -> int:
        if told is None:
            raise BoardError("no answer")
        return told

    monkeypatch.setattr(liveness, "free_kib", free_kib)


@pytest.mark.parametrize(
    ("board", "seen"),
    [
        (target(True, told=1800 << 10), Hypervisor(True, True)),
        (target(True, told=3 << 10), Hypervisor(True, False)),
        (target(True, (("xen-panic", True),), told=1800 << 10), Hypervisor(False)),
        (target(True, info={"free_memory": "1800"}), Hypervisor(True, True)),
        (target(True, info={"free_memory": "3"}), Hypervisor(True, False)),
        (target(True, info={"free_memory": "9" * 5000}), Hypervisor(True, False)),
        (target(True, info=GuestError("no answer")), Hypervisor(None)),
        (target(False), Hypervisor(None)),
        (
            target(True, (("linux-panic", True), ("xen-warning", False)), {"free_memory": "1800"}),
            Hypervisor(True, True),
        ),
        (target(True, (("xen-panic", True),), {"free_memory": "1800"}), Hypervisor(False)),
        (target(False, (("xen-panic", True),)), Hypervisor(False)),
    ],
)
def test_only_xens_own_words_are_its_end_and_only_an_answer_is_life(board: Any, seen: Hypervisor) -> None:
    assert hypervisor_of(board) == seen

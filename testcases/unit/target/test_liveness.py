# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a sign of life of a hypervisor, and what as its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.common.errors import BoardError, GuestError
from framework.target import liveness
from framework.target.liveness import Hypervisor, hypervisor_of, threads_said


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


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        (b"[     0.412] (XEN) OP-TEE supports 2 simultaneous threads per guest.", 2),
        (b"[     0.412] (XEN) [    0.051234] OP-TEE supports 16 simultaneous threads per guest.", 16),
        # A guest's words on Xen's console, and a number that no Xen has.
        (b"[     9.100] (XEN) d1v0 OP-TEE supports 9 simultaneous threads per guest.", None),
        (b"[     9.100] (d1) (XEN) OP-TEE supports 9 simultaneous threads per guest.", None),
        (b"[     0.412] (XEN) OP-TEE supports " + b"9" * 5000 + b" simultaneous threads per guest.", None),
        (b"[     0.412] (XEN) d1v0 OP-TEE supports 9 simultaneous threads per guest.\n"
         b"[     0.500] (XEN) OP-TEE supports 2 simultaneous threads per guest.", 2),
        (b"[     0.412] x\n" * 400_000 + b"[     9.100] (XEN) OP-TEE supports 9 simultaneous threads per guest.", None),
    ],
    ids=["xen", "with-its-time", "domu", "domu-release", "endless", "domu-first", "late"],
)  # fmt: skip
def test_the_number_of_threads_is_what_xen_said_while_it_booted(
    tmp_path: Path, text: bytes, threads: int | None
) -> None:
    (tmp_path / "consoles").mkdir()
    (tmp_path / "consoles/xen.log").write_bytes(text + b"\n")
    assert threads_said(tmp_path) == threads


def test_without_a_console_the_trace_decides_the_number_of_threads(tmp_path: Path) -> None:
    assert threads_said(tmp_path) is None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs without their calls, for ``--mc-no-stimulus``."""

from __future__ import annotations

from framework.probe.ops import Call, Code, Drive, Join, Loop, Op, Read, Run, Write
from framework.probe.program import Program
from framework.pytest_plugin.no_call_probe import without_calls


def calls_in(ops: tuple[Op, ...]) -> int:
    return sum(isinstance(op, Call | Drive) + calls_in(getattr(op, "body", ())) for op in ops)


def test_no_call_is_left_and_everything_else_is() -> None:
    program = Program(
        (
            Write(0x40400000, b"x"),
            Call((1, 2)),
            Run(1, (Loop(3, (Drive((3, 4)), Drive((5,), quiet=True))),)),
            Join(1),
            Read(0x40400000, 8),
        )
    )
    silent = without_calls(program)
    assert calls_in(program.ops) == 3
    assert calls_in(silent.ops) == 0
    assert [type(op) for op in silent.ops] == [Write, Code, Run, Join, Read]
    assert silent.ops[0] == program.ops[0]


def test_a_program_without_calls_is_left_alone() -> None:
    program = Program((Loop(2, (Read(0x40400000, 8),)),), "title")
    assert without_calls(program) == program

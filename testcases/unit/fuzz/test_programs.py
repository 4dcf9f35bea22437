# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz programs: drawn, written, read, printed as tests, and planned for a probe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.common.errors import UsageError
from framework.fuzz import machine
from framework.fuzz.corpus import Corpus
from framework.fuzz.machine import Actor, Machine, cookie
from framework.fuzz.program import FuzzProgram, as_pytest, joined, load, parsed
from framework.fuzz.steps import DOMAINS, STEPS, TABLES, Several, check, fields_of, short, value_of
from framework.fuzz.strategies import programs, smaller
from framework.probe.client import Probe
from framework.probe.message import PTA_CMD_PARAMS, PTA_CMD_TRACE
from framework.probe.ops import Call, Drive, Join, Op, Read, Write
from framework.probe.program import Program
from framework.probe.wire import Record, Status
from mediator_ref.abi import HEADER, RPC_CMD_RETURN

quick = settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
anywhere = st.sampled_from(sorted(DOMAINS)).flatmap(programs)
KNOWN = FuzzProgram("probe", ({"do": "call", "command": "REGISTER_SHM", "params": [{"is": "tmem", "pages": 3}]},))


@quick
@given(anywhere)
def test_a_program_is_the_same_after_it_was_written_and_read(program: FuzzProgram) -> None:
    check(program.steps)
    assert parsed(program.text, "here") == program
    assert parsed(json.dumps(json.loads(program.text)), "here").digest == program.digest
    assert len(program.shape) == len(program.steps) + program.dies


@quick
@given(programs("probe", st.just(KNOWN)))
def test_programs_made_from_known_ones_are_programs(program: FuzzProgram) -> None:
    check(program.steps)


@quick
@given(st.data())
def test_a_smaller_program_is_part_of_the_program(data: st.DataObject) -> None:
    program = data.draw(anywhere)
    part = data.draw(smaller(program))
    check(part.steps)
    assert len(part.steps) <= len(program.steps)
    assert len(part.text) <= len(program.text)


@quick
@given(anywhere)
def test_the_printed_file_compiles_and_holds_the_program(program: FuzzProgram) -> None:
    source = as_pytest(program, "std_9", 'words with "quotes" and a \\ in them')
    space: dict[str, Any] = {}
    exec(compile(source, "test_std_9.py", "exec"), space)
    assert [short(step) for step in space["STEPS"]] == [short(step) for step in program.steps]
    assert callable(space["test_std_9"])
    assert ("dies=target" in source) == program.dies


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[]", "expected an object"),
        ('{"medcheck-fuzz": 2}', "expected an object"),
        ('{"medcheck-fuzz": 1, "checkpoint": "ready", "steps": []}', "checkpoint"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "explode"}]}', "expected 'do'"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": ["call"]}]}', "expected 'do'"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "call", "page": 7}]}', "no such field or value"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "call", "page": true}]}', "no such field"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "fast", "x1": -1}]}', "no such field or value"),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "call", "params": [{"is": "x"}]}]}', "'is'"),
        (
            '{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": [{"do": "together", "first": [{"do": "reset"}]}]}',
            "may",
        ),
        ('{"medcheck-fuzz": 1, "checkpoint": "probe", "steps": ' + "[" * 9999, "no JSON"),
    ],
)
def test_what_is_no_program_is_refused_with_its_reason(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "program.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_programs_that_ran_one_after_the_other_are_one_with_resets() -> None:
    last = FuzzProgram("probe", ({"do": "fast"},), dies=True)
    whole = joined([KNOWN, last])
    assert [step["do"] for step in whole.steps] == ["call", "reset", "fast"]
    assert whole.dies and joined([last]) == last


def test_a_corpus_keeps_programs_by_content_and_leaves_other_files_alone(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.add(KNOWN)
    corpus.add(KNOWN)
    (tmp_path / "of-a-newer-version.json").write_text('{"medcheck-fuzz": 9}')
    again = Corpus(tmp_path)
    assert again.programs == again.of("probe") == [KNOWN] and not again.of("probe_pair")
    again.drop(KNOWN)
    assert not Corpus(tmp_path).programs
    assert [path.name for path in tmp_path.iterdir()] == ["of-a-newer-version.json"]


class FakeProbe(Probe):
    """Gives out pages as a probe does; every call comes back with ``x0``."""

    def __init__(self, x0: int = 0) -> None:
        super().__init__(None, memory_mib=64)  # type: ignore[arg-type]
        self.x0 = x0
        self.ran: list[Op] = []

    def execute(self, program: Program, *, timeout_s: float = 30.0) -> tuple[Record, ...]:  # noqa: ARG002
        program.encode()  # what cannot be encoded cannot be run
        self.ran += program.ops
        return tuple(self._record(op) for op in program.ops if isinstance(op, Call | Drive | Read | Join))

    def _record(self, op: Op) -> Record:
        if isinstance(op, Read):
            return Record(op, Status.OK, data=bytes(op.length))
        return Record(op, Status.OK, regs=(self.x0, *range(1, 18)))


@quick
@given(anywhere, st.sampled_from([0, RPC_CMD_RETURN, 3]))
def test_every_program_can_be_planned_and_leaves_nothing_waiting(program: FuzzProgram, x0: int) -> None:
    probes = [FakeProbe(x0) for _ in range(DOMAINS[program.checkpoint])]
    found = Machine(probes)
    for step in program.steps:
        found.run(step)
    found.reset()
    assert not any(actor.given_back for actor in found.actors)
    assert x0 == RPC_CMD_RETURN or not any(actor.waiting for actor in found.actors)
    assert not any(probe.history for probe in probes)


def test_every_kind_of_step_has_its_planner_and_every_field_a_simplest_value() -> None:
    for table, kinds in TABLES.items():
        for kind in kinds:
            fields = fields_of(table, kind)
            assert all(rule.fits(rule.simplest) for rule in fields.values())
            tag = {"steps": "do", "parameters": "is"}[table]
            whole = {tag: kind, **{name: rule.simplest for name, rule in fields.items()}}
            assert short(whole, table) == {tag: kind}
    assert all(hasattr(Actor, name) for name in machine._PLANNERS.values())
    assert set(machine._PLANNERS) == set(STEPS)


def calls_of(ops: Sequence[Op]) -> list[Drive]:
    return [op for op in ops if isinstance(op, Drive)]


def test_a_call_that_waits_is_resumed_with_its_thread_and_by_number() -> None:
    probe = FakeProbe(RPC_CMD_RETURN)
    actor = Actor(probe)
    actor.run({"do": "call", "park": 1})
    assert len(actor.waiting) == 2  # the session that an actor opens waits as well, here
    actor.run({"do": "resume", "call": 1, "answer": "as it is", "thread": "next"})
    resumed = calls_of(probe.ran)[-1]
    assert resumed.regs[:4] == (0x32000003, 1, 2, 4)


@pytest.mark.parametrize(("params", "function"), [
    ([{"is": "rmem"}], PTA_CMD_TRACE),
    ([{"is": "none"}, {"is": "tmem", "list": "null", "size": "zero"}], PTA_CMD_TRACE),
    ([{"is": "raw"}, {"is": "rmem"}], PTA_CMD_TRACE),
    ([{"is": "tmem"}], PTA_CMD_PARAMS),
    ([{"is": "tmem", "list": "null"}, {"is": "value"}], PTA_CMD_PARAMS),
])  # fmt: skip
def test_the_test_ta_is_not_asked_to_take_optee_down(params: list[dict[str, Any]], function: int) -> None:
    actor = Actor(FakeProbe())
    ops, _ = actor.plan({"do": "call", "params": params})
    (message,) = [op.data for op in ops if isinstance(op, Write) and len(op.data) > HEADER.size]
    assert HEADER.unpack_from(message)[1] == function


def test_cookies_differ_in_their_halves() -> None:
    names = [cookie(number) for number in range(7)]
    assert len(set(names)) == 7
    assert names[4] & 0xFFFFFFFF == names[0] & 0xFFFFFFFF and names[4] != names[0]
    assert value_of({"do": "call"}, "command") == "INVOKE_COMMAND"
    assert isinstance(fields_of("steps", "call")["params"], Several)

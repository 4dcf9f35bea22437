# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/rules.md is what is generated, and every test on a board says which rules it is about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from framework.common.disclosure import TELL_FIRST
from framework.common.errors import ConfigError
from framework.common.paths import ROOT
from framework.conformance.rules_doc import board_tests, rules_table
from mediator_ref import DEVIATIONS, RULES

REQUIREMENTS = {f"R{number}" for number in range(1, 23)}

MODULE = """
import pytest

pytestmark = [pytest.mark.mc_board, pytest.mark.mc_rule("R1")]

@pytest.mark.mc_rule("STD-1", "D4")
def test_plain(): ...

@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.mc_rule("STD-2"))])
def test_parameters(x): ...

@pytest.mark.mc_rule("MEM-1")
class TestGroup:
    @pytest.mark.mc_rule("MEM-2")
    def test_inner(self): ...

    def helper(self): ...

def helper(): ...
"""


def test_the_document_is_what_is_generated() -> None:
    document = (ROOT / "docs" / "rules.md").read_text()
    assert document == rules_table(board_tests()), "medcheck explain --table > docs/rules.md"


def test_the_command_writes_the_document() -> None:
    command = [sys.executable, "-m", "framework.cli", "explain", "--table"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == rules_table(board_tests())


def test_marks_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "abi").mkdir()
    (tmp_path / "abi" / "test_it.py").write_text(MODULE)
    (tmp_path / "abi" / "helpers.py").write_text("@pytest.mark.mc_rule('STD-9')\ndef test_not_collected(): ...\n")
    plain, parameters, inner = (
        f"abi/test_it.py::{name}" for name in ("test_plain", "test_parameters", "TestGroup::test_inner")
    )
    assert board_tests(tmp_path) == {
        "R1": (plain, parameters, inner),
        "STD-1": (plain,),
        "D4": (plain,),
        "STD-2": (parameters,),
        "MEM-1": (inner,),
        "MEM-2": (inner,),
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [("def test(:\n", ":1"), ("ID = 'STD-1'\n@pytest.mark.mc_rule(ID)\ndef test_it(): ...\n", ":2")],
)
def test_what_cannot_be_read_is_an_error_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "test_it.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        board_tests(tmp_path)
    assert caught.value.where == f"{tmp_path / 'test_it.py'}{where}"


def test_every_mark_names_something_that_exists() -> None:
    assert set(board_tests()) <= set(RULES) | set(DEVIATIONS) | REQUIREMENTS


def test_rules_that_isolation_findings_break_carry_the_label() -> None:
    sections = {part.split(":")[0]: part for part in rules_table({}).split("\n### ")[1:]}
    assert list(sections) == [*RULES, *DEVIATIONS]
    private = [d for d in DEVIATIONS.values() if d.disclosure]
    assert private
    for deviation in DEVIATIONS.values():
        assert (TELL_FIRST in sections[deviation.id]) == deviation.disclosure
    for rule in RULES:
        assert (TELL_FIRST in sections[rule]) == any(rule in d.rules for d in private), rule

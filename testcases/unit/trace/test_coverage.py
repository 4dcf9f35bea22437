# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage: from the plugin's counts and Xen's debug information to lines, branches and their reports."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from framework.common.errors import TraceError, UsageError
from framework.report.coverage import cobertura, lcov, source_files, spans
from framework.trace.coverage import Coverage, merged, read_coverage
from framework.trace.senses import ALL, VARIABLE, Sense, chosen
from framework.trace.xen_code import Branch, Function, MediatorCode, Row
from framework.trace.xen_symbols import XenLayout

HEAD = "medcheck-coverage 1\nrange 0x1000 0x1020\n"
CODE = MediatorCode(
    files=("arch/arm/tee/optee.c",),
    ranges=((0x1000, 0x1020),),
    rows=(Row(0x1000, 0x1008, 0, 10), Row(0x1008, 0x1010, 0, 11), Row(0x1010, 0x1020, 0, 13)),
    functions=(Function("handle", 0x1000, 0, 9), Function("refuse", 0x1010, 0, 12)),
    branches=(Branch(0x1004, 0, 10, 3), Branch(0x100C, 0, 11, 1), Branch(0x1018, 0, 13, 3)),
)


def write(path: Path, *rows: str) -> Path:
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows) + f"end {len(rows)}\n")
    return path


def test_boards_are_added_up(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "0x1000 5 0", "0x1004 5 1")
    two = write(tmp_path / "b", "0x1000 2 0", "0x1004 2 2", "0x1008 2 0")
    killed = tmp_path / "c"
    killed.write_text("")
    total = merged([one, killed, two])
    assert total is not None and total.boards == 2
    assert total.counts == {0x1000: 7, 0x1004: 7, 0x1008: 2} and total.outcomes == {0x1004: 3}
    assert merged([killed]) is None


@pytest.mark.parametrize("text", ["x\n", HEAD + "0x1000 5 0\n", HEAD + "0x1000 5 0\nend 2\n", HEAD + "what\nend 1\n"])
def test_a_file_that_was_cut_or_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(TraceError, match="no whole coverage file"):
        read_coverage(tmp_path / "c")


def test_coverage_of_two_xens_is_not_mixed(tmp_path: Path) -> None:
    other = tmp_path / "b"
    other.write_text("medcheck-coverage 1\nrange 0x2000 0x2020\nend 0\n")
    with pytest.raises(TraceError, match="another Xen"):
        merged([write(tmp_path / "a"), other])


def test_lines_branches_and_functions_of_a_run() -> None:
    coverage = Coverage(CODE.ranges, {0x1000: 4, 0x1004: 4, 0x1008: 3, 0x100C: 3}, {0x1004: 1, 0x100C: 1})
    (file,) = source_files(CODE, coverage)
    assert file.lines == {10: 4, 11: 3, 13: 0}
    assert file.branches == {10: [True, False], 11: [True], 13: [None, None]}
    report = file.report()
    assert (report.lines, report.lines_seen, report.branches, report.branches_seen) == (3, 2, 5, 2)
    assert (report.functions, report.functions_seen, report.not_seen) == (2, 1, "13")
    text = lcov([file]).decode()
    assert "DA:13,0\n" in text and "BRDA:10,0,1,0\n" in text and "BRDA:13,0,0,-\n" in text and "FNDA:4,handle\n" in text
    assert text.endswith("end_of_record\n")
    root = ET.fromstring(cobertura([file], 0))
    assert root.get("lines-covered") == "2" and root.get("branch-rate") == "0.4000"
    assert [line.get("hits") for line in root.iter("line")] == ["4", "3", "0"]


def test_lines_are_named_in_spans() -> None:
    assert spans([1, 2, 4, 7, 9], {2, 4, 9}) == "2-4, 9" and spans([1], set()) == ""


SOURCE = """
int seen(int a, unsigned *b)
{
    if (a)
        *b = 1;
    if (!b)
        __builtin_trap();
    return a + 1;
}
"""


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs aarch64-linux-gnu-gcc")
def test_code_comes_from_the_line_table(tmp_path: Path) -> None:
    """A trap (BUG, ASSERT) is no way that a branch may go."""
    source = tmp_path / "tee" / "optee.c"
    source.parent.mkdir()
    names = ["arch_domain_create", "domain_kill", "arch_domain_destroy", "per_cpu__curr_vcpu"]
    needed = "struct domain { short domain_id; }; struct vcpu { int vcpu_id; struct domain *domain; };\n"
    needed += "struct vcpu v; struct domain d;" + "".join(f"int {name};" for name in names)
    source.write_text(needed + SOURCE)
    compiler = ["aarch64-linux-gnu-gcc", "-g", "-O1", "-nostdlib", "-static", "-Wl,-e,0"]
    subprocess.run([*compiler, "-o", tmp_path / "xen-syms", source], check=True, cwd=tmp_path)
    from elftools.elf.elffile import ELFFile

    from framework.trace.dwarf import Budget, Purpose
    from framework.trace.xen_code import mediator_code

    with (tmp_path / "xen-syms").open("rb") as stream:
        elf = ELFFile(stream)
        dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
        code = mediator_code(elf, dwarf, list(dwarf.iter_CUs()), Budget("", 60, Purpose("a test", "")))
    (function,) = code.functions
    assert function.name == "seen" and code.ranges[0][0] == function.start
    first = function.line
    assert {row.line for row in code.rows} >= {first + offset for offset in (2, 3, 4, 6)}
    assert sorted((branch.line - first, branch.outcomes.bit_count()) for branch in code.branches) == [(2, 2), (4, 1)]
    assert MediatorCode.from_json(code.to_json()) == code
    assert XenLayout.from_json(XenLayout({}, {}, code).to_json()).code == code


def test_senses_are_chosen_by_word_and_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen() == ALL and chosen("none") == frozenset() and chosen("reads,time") == {Sense.READS, Sense.TIME}
    monkeypatch.setenv(VARIABLE, "coverage")
    assert chosen() == {Sense.COVERAGE} and chosen("all") == ALL
    with pytest.raises(UsageError, match="no sense 'smell'"):
        chosen("smell")

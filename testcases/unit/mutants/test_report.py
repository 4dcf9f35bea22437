# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a campaign, and the table of seeded faults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from framework.common.errors import ConfigError, UsageError
from framework.mutants import equivalents, faults, report
from framework.mutants.outcome import Status, Verdict
from mediator_ref import RULES
from testcases.unit.mutants.test_campaign import XEN

_VERDICTS = {
    1: Verdict(Status.NONCONFORMANCE, "a", ("STD-3",), ("a",)),
    2: Verdict(Status.NONCONFORMANCE, "a", ("STD-3", "MEM-1"), ("a",)),
    3: Verdict(Status.SURVIVED, evidence=("2 of 2 tests",), ran=("a", "b")),
    4: Verdict(Status.EQUIVALENT, evidence=("the same machine code",)),
    5: Verdict(Status.NOT_MET),
}


def test_the_score_leaves_out_what_cannot_be_killed() -> None:
    found = report.score(_VERDICTS)
    assert (found.total, found.killed) == (4, 2)
    assert found.share(Status.NONCONFORMANCE) == 0.5
    assert report.score({}).share(Status.SURVIVED) == 0


def test_rules_earn_their_keep() -> None:
    rows = {row.rule: (row.kills, row.alone) for row in report.worth(_VERDICTS)}
    assert rows["STD-3"] == (2, 1)
    assert rows["MEM-1"] == (1, 0)
    assert rows.keys() == RULES.keys()


def test_the_document_has_what_the_schema_asks_for() -> None:
    found = report.document("int x;\n", XEN.mutants, _VERDICTS)
    assert found.keys() >= {"schemaVersion", "thresholds", "files"}
    file = found["files"]["xen/arch/arm/tee/optee.c"]
    assert file.keys() >= {"language", "mutants", "source"}
    rows = {row["id"]: row for row in file["mutants"]}
    assert all(row.keys() >= {"id", "location", "mutatorName", "status"} for row in rows.values())
    assert [rows[f"m{n}"]["status"] for n in range(1, 6)] == ["Killed", "Killed", "Survived", "Ignored", "NoCoverage"]
    known = {test["id"] for test in found["testFiles"]["testcases/suite"]["tests"]}
    assert known == {"a", "b"}


def test_survivors_and_lines_that_nothing_defends() -> None:
    text = report.survivors(XEN.mutants, _VERDICTS)
    assert "| 3 | m3 |" in text
    assert "m1" not in text
    summary = report.summary(XEN.mutants, _VERDICTS)
    assert "killed 50.0%" in summary
    assert "2 lines that nothing defends" in summary


def test_the_table_of_faults() -> None:
    rows = faults.load()
    kinds = Counter(fault.kind for fault in rows)
    assert kinds["preserves"] >= 6
    assert len(rows) - kinds["preserves"] >= 40
    assert set(faults.KINDS) <= kinds.keys()
    assert len({fault.id for fault in rows}) == len(rows)
    patches = {path.stem for path in faults.TABLE.parent.glob("*.patch")}
    assert patches == {fault.id for fault in rows}
    for fault in rows:
        assert fault.preserves == (not fault.expected)
        assert set(fault.expected) <= RULES.keys(), fault.id


def test_faults_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table"):
        faults.load(tmp_path / "faults.yaml")
    row = "faults:\n  - {id: abc-def, kind: protocol, what: Something is wrong here., expected: STD-1}\n"
    (tmp_path / "faults.yaml").write_text(row)
    with pytest.raises(UsageError, match="no patch"):
        faults.load(tmp_path / "faults.yaml")


def test_reasons_for_equivalents(tmp_path: Path) -> None:
    assert equivalents.reasons(tmp_path / "none.yaml") == {}
    assert all(len(reason) >= 20 for reason in equivalents.reasons().values())
    (tmp_path / "x.yaml").write_text("equivalents:\n  - {ids: [xyz], reason: no such id as any mutant has}\n")
    with pytest.raises(ConfigError, match="a mutant's id"):
        equivalents.reasons(tmp_path / "x.yaml")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a matrix's cells: the same for the same content, another for whatever could change a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.artifacts.overrides import Overrides
from framework.common.errors import BoardError, InfrastructureError, UsageError
from framework.common.progress import Silent
from framework.conformance.policy import FailOn
from framework.jobs import cells
from framework.jobs.cells import FILES, Cell, Outcome, execute, execute_anywhere, keep, known_outcome, name_cell
from framework.jobs.run import RunOptions
from testcases.unit.artifacts.xen_tree import commit, make_tree

MEDIATOR = "xen/arch/arm/tee/optee.c"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return commit(make_tree(tmp_path / "xen-git"), tag="v1")


def smoke(**overrides: Any) -> RunOptions:
    return RunOptions(profile="smoke", overrides=Overrides(**overrides), offline=True)


def name(options: RunOptions) -> str:
    return name_cell(options, Silent()).name


def test_where_a_tree_lies_and_how_a_commit_is_called_is_no_content(tree: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(tree, tmp_path / "other"))
    same = {name(smoke(xen_tree=tree)), name(smoke(xen_tree=elsewhere)), name(smoke(xen_tree=tree, xen_rev="v1"))}
    same.add(name(replace(smoke(xen_tree=tree), report=tmp_path / "r", command=("matrix",))))
    assert len(same) == 1


def test_whatever_could_change_a_result_changes_the_name(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = smoke(xen_tree=tree)
    config, image = tmp_path / "config", tmp_path / "Image"
    config.write_text("CONFIG_TEE=y\n")
    image.write_text("a kernel")
    options = [
        base,
        smoke(xen_tree=tree, xen_config=config),
        smoke(xen_tree=tree, cc="gcc"),
        smoke(xen_tree=tree, xen_tools="tree"),
        smoke(xen_tree=tree, kernel=image),
        replace(base, profile="standard"),
        replace(base, board="three"),
        replace(base, domus=1),
        replace(base, xtest=("1004",)),
        replace(base, fail_on=FailOn.ANY_DEVIATION),
        replace(base, tests=False),
    ]
    names = [name(each) for each in options]
    (tree / MEDIATOR).write_text("another")
    names.append(name(base))
    image.write_text("another kernel")
    names.append(name(smoke(xen_tree=tree, kernel=image)))
    (tmp_path / "reference").write_text("another rule")
    monkeypatch.setattr(cells, "_REFERENCE", tmp_path / "reference")
    names.append(name(base))
    assert len(set(names)) == len(names)


def test_what_does_not_exist_is_wrong_use(tree: Path, tmp_path: Path) -> None:
    wrong = [smoke(xen_tree=tree, xen_rev="no-such"), replace(smoke(), profile="none")]
    for options in [*wrong, smoke(xen_tree=tree, cc="no-such"), smoke(xen_tree=tmp_path)]:
        with pytest.raises(UsageError):
            name(options)


CELL = Cell(smoke(), {"Xen": "1", "medcheck": "2"})
DECIDED = Outcome({file: file.encode() for file in FILES})


def test_what_was_decided_is_known_and_what_was_not_is_tried_again() -> None:
    keep(CELL, replace(DECIDED, error="the board does not boot"))
    assert known_outcome(CELL) is None
    keep(CELL, DECIDED)
    assert known_outcome(CELL) == replace(DECIDED, cached=True)
    assert known_outcome(replace(CELL, inputs={"Xen": "1", "medcheck": "3"})) is None


def ending(verdict: str, failure: BaseException | None = None) -> Callable[..., Any]:
    """A run that writes the report's files and ends so."""

    def run(options: RunOptions, _progress: object) -> Any:
        assert options.report is not None
        options.report.mkdir(parents=True)
        for file in FILES:
            (options.report / file).write_text(verdict)
        return SimpleNamespace(failure=failure, report=SimpleNamespace(verdict=verdict, reason="its reason"))

    return run


def test_a_run_that_breaks_off_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise BoardError("no QEMU")

    monkeypatch.setattr(cells, "run", broken)
    assert execute(CELL, tmp_path / "a", Silent()) == Outcome(error="no QEMU")
    monkeypatch.setattr(cells, "run", ending("fail"))
    assert execute(CELL, tmp_path / "b", Silent()) == Outcome(dict.fromkeys(FILES, b"fail"))
    monkeypatch.setattr(cells, "run", ending("infrastructure", BoardError("it died")))
    assert execute(CELL, tmp_path / "c", Silent()).error == "its reason"
    monkeypatch.setattr(cells, "run", ending("infrastructure", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        execute(CELL, tmp_path / "d", Silent())


def test_a_worker_with_another_content_refuses(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = name_cell(smoke(xen_tree=tree), Silent())
    monkeypatch.setattr(cells, "run", ending("pass"))
    assert execute_anywhere(cell) == Outcome(dict.fromkeys(FILES, b"pass"))
    # The second time it is known there.
    assert execute_anywhere(cell).cached
    (tree / MEDIATOR).write_text("edited meanwhile")
    assert str(InfrastructureError("the worker has another content of: Xen")) in str(execute_anywhere(cell).error)

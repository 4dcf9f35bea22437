# SPDX-License-Identifier: GPL-2.0-or-later
"""A Xen source tree of the user's own on the board: hypervisor and dom0's tools built from it, and an edit judged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from framework.artifacts.lock import Lock
from framework.artifacts.overrides import Overrides
from framework.artifacts.unpack import unpack_source
from framework.artifacts.xen_image import XenImage
from framework.artifacts.xen_tools import pinned_tools
from framework.common.errors import ExitCode, GuestError
from framework.common.paths import cache_root
from framework.common.progress import Silent
from framework.conformance.checker import check_file
from framework.jobs.bisect import Bisection, Step
from framework.jobs.run import RunOptions, RunResult, run
from framework.target.stack import builder_here, open_store
from framework.trace.xen_symbols import XenLayout
from testcases.unit.artifacts.source_state import state

pytestmark = [pytest.mark.artifacts, pytest.mark.slow]

MEDIATOR = "xen/arch/arm/tee/optee.c"


def unpacked(group: str, folder: Path) -> Path:
    """A pinned source, as a user would have it: a folder somewhere."""
    pins = Lock.load().group(group)
    paths = open_store(offline=True).fetch(pins)
    orig, debian = (paths[pin.name] for mark in (".orig.", ".debian.") for pin in pins if mark in pin.path)
    unpack_source(orig, debian, folder)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Xen's pinned source."""
    return unpacked("xen-source", tmp_path_factory.mktemp("own") / "xen")


def smoke(folder: Path, **parts: object) -> RunResult:
    """Two xtest cases in one guest, traced and checked."""
    options = RunOptions(
        profile="smoke", domus=1, xtest=("1001", "1004"), report=folder, offline=True,
        overrides=Overrides(**parts),  # type: ignore[arg-type]
    )  # fmt: skip
    return run(options, Silent())


def test_hypervisor_and_tools_of_a_tree_that_cannot_be_written(tree: Path, tmp_path: Path) -> None:
    paths = [tree, *tree.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    before = state(tree)
    try:
        result = smoke(tmp_path / "report", xen_tree=tree, xen_tools="tree")
        assert state(tree) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert result.code == ExitCode.GOOD, result.report.reason
    stack = {part["name"]: part for part in result.document["stack"]}
    assert stack["Xen"]["origin"] == "user"
    assert stack["Xen"]["version"].startswith("4.17.5, no git, configuration medcheck's, debug")
    assert stack["Xen's tools"]["origin"] == "built"
    verdicts = {rule["id"]: rule["verdict"] for rule in result.document["conformance"]["rules"]}
    assert verdicts["STD-6"] == verdicts["RPC-4"] == "pass"
    # What was judged as it came is what its file gives.
    alone = check_file(tmp_path / "report" / "trace" / "board.trace", board_alive=True)
    counted = {rule["id"]: (rule["verdict"], rule["checked"]) for rule in result.document["conformance"]["rules"]}
    assert counted == {rule.id: (rule.verdict, rule.passed + rule.failed + rule.deviations) for rule in alone.rules}
    assert result.document["conformance"]["outcomes"] == alone.outcomes
    assert result.document["conformance"]["events_checked"] == alone.events_checked


def test_an_edit_that_breaks_a_rule_is_judged_so(tree: Path, tmp_path: Path) -> None:
    path = tree / MEDIATOR
    good = path.read_text()
    filtered = r"    caps &= OPTEE_KNOWN_SEC_CAPS;\n"
    assert len(re.findall(filtered, good)) == 1
    path.write_text(re.sub(filtered, "", good))
    try:
        result = smoke(tmp_path / "report", xen_tree=tree)
    finally:
        path.write_text(good)
    assert result.code == ExitCode.FAILED
    assert result.report.conclusion is not None
    (broken,) = {"CAPS-2"} & set(result.report.conclusion.rules_broken)
    assert Bisection(broken).step(result)[0] is Step.BAD


@pytest.mark.nightly
def test_an_optee_of_a_tree_serves_the_pinned_tas(tmp_path: Path) -> None:
    source = unpacked("optee-source", tmp_path / "optee")
    before = state(source)
    result = smoke(tmp_path / "report", optee_tree=source)
    assert state(source) == before
    assert result.code == ExitCode.GOOD, result.report.reason
    (part,) = (part for part in result.document["stack"] if part["name"] == "OP-TEE OS")
    assert (part["version"], part["origin"]) == ("4.10, no git", "user")


def test_a_tool_that_crashes_in_dom0_is_named(tmp_path: Path) -> None:
    store = open_store(offline=True)
    tools = shutil.copytree(
        pinned_tools(store, Lock.load(), builder_here(store, Silent()).cache).folder / "usr", tmp_path / "usr"
    )
    xenstored = tools / "lib/xen/bin/xenstored"
    program = bytearray(xenstored.read_bytes())
    # It begins in the header of the file (e_entry).
    program[24:32] = bytes(8)
    xenstored.write_bytes(program)
    result = smoke(tmp_path / "report", xen_tools=tmp_path)
    assert result.code == ExitCode.INFRASTRUCTURE
    assert isinstance(result.failure, GuestError)
    assert re.search(r"xenstored did not start: killed by signal \d", str(result.failure))


def test_the_layout_of_every_release_that_was_built_here_is_found() -> None:
    builder_here(open_store(offline=True), Silent()).xen("debug")
    built = {XenImage.read(path).release: path for path in (cache_root() / "builds").glob("xen-*/xen")}
    assert "4.17" in built
    for release, path in built.items():
        layout = XenLayout.load(path.with_name("xen-syms"))
        assert {"xen_domain_tee", "xen_mediator", "xen_tee_type"} <= layout.tee.keys(), release

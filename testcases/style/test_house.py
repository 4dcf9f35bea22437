# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a program can check: types, style, direction of imports, and what may never be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.common.paths import ROOT

# The rooms from the ground up: each may import those that stand before it, and itself.
ROOMS = (
    "mediator_ref",
    "framework.common",
    "framework.artifacts",
    "framework.trace",
    "framework.conformance",
    "framework.report",
    "framework.console",
    "framework.board",
    "framework.diagnosis",
    "framework.guests",
    "framework.probe",
    "framework.snapshot",
    "framework.target",
    "framework.jobs",
    "framework.fuzz",
    "framework.mutants",
    "framework.bench",
    "framework.pytest_plugin",
    "framework.cli",
)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in ("framework", "mediator_ref", "medcheck", "testcases")}


def _room(module: str) -> str:
    words = module.split(".")
    return words[0] if words[0] == "mediator_ref" else ".".join(words[:2])


def test_every_module_has_a_room() -> None:
    assert sorted(path.name for path in (ROOT / "framework").glob("*.py")) == ["__init__.py"]
    rooms = {f"framework.{path.name}" for path in (ROOT / "framework").iterdir() if list(path.glob("*.py"))}
    assert rooms | {"mediator_ref"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    if room == "framework.common":
        allowed = ("framework.common",)
    for path in (ROOT / room.replace(".", "/")).rglob("*.py"):
        for name in _imports(path):
            assert _room(name) in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_pytest_is_known_only_to_the_plugin_and_the_tests() -> None:
    knowing = [
        path.relative_to(ROOT)
        for path in (ROOT / "framework").rglob("*.py")
        if re.search(r"^\s*(import|from) pytest", path.read_text(), re.M)
    ]
    assert {path.parent for path in knowing} == {Path("framework/pytest_plugin")}


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_nothing_large_and_no_private_key_is_committed() -> None:
    for path in _tracked():
        if path.is_file():
            data = path.read_bytes()
            assert len(data) < 1 << 20, path
            assert b"PRIVATE" + b" KEY-----" not in data, path


@pytest.mark.parametrize("tool", [["mypy"], ["ruff", "check", "--quiet"]])
def test_types_and_style(tool: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *tool, *(["."] if tool[0] == "ruff" else [])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_each_source_file_names_its_licence() -> None:
    suffixes = {".py", ".sh", ".c", ".h", ".S", ".lds"}
    scripts = {"medcheck", "run", "init", "attach-console", "vif-medcheck"}
    sources = [
        p for p in _tracked() if (p.suffix in suffixes or p.name in scripts) and p.is_file() and p.stat().st_size
    ]
    licence = b"SPDX-License-Identifier: GPL-2.0-or-later"
    assert [p.relative_to(ROOT) for p in sources if licence not in p.read_bytes()[:2048]] == []


# A sentence names its actor: these words hide it. In backquotes or quotes, `nobody` is the user account.
_NO_ACTOR = re.compile(r"(?<![\w`'\"~])(?:nobody|somebody|everybody|anybody|whoever)(?![\w`'\"])", re.IGNORECASE)
_UNCHECKED = {Path(__file__)}


def test_sentences_name_their_actor() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _tracked()
        if path.suffix in {".py", ".c", ".h", ".md", ".yaml"} and path.is_file() and path not in _UNCHECKED
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if _NO_ACTOR.search(line)
    ]
    assert found == []

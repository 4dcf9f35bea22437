"""The house rules that a program can check: types, style, direction of imports, and what may never be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Who may import whom; each line lists all that a part may use of the project beside itself.
ALLOWED = {
    "mediator_ref": set(),
    "framework.artifacts": {"framework"},
    "framework.board": {"framework", "framework.artifacts"},
    "framework.guests": {"framework", "framework.artifacts", "framework.board", "mediator_ref", "framework.trace"},
    "framework.trace": {"framework", "framework.artifacts", "mediator_ref"},
    "framework.conformance": {"framework", "framework.trace", "mediator_ref"},
    "framework.report": {"framework"},
}
LEAVES = {"errors", "paths", "progress"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in ("framework", "mediator_ref", "testcases")}


def _part(module: str) -> str:
    words = module.split(".")
    if words[0] == "mediator_ref":
        return "mediator_ref"
    return ".".join(words[:2]) if len(words) > 2 or f"framework.{words[-1]}" in ALLOWED else "framework"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_go_one_way(part):
    folder = ROOT / part.replace(".", "/")
    for path in folder.rglob("*.py"):
        for name in _imports(path):
            target = _part(name)
            if target == "framework":
                assert name.split(".")[1] in LEAVES, f"{path.relative_to(ROOT)} imports {name}"
            else:
                assert target == part or target in ALLOWED[part], f"{path.relative_to(ROOT)} imports {name}"


def test_pytest_is_known_only_to_the_plugin_and_the_tests():
    knowing = [
        path.relative_to(ROOT)
        for path in (ROOT / "framework").rglob("*.py")
        if re.search(r"^\s*(import|from) pytest", path.read_text(), re.M)
    ]
    assert sorted(map(str, knowing)) == ["framework/pytest_plugin.py"]


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_nothing_large_and_no_private_key_is_committed():
    for path in _tracked():
        if path.is_file():
            data = path.read_bytes()
            assert len(data) < 1 << 20, path
            assert b"PRIVATE" + b" KEY-----" not in data, path


@pytest.mark.parametrize("tool", [["mypy"], ["ruff", "check", "--quiet"]])
def test_types_and_style(tool):
    done = subprocess.run(
        [sys.executable, "-m", *tool, *(["."] if tool[0] == "ruff" else [])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

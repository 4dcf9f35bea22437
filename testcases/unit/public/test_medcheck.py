# SPDX-License-Identifier: GPL-2.0-or-later
"""The public face: what type checkers are told, what is there, and that importing it costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import medcheck
from framework.common.paths import ROOT


def declared() -> set[str]:
    """The names that a type checker finds under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(medcheck.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    annotated = {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    return annotated | {alias.asname or alias.name for node in imports for alias in node.names}


def test_type_checkers_and_the_interpreter_know_the_same_names() -> None:
    assert declared() == set(medcheck.__all__)
    assert set(medcheck.__all__) <= set(dir(medcheck))


@pytest.mark.parametrize("name", medcheck.__all__)
def test_each_name_is_there_and_what_type_checkers_are_told(name: str) -> None:
    tree = ast.parse(Path(medcheck.__file__).read_text())
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    code = "from {} import {} as told; import medcheck; assert medcheck.{} is told"
    if name == "__version__":
        assert medcheck.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    else:
        exec(code.format(*told[name], name))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = medcheck.Nonsense  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_of_the_framework() -> None:
    code = "import sys, medcheck; print([name for name in sys.modules if name.startswith(('framework', 'mediator'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

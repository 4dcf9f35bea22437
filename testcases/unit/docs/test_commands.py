# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command in the papers: parsed by the real parsers, its files looked for, and run where that needs no board.

A command of a form that stands in none of the tables below fails: a new command in the documents needs an entry that
says where it is tried.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main as cli
from framework.common.paths import ROOT
from testcases.unit.conformance.samples import simple_trace
from testcases.unit.docs import pages
from testcases.unit.docs.pages import Command

RUN_HERE = frozenset(
    {
        "--help", "--version", "bench --list", "boards", "check", "explain", "lock", "resume", "snapshot list",
        "snapshot prune", "trace diff", "trace export", "trace show", "trace stats",
    }
)  # fmt: skip
"""Forms that this module runs, with a trace and a cache of its own."""

ELSEWHERE = {
    "run": ".github/workflows/nightly.yml",
    "test": ".ci/run",
    "boot": "testcases/unit/cli/test_cli.py",
    "build": "testcases/unit/artifacts/test_firmware.py",
    "fetch": "testcases/unit/artifacts/test_store.py",
    "doctor": "testcases/unit/jobs/test_clean_and_doctor.py",
    "clean": "testcases/unit/jobs/test_clean_and_doctor.py",
    "lock --update": "testcases/unit/artifacts/test_repin.py",
    "snapshot build": "testcases/integration/test_snapshots.py",
    "resume ID": "testcases/integration/test_snapshots.py",
    "replay": "testcases/integration/test_replay.py",
    "bench": "testcases/unit/bench/test_bench.py",
    "compare": "testcases/unit/jobs/test_compare.py",
    "matrix": "testcases/unit/jobs/test_matrix.py",
    "mutants": "testcases/integration/test_mutants.py",
    "fuzz": "testcases/integration/test_fuzz.py",
}
"""Forms that need a board, a network or minutes, and the file that runs them or the work behind them."""

OTHER_PROGRAMS = frozenset(
    {
        ".venv/bin/coverage",
        ".venv/bin/dask",
        ".venv/bin/pip",
        ".venv/bin/pre-commit",
        "cp",
        "export",
        "git",
        "pip",
        "python3",
    }
)
"""What else may stand in a shell block; the options are theirs, but files of ours are looked for."""

_PLACEHOLDERS = {"N": "2", "S": "2", "MIB": "2", "A": "reports/a", "B": "reports/b"}
_NEED_MORE = frozenset({"check", "compare", "replay", "trace diff", "trace export", "trace show", "trace stats"})
"""Forms whose bare name is a mention, not a command line."""
_FLAGS = frozenset({"-q", "-x"})
_WITH_BOARDS = ("testcases/suite", "testcases/integration")
_FOLDERS = ("testcases/", "images/", "docs/", "framework/", "mediator_ref/")


def _id(value: object) -> str | None:
    """A command's text stands for it in a test's id."""
    return str(value)[:90] if isinstance(value, Command) else ""


COMMANDS = [command for page in pages.PAGES for command in pages.commands(page)]
OURS = [command for command in COMMANDS if command.words[0] in ("./medcheck", "medcheck")]


@cache
def _parser() -> argparse.ArgumentParser:
    return cli._parser()


def _arguments(command: Command) -> list[str]:
    """The words behind the program; in prose, optional ones have brackets, and numbers have letters."""
    words = list(command.words[1:])
    if ">" in words:
        words = words[: words.index(">")]
    if command.fenced:
        return words
    if " ".join(words) in _NEED_MORE:
        return [*words, "--help"]  # only its name is mentioned
    return [_PLACEHOLDERS.get(word, word) for word in (word.strip("[]") for word in words)]


def _form(words: list[str]) -> str:
    """Subcommand, the second one if there is one, and an option that makes it another thing."""
    names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
    two = {"snapshot", "trace"}
    if not names:
        return words[0]
    if names[0] in two:
        return " ".join(names[:2])
    if names[0] == "lock" and "--update" in words:
        return "lock --update"
    if names[0] == "bench" and "--list" in words:
        return "bench --list"
    if names[0] == "resume" and len(words) > 1:
        return "resume ID"
    return names[0]


def _for_pytest(command: Command) -> list[str] | None:
    """What a command hands over to pytest; None if it does not."""
    if command.words[0] == "pytest":
        return _arguments(command)
    if command.words[0] in ("./medcheck", "medcheck") and command.words[1] == "test":
        return [word for word in _arguments(command)[1:] if word not in ("--unit", "--offline")]
    if command.words[:4] == (".venv/bin/coverage", "run", "-m", "pytest"):
        return list(command.words[4:])
    return None


IN_PYTEST = [(command, words) for command in COMMANDS if (words := _for_pytest(command)) is not None]


@pytest.mark.parametrize("command", COMMANDS, ids=_id)
def test_the_program_is_known_and_files_exist(command: Command) -> None:
    program = command.words[0]
    assert program in ("./medcheck", "medcheck", "pytest") or program in OTHER_PROGRAMS, "which program is that?"
    for word in command.words[1:]:
        path = word.partition("::")[0].rpartition("=")[2]
        if path.startswith(_FOLDERS) and "<" not in path:
            assert (ROOT / path).exists(), f"{path} does not exist"


@pytest.mark.parametrize("command", OURS, ids=_id)
def test_the_command_line_takes_it(command: Command) -> None:
    words = _arguments(command)
    form = _form(words)
    if "--help" not in words:
        options, rest = _parser().parse_known_args(words)
        assert options.command or options.version
        assert options.command == "test" or not rest
    assert form in RUN_HERE or form in ELSEWHERE, f"say where `{form}` is tried"


def test_each_subcommand_is_documented() -> None:
    commands: Any = next(action for action in _parser()._actions if action.dest == "command")
    # Former names have no help and are not listed.
    known = {choice.dest for choice in commands._get_subactions()}
    assert known == {_form(_arguments(command)).split()[0] for command in OURS} - {"--help", "--version"}


@pytest.mark.parametrize(("form", "file"), ELSEWHERE.items())
def test_what_needs_a_board_is_tried_where_the_table_says(form: str, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"\b{form.split()[0].removesuffix('e')}", text), f"{file} has nothing of {form}"


@cache
def _collected() -> tuple[str, ...]:
    """The ids of all tests that need a board."""
    named = {word for command in COMMANDS for word in command.words if word.startswith(_WITH_BOARDS)}
    folders = sorted({"/".join(word.split("/")[:2]) for word in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(line for line in done.stdout.splitlines() if "::" in line)


@pytest.mark.parametrize(("command", "words"), IN_PYTEST, ids=_id)
def test_pytest_takes_it_and_it_selects_something(
    command: Command, words: list[str], pytestconfig: pytest.Config
) -> None:
    left, paths, names, marks = list(words), [], "", ""
    while left:
        word = left.pop(0)
        if word == "-k":
            names = left.pop(0)
        elif word == "-m":
            marks = left.pop(0)
        elif word.startswith("-"):
            option, equals, _ = word.partition("=")
            # Raises ValueError for an option that neither pytest nor a plugin knows.
            default = pytestconfig.getoption(option)
            if not (equals or option in _FLAGS or isinstance(default, bool)):
                left.pop(0)
        else:
            paths.append(word)
    known = {re.split(r"\W", line)[0] for line in pytestconfig.getini("markers")}
    assert set(re.findall(r"\w+", marks)) - {"and", "or", "not"} <= known
    ours = tuple(path for path in paths if path.startswith(_WITH_BOARDS))
    if ours and "<" not in "".join(ours):
        found = [test for test in _collected() if test.startswith(ours) and _selects(names, test)]
        assert found, f"{command} selects no test"


def _selects(expression: str, test: str) -> bool:
    """pytest's ``-k`` as far as the papers use it: parts of names with and, or, not."""
    if not expression:
        return True
    words = [
        word if word in ("and", "or", "not", "(", ")") else str(word.lower() in test.lower())
        for word in re.findall(r"[()]|[^\s()]+", expression)
    ]
    return bool(eval(" ".join(words), {"__builtins__": {}}))


def _here() -> list[Command]:
    found = {" ".join(_arguments(command)): command for command in OURS if _form(_arguments(command)) in RUN_HERE}
    return list(found.values())


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "board.trace"
    simple_trace(path)
    return path


@pytest.mark.parametrize("command", _here(), ids=_id)
def test_quick_commands_work(
    command: Command, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path))
    files = {"reports/latest/trace/board.trace", "FILE", "board.trace", "reports/a", "reports/b"}
    words = [str(trace) if word in files else word for word in _arguments(command)]
    words = [{"RULE": "STD-6", "1234": "1"}.get(word, word) for word in words]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert said.out.strip()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a whole: common options at every place, streams that are closed or full, wrong traces."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts.overrides import OPTIONS, Overrides
from framework.cli import main as cli
from framework.cli import run as run_cli
from framework.common.paths import ROOT
from framework.conformance.conclusion import Conclusion, conclude
from framework.conformance.result import ConformanceResult
from framework.conformance.synthesize import write_trace
from framework.jobs import check as check_job
from framework.jobs import test as test_job
from framework.trace.writer import Writer
from testcases.unit.artifacts.xen_tree import make_tree
from testcases.unit.conformance.samples import as_traced, busy_board, records_of
from testcases.unit.trace.samples import sample, write


@pytest.fixture
def trace(tmp_path: Path) -> str:
    write(tmp_path / "t", sample())
    return str(tmp_path / "t")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def damaged(path: str, *, at: int = -40) -> str:
    """The same trace with one byte turned over."""
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 0xFF
    Path(path).write_bytes(data)
    return path


def _placed(option: str, words: list[str]) -> Iterator[list[str]]:
    """``option`` before, behind and between ``words``."""
    for place in range(len(words) + 1):
        yield [*words[:place], option, *words[place:]]


@pytest.mark.parametrize("words", [["boards"], ["lock"], ["explain", "STD-1"], ["bench", "--list"]])
def test_json_may_stand_before_and_behind_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--json", *words], [*words, "--json"]):
        assert run(*given) == 0
        json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["show", "stats", "diff"])
def test_json_and_quiet_anywhere_in_a_trace_command(
    command: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [trace] * (2 if command == "diff" else 1)
    for option in ("--json", "-q"):
        for given in _placed(option, ["trace", command, *files]):
            assert run(*given) == 0
            told = capsys.readouterr()
            if option == "--json":
                assert json.loads(told.out)["problems"] == []


def test_quiet_leaves_out_what_is_wrong_with_a_trace(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(trace)
    assert run("trace", "stats", "--recover", trace) == 0
    assert "damaged" in capsys.readouterr().err
    assert run("-q", "trace", "stats", "--recover", trace) == 0
    assert not capsys.readouterr().err
    assert run("trace", "show", "--recover", "--json", trace) == 0
    assert "damaged" in json.loads(capsys.readouterr().out)["problems"][0]["text"]


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"medcheck {project['version']}\n"
    assert run("--version", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"version": project["version"]}
    assert run() == 2


def test_pinning_anew_is_nothing_to_do_offline() -> None:
    assert run("lock", "--update", "--offline") == 2


def test_a_benchmark_is_not_taken_for_the_file_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--json", "cold_boot_s") == 2
    assert "a benchmark where a file belongs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "boot"])
def test_a_command_without_json_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", command) == 2
    assert f"`{command}` has no result" in capsys.readouterr().err


def test_events_are_no_single_document(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trace", "export", "--json", trace) == 2
    capsys.readouterr()
    assert run("trace", "export", "--json", trace, "-o", str(tmp_path / "x")) == 0
    assert json.loads(capsys.readouterr().out)["events"] == len((tmp_path / "x").read_text().splitlines())


def test_an_export_neither_overwrites_its_trace_nor_goes_to_nowhere(trace: str, tmp_path: Path) -> None:
    before = Path(trace).read_bytes()
    assert run("trace", "export", trace, "-o", trace) == 2
    assert Path(trace).read_bytes() == before
    assert run("trace", "export", trace, "-o", str(tmp_path / "no/such/place")) == 2


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "device", "empty", "text", "endless name"])
@pytest.mark.parametrize("words", [["trace", "show"], ["trace", "stats"], ["trace", "export"], ["check"]])
def test_what_is_no_trace_is_wrong_use(
    words: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"folder": tmp_path, "device": Path("/dev/zero"), "endless name": Path("x" * 300)}.get(kind, tmp_path / "it")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("empty", "text"):
        path.write_text("words" if kind == "text" else "")
    assert run(*words, str(path)) == 2
    told = capsys.readouterr().err
    assert str(path) in told and "board.trace" in told


def test_a_damaged_trace_is_no_wrong_use_and_the_way_out_is_named(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trace", "show", damaged(trace)) == 3
    assert "--recover" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(12))
def test_records_of_gibberish_are_damage_and_skipped_on_request(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    path = str(tmp_path / "t")
    with Writer(path) as writer:
        for number, record in enumerate(records_of(busy_board().events), start=1):
            raw = bytearray(record.raw)
            for _ in range(rng.choice((0, 0, 1, 100))):
                raw[rng.randrange(4, len(raw))] = rng.choice((0, 0xFF, rng.randrange(256)))
            raw[8:16] = number.to_bytes(8, "little")
            writer.append(bytes(raw))
    for command in (["show", path], ["stats", path], ["export", path], ["diff", path, path]):
        assert run("trace", *command) == 3
        assert "--recover" in capsys.readouterr().err
        assert run("trace", *command, "--recover") == 0
        assert "malformed" in capsys.readouterr().err


def _piped(words: list[str], **given: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "framework.cli", *words]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **given)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("words", [["trace", "show"], ["trace", "export"], ["trace", "stats"], ["check"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(words: list[str], tmp_path: Path) -> None:
    write_trace(tmp_path / "t", as_traced(busy_board().events))
    reader, writer = os.pipe()
    os.close(reader)
    with _piped([*words, str(tmp_path / "t")], stdout=writer) as process:
        os.close(writer)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in errors and "Exception" not in errors


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closing: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m framework.cli boards {closing}'],
        cwd=ROOT, capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["bench", "--list"], ["run", "--help"], ["--help"], ["explain"], ["nosuch"]])
def test_an_output_that_knows_only_ascii(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framework.cli", *words],
        cwd=ROOT, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == (2 if words == ["nosuch"] else 0)
    assert b"Traceback" not in done.stderr


def test_a_full_disk_under_the_output() -> None:
    with Path("/dev/full").open("wb") as full, _piped(["boards"], stdout=full) as process:
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode == 3
    assert "No space left" in errors
    assert "Exception" not in errors and "Traceback" not in errors


def broken(*_: object) -> int:
    raise ValueError("no \x1b[2J such thing")


def test_a_defect_of_medcheck_is_no_verdict_on_the_mediator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "_boards", broken)
    assert run("boards") == 3
    said = capsys.readouterr().err
    assert "unexpected: ValueError: no" in said
    assert "\x1b" not in said
    (kept,) = (tmp_path / "cache/logs").iterdir()
    assert str(kept) in said.replace("\n", "")
    assert "in broken" in kept.read_text()


def test_its_traceback_is_kept_elsewhere_when_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "file/cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "_boards", broken)
    assert run("boards") == 3
    (kept,) = tmp_path.glob("medcheck-unexpected-*.txt")
    assert kept.name in capsys.readouterr().err.replace("\n", "")


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_boards", interrupted)
    assert run("boards") == 130


def test_patches_add_up_and_tools_are_a_word_or_a_folder(tmp_path: Path) -> None:
    words = ["run", "--xen-tree", str(tmp_path), "--xen-patch", "a", "--xen-patch", "b", "--xen-tools", "tree"]
    overrides = Overrides.given(vars(cli._parser().parse_args(words)))
    assert overrides.xen_patch == (Path.cwd() / "a", Path.cwd() / "b")
    assert overrides.xen_tools == "tree"
    overrides = Overrides.given(vars(cli._parser().parse_args(["build", "--xen-tools", "installed"])))
    assert overrides.xen_tools == Path.cwd() / "installed"


@pytest.mark.parametrize(
    "command",
    ["run", "test", "build", "boot", "bench", "replay probe", "snapshot build"],
)
def test_every_command_with_a_board_takes_every_part(command: str) -> None:
    given = [f"--{name}=x" for name in OPTIONS]
    overrides = Overrides.given(vars(cli._parser().parse_known_args([*command.split(), *given])[0]))
    assert {word.partition("=")[0] for word in overrides.chosen()} == set(OPTIONS)


def test_tests_get_the_files_that_were_built_of_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("test", "--unit", "--xen-tree", str(tmp_path)) == 2
    ran: list[list[str]] = []

    class _Pytest:
        returncode = 0

        def __init__(self, command: list[str], **_: object) -> None:
            ran.append(command)

        def __enter__(self) -> _Pytest:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class _Stack:
        def frozen(self, overrides: Overrides) -> Overrides:
            assert overrides.xen_tree == tmp_path
            return Overrides(xen=tmp_path / "xen")

    monkeypatch.setattr(test_job, "prepare_stack", lambda *_: _Stack())
    monkeypatch.setattr("framework.jobs.test.subprocess.Popen", _Pytest)
    monkeypatch.setattr(test_job, "follow", lambda _process: False)
    assert run("test", "--offline", "--xen-tree", str(tmp_path), "-k", "std") == 0
    assert {f"--mc-xen={tmp_path / 'xen'}", "-k", "std"} <= set(ran[0])
    assert not any(word.startswith(("--mc-xen-tree", "--xen-tree")) for word in ran[0])
    # Without parts of the user's own nothing is said about any.
    assert run("test", "--offline", "-k", "std") == 0
    assert not any("xen" in word for word in ran[1] if word.startswith("--mc-"))


def test_a_waiver_for_a_version_holds_where_check_is_told_the_xen(
    trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(tmp_path / "xen")
    asked: list[str | None] = []

    def concluded(result: ConformanceResult, *given: Any) -> Conclusion:
        asked.append(given[-1])
        return conclude(result)

    monkeypatch.setattr(check_job, "conclude", concluded)
    run("check", trace)
    run("check", trace, "--xen-tree", str(tree))
    assert asked == [None, "4.17.5"]
    assert run("check", trace, "--xen-tree", trace) == 2
    assert run("check", trace, "--xen-rev", "v1") == 2


def test_a_report_does_not_become_a_part_of_the_tree_under_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "xen/docs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "xen")
    assert run_cli._report_beside(None, tmp_path / "xen/docs", tmp_path / "xen") is not None
    for folder, inside in (("xen", True), ("xen/docs", True), (".", False)):
        monkeypatch.chdir(tmp_path / folder)
        found = run_cli._report_beside(tmp_path / "xen")
        assert (found is not None) is inside
        assert found is None or found.is_relative_to(tmp_path / "cache")
    assert run_cli._report_beside(None) is None


def test_a_bisection_wants_a_rule_that_exists() -> None:
    for words, code in ((["--bisect", "--expect", "STD-99"], 128), (["--expect", "STD-6"], 2)):
        assert run("run", *words) == code

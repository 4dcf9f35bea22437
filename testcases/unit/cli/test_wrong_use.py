# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's mistake on the command line: what, where, hint, exit code 2; never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts.elf import Elf
from framework.artifacts.stack import Overrides, prepare
from framework.cli import main as cli
from framework.common.errors import ConfigError, UsageError
from framework.jobs.profiles import profiles
from framework.jobs.run import RunOptions, run
from testcases.unit.artifacts.elf_files import elf as make_elf

NOTE = bytes.fromhex("04000000 14000000 03000000 474e5500")
IDENTITY = bytes(range(20))
NOTHING: Any = None
"""For what is not reached."""


def refused(**given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(NOTHING, NOTHING, NOTHING, Overrides(**given))
    return caught.value.what


def image(folder: Path, content: bytes = b"") -> Path:
    path = folder / "xen"
    path.write_bytes(bytes(0x38) + b"ARMd" + bytes(4) + content)
    return path


def symbols(folder: Path) -> Path:
    """Symbols of a Xen with a build id."""
    path = folder / "xen-syms"
    sections = {".note.gnu.build-id": NOTE + IDENTITY, ".symtab": bytes(24), ".debug_info": bytes(8)}
    path.write_bytes(make_elf(sections, kind=2))
    return path


@pytest.mark.parametrize("option", ["xen", "kernel", "xen_syms", "xen_config"])
def test_a_folder_where_a_file_belongs(tmp_path: Path, option: str) -> None:
    assert "expected a file" in refused(**{option: tmp_path})


@pytest.mark.parametrize("option", ["optee", "kernel_modules", "xtest_root", "xen_tree", "xen_tools"])
def test_a_file_where_a_folder_belongs(tmp_path: Path, option: str) -> None:
    path = tmp_path / "file"
    path.touch()
    assert "expected a folder" in refused(**{option: path})


@pytest.mark.parametrize("option", ["xen", "kernel", "xen_syms", "optee", "kernel_modules", "xtest_root"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_neither_file_nor_folder_is_refused_and_not_read(tmp_path: Path, option: str, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    assert "neither file nor folder" in refused(**{option: path})


@pytest.mark.parametrize("option", ["optee", "kernel_modules", "xtest_root"])
def test_a_folder_with_a_pipe_in_it_is_refused_and_not_read(tmp_path: Path, option: str) -> None:
    (tmp_path / "below").mkdir()
    os.mkfifo(tmp_path / "below/pipe")
    assert "below/pipe is a device, pipe or socket" in refused(**{option: tmp_path})


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
def test_a_path_that_cannot_be_looked_at(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refused(xen=tmp_path / name)


def test_an_optee_folder_without_its_files(tmp_path: Path) -> None:
    (tmp_path / "tee-header_v2.bin").touch()
    assert "has no tee-pager_v2.bin, tee-pageable_v2.bin" in refused(optee=tmp_path)


def test_an_xtest_folder_without_xtest_does_not_fall_back_to_the_pinned_one(tmp_path: Path) -> None:
    assert "has no usr/bin/xtest" in refused(xtest_root=tmp_path)


def test_symbols_of_another_xen(tmp_path: Path) -> None:
    found = symbols(tmp_path)
    assert Elf(found.read_bytes()).build_id() == IDENTITY
    assert IDENTITY.hex() in refused(xen=image(tmp_path), xen_syms=found)
    # The right ones pass, and only then is the (absent) store asked.
    with pytest.raises(AttributeError):
        prepare(NOTHING, NOTHING, NOTHING, Overrides(xen=image(tmp_path, NOTE + IDENTITY), xen_syms=found))


def test_symbols_that_are_no_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "xen-syms"
    path.write_text("text")
    assert "is not an ELF file" in refused(xen=image(tmp_path), xen_syms=path)


@pytest.mark.parametrize("option", ["--report", "--xen", "--optee", "--kernel-modules"])
def test_an_empty_name_is_not_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--offline", option, ""])
    assert ended.value.code == 2
    assert "found nothing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bench_that_cannot_be_written_is_known_before_it_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "first_run_s", "--json", str(tmp_path)])
    assert ended.value.code == 2


def test_a_rule_that_is_nearly_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", "STD6"])
    assert ended.value.code == 2
    assert "did you mean STD-6?" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [(0, 0o022), (0o002, 0o022), (0o077, 0o077)])
def test_others_never_get_to_write_what_is_made(before: int, after: int) -> None:
    mask = os.umask(before)
    try:
        with pytest.raises(SystemExit):
            cli.main(["--version", "-q"])
    finally:
        found = os.umask(mask)
    assert found == after


def test_unsigned_is_a_way_to_update(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lock", "--unsigned"])
    assert ended.value.code == 2
    assert "goes with --update" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["doctor", "--offline"], ["snapshot", "list"], ["fetch", "--offline"]])
def test_a_cache_in_the_home_of_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", "~no-such-user/cache")
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code in (2, 3)  # doctor goes on and counts it as bad
    told = capsys.readouterr()
    assert "MEDCHECK_CACHE" in told.err + told.out


@pytest.mark.parametrize("cases", ["nonsense;rm", "", ",", "../1004", "abc", "1004,abc", "pkcs11_1000"])
def test_xtest_cases_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cases: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framework.jobs.run.open_store", lambda *_arguments: pytest.fail("it goes on"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--offline", "--xtest", cases])
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_report_that_cannot_be_written_is_known_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no report can be written") as caught:
        run(RunOptions(report=tmp_path / name, offline=True), NOTHING)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "", "words", "[1]", "smoke: [", "smoke: 3", "smoke: {cases: some}", "smoke: {cases: [[1]]}",
        "smoke: {cases: all, tests: 3}", "smoke: {cases: all, test: [x]}", "smoke: {tests: [x]}",
    ],
)  # fmt: skip
def test_profiles_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        profiles(path)
    assert str(caught.value.where).startswith(f"{path}:")


@pytest.mark.parametrize("size", ["-1", "x", "9" * 5000])
def test_sizes_are_counted_in_mebibytes(size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["clean", f"--keep={size}"])
    assert ended.value.code == 2


def test_a_wrong_option_of_pytest_is_said_once_and_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_one(board): pass\ndef test_two(board): pass\n")
    given = f"--mc-xen={tmp_path / 'absent'}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", given, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert done.stdout.count("absent does not exist") == 1
    assert "Error" not in done.stdout


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "/full"), BrokenPipeError(errno.EPIPE, "Broken pipe")]
)
def test_what_the_system_refuses_is_infrastructure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: OSError
) -> None:
    def fail(*_arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_boards", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["boards"])
    assert ended.value.code == 3
    told = capfd.readouterr().err
    assert str(error.strerror) in told
    assert "Traceback" not in told

# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel: complete, typed, and good for everything that the checkout does for a user.

It is built and unpacked without network; its dependencies are those of the tests' own environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from framework.common.paths import ROOT
from framework.trace.format import RECORD, Kind
from framework.trace.reader import Reader
from framework.trace.writer import Writer
from mediator_ref.abi import OPTEE_MSG_UID

pytestmark = pytest.mark.slow

MOVED = {"images/": "framework/images/", "testcases/suite/": "framework/suite/"}
"""Folders of the checkout, and where an installed package has them."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={folder}", str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, unpacked as pip does, and no checkout."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = Path(archive.extract(info, packages))
            if info.external_attr >> 16 & 0o111:
                path.chmod(0o755)
    # Not processed for what it names in turn, so that the editable installation there does not count.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """What Python prints, run in ``folder``; it must end well."""
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run([python, *arguments], cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_what_is_committed_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {"medcheck/__init__.py", "medcheck/py.typed"}
    for name in listed.stdout.splitlines():
        if not (ROOT / name).exists():
            continue
        if name.startswith(("framework/", "mediator_ref/")):
            expected.add(name)
        for before, after in MOVED.items():
            if name.startswith(before):
                expected.add(after + name.removeprefix(before))
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert found == expected
    for script in ("rootfs/dom0/init", "rootfs/domu/init"):
        assert modes[f"framework/images/{script}"] & 0o111


def test_it_is_imported_from_the_wheel(python: Path, tmp_path: Path) -> None:
    code = (
        "import medcheck, framework, mediator_ref; from framework.common import paths;"
        "print(medcheck.__file__, framework.__file__, mediator_ref.__file__, paths.IMAGES, paths.SUITE, sep='\\n');"
        "print(medcheck.__version__, len(medcheck.RULES) > 10, medcheck.Target.__name__)"
    )
    *places, values = run(python, tmp_path, "-c", code).splitlines()
    packages = python.parent.parent
    assert all(Path(place).is_relative_to(packages) and Path(place).exists() for place in places), places
    assert values.endswith(" True Target")


def test_the_command_line_finds_its_files(python: Path, tmp_path: Path) -> None:
    assert "default" in run(python, tmp_path, "-m", "framework.cli", "boards")
    table = run(python, tmp_path, "-m", "framework.cli", "explain", "--table")
    assert table == (ROOT / "docs" / "rules.md").read_text()


def test_it_runs_the_same_stimuli_as_the_checkout(python: Path, tmp_path: Path) -> None:
    places = run(python, tmp_path, "-c", "from framework.common.paths import SUITE; print(SUITE)").strip()
    found = []
    for interpreter, suite in ((python, places), (Path(sys.executable), str(ROOT / "testcases" / "suite"))):
        options = ["-c", f"{suite}/suite.ini", f"--rootdir={suite}", suite, "-p", "no:cacheprovider"]
        listed = run(interpreter, tmp_path, "-m", "pytest", *options, "--collect-only", "-q", "-m", "mc_core")
        found.append([line for line in listed.splitlines() if "::" in line])
    assert found[0] == found[1]
    assert "lifecycle/test_loops.py::test_r1_domains_come_and_go[5]" in found[0]
    assert len(found[0]) > 40


def test_type_checkers_know_what_it_offers(python: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import medcheck\n"
        "from medcheck import Probe, check_trace\n"
        "def use(probe: Probe) -> None:\n"
        "    reveal_type(probe.smc(1))\n"
        "    reveal_type(check_trace('x'))\n"
        "    probe.nonsense()\n"
        "    medcheck.nonsense\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert 'Revealed type is "tuple[int, ...]"' in lines[0]
    assert 'Revealed type is "framework.conformance.result.ConformanceResult"' in lines[1]
    assert lines[2].startswith('mine.py:6: error: "Probe" has no attribute "nonsense"')
    assert lines[3].startswith('mine.py:7: error: Module has no attribute "nonsense"')
    assert lines[4].startswith("Found 2 errors")


FIRST = """
from medcheck import OpenSession, Probe, abi, messages


def test_a_session_is_opened(probe: Probe) -> None:
    assert probe.smc(abi.CALLS_UID)[:4] == abi.OPTEE_MSG_UID
    call = probe.call_with_arg(OpenSession(messages.INVOKE_TESTS))
    assert (call.x0, call.arg.ret) == (abi.SmcReturn.OK, 0)
"""
JUDGED = """
from pathlib import Path


def test_another_mediator(judge):
    judge(Path("doctored.trace"))
"""


@pytest.mark.mc_board
def test_a_test_of_ten_lines_is_run_and_judged(python: Path, tmp_path: Path) -> None:
    """In an empty folder; and with one register of the recorded answers changed, the verdict is another."""
    (tmp_path / "test_first.py").write_text(FIRST)
    (tmp_path / "test_judged.py").write_text(JUDGED)
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "1 passed" in run(python, tmp_path, *command, "test_first.py")
    (trace,) = tmp_path.glob("reports/tests/*/trace/board.trace")
    changed = 0
    with Writer(tmp_path / "doctored.trace") as writer:
        for event in Reader(trace).events():
            record = bytearray(event.raw)
            if event.kind == Kind.GUEST_RETURN and event.regs[0] == OPTEE_MSG_UID[0]:
                record[RECORD.size] ^= 1
                changed += 1
            if event.kind != Kind.COUNTERS:
                writer.append(bytes(record))
    assert changed
    done = subprocess.run(
        [python, *command, "test_judged.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "the mediator does not conform" in done.stdout
    assert "FAST-" in done.stdout

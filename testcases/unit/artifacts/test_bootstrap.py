# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python environment: every package pinned by hash, installed as pinned or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LISTS = ("images/python-build-requirements.txt", "images/python-requirements.txt")

FAKE_PYTHON = """#!/bin/sh
# Makes an environment whose pip writes down what it is asked for, and fails where the test says so.
if [ "$1" = -m ] && [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    printf '#!/bin/sh\\necho "$@" >>"%s"\\ncase "$*" in %s) exit 1 ;; esac\\n' "$PIP_LOG" "$PIP_FAILS" >"$3/bin/pip"
    printf '#!/bin/sh\\necho started\\n' >"$3/bin/python"
    chmod +x "$3/bin/pip" "$3/bin/python"
    exit 0
fi
exec "$REAL_PYTHON" "$@"
"""


def pinned(name: str) -> dict[str, Requirement]:
    """The requirements of a list, each of which has at least one hash."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        words = line.split(" --hash=")
        assert len(words) > 1, f"{name}: no hash: {line[:60]}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", word) for word in words[1:]), line[:60]
        requirement = Requirement(words[0].strip())
        assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), line[:60]
        found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize("name", LISTS)
def test_every_package_has_one_version_and_hashes_and_no_source_is_named(name: str) -> None:
    assert len(pinned(name)) > 3
    assert not re.search(r"^-|://|index-url|find-links|trusted-host", (ROOT / name).read_text(), re.M)


def test_the_pins_fit_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = pinned(LISTS[1])
    for text in (*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]):
        wanted = Requirement(text)
        if wanted.name == project["project"]["name"]:
            continue  # its own extras, whose requirements stand there as well
        version = str(pins[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), text
    build = {**pins, **pinned(LISTS[0])}
    for text in project["build-system"]["requires"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(str(build[wanted.name].specifier).removeprefix("=="))


def start(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the bootstrap that lies in ``folder``; what pip was asked for, a call a line."""
    log = folder / "pip.log"
    log.write_text("")
    done = subprocess.run(
        [folder / "medcheck", "--version"], capture_output=True, text=True, check=False,
        env={**os.environ, "MEDCHECK_PYTHON": str(folder / "python"), "MEDCHECK_NO_APT": "1", "PIP_LOG": str(log),
             "REAL_PYTHON": sys.executable, "PIP_FAILS": "nothing", "MEDCHECK_UNPINNED": "0", **environment},
    )  # fmt: skip
    return done, log.read_text().splitlines()


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A fresh folder with the bootstrap and a Python that only pretends."""
    (tmp_path / "images").mkdir()
    for name in ("medcheck", "pyproject.toml", *LISTS):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "images/host-packages.txt").write_text("sh sh\n")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def test_nothing_is_installed_without_a_hash_but_the_project_itself(fresh: Path) -> None:
    done, asked = start(fresh)
    assert done.returncode == 0 and done.stdout == "started\n", done.stderr
    *packages, project = asked
    assert len(packages) == 2 and all("--require-hashes" in call for call in packages)
    # Neither a build nor a dependency may fetch what is in no list.
    assert "--only-binary :all:" in packages[0] and "--no-build-isolation" in packages[1]
    assert all(option in project for option in ("--no-index", "--no-deps", "--no-build-isolation"))
    assert start(fresh)[1] == [], "the second start finds all of it done"


@pytest.mark.parametrize("fails", ["*python-build-requirements*", "*/python-requirements*", "*--editable*"])
def test_where_the_pins_cannot_be_had_nothing_else_is_taken(fresh: Path, fails: str) -> None:
    done, asked = start(fresh, PIP_FAILS=fails)
    assert done.returncode == 3
    assert "pinned Python packages could not be installed" in done.stderr and "MEDCHECK_UNPINNED=1" in done.stderr
    assert all("--require-hashes" in call or "--no-index" in call for call in asked)
    assert not (fresh / ".venv/medcheck-stamp").exists()


def test_unpinned_is_asked_for_and_said(fresh: Path) -> None:
    done, asked = start(fresh, MEDCHECK_UNPINNED="1")
    assert done.returncode == 0
    assert "not checked" in done.stderr
    assert len(asked) == 1 and "--require-hashes" not in asked[0]
    # Asked for no more, the environment is made anew.
    assert len(start(fresh)[1]) == 3


@pytest.mark.parametrize("name", ["pyproject.toml", *LISTS])
def test_another_list_makes_another_environment(fresh: Path, name: str) -> None:
    start(fresh)
    with (fresh / name).open("a") as stream:
        stream.write("# changed\n")
    assert len(start(fresh)[1]) == 3


@pytest.mark.nightly
def test_a_fresh_clone_gets_its_environment(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    done = subprocess.run(
        [clone / "medcheck", "--version"], capture_output=True, text=True, check=False,
        env={**os.environ, "MEDCHECK_NO_APT": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("medcheck "), done.stderr

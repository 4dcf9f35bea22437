# SPDX-License-Identifier: GPL-2.0-or-later
"""Where mirrors come from: an option, the environment, apt's files in both styles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from framework.artifacts.mirror import Mirrors
from framework.cli import main as cli
from framework.common.errors import ArtifactError, UsageError

ONE = "http://one.example/debian"
TWO = "https://two.example/debian"


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    return tmp_path


def write(apt: Path, name: str, text: str) -> None:
    (apt / "etc/apt" / name).write_text(text)


def bases(apt: Path, **environ: str) -> tuple[str, ...]:
    return Mirrors.discover(environ=environ, apt_root=apt).bases


def test_one_line_entries(apt: Path) -> None:
    write(
        apt,
        "sources.list",
        f"# deb http://commented.example/debian trixie main\n"
        f"deb [arch=amd64 signed-by=/x.gpg] {ONE}/ trixie main # why\n"
        f"deb-src http://source.example/debian trixie main\n"
        f"deb {ONE} trixie-updates main\n"
        f"deb http://security.example/debian-security trixie-security main\n",
    )
    assert bases(apt) == (ONE,)


def test_deb822_entries(apt: Path) -> None:
    write(
        apt,
        "sources.list.d/debian.sources",
        f"Types: deb deb-src\n# a comment\nURIs: {ONE}\n  {TWO}\nSuites: trixie\n\n"
        "Types: deb\nURIs: http://off.example/debian\nSuites: sid\nEnabled: no\n\n"
        "Types: deb-src\nURIs: http://source.example/debian\nSuites: sid\n",
    )
    assert bases(apt) == (ONE, TWO)


def test_files_of_other_kinds_are_not_read(apt: Path) -> None:
    write(apt, "sources.list.d/old.list.save", f"deb {TWO} trixie main\n")
    write(apt, "sources.list.d/a.list", f"deb {ONE} trixie main\n")
    assert bases(apt) == (ONE,)


def test_a_mirror_list_in_a_file_gives_its_entries(apt: Path) -> None:
    write(apt, "sources.list", "deb mirror+file:/etc/apt/mirrors.txt trixie main\n")
    write(apt, "mirrors.txt", f"{ONE}\tpriority:1\n# no\n{TWO}\n")
    assert bases(apt) == (ONE, TWO)


def test_a_mirror_under_another_name_serves_when_there_is_no_better(apt: Path) -> None:
    write(apt, "sources.list", "deb http://cache.example/deb-proxy trixie main\n")
    assert bases(apt) == ("http://cache.example/deb-proxy",)


def test_the_option_wins_over_the_environment_and_that_over_apt(apt: Path, tmp_path: Path) -> None:
    write(apt, "sources.list", f"deb {ONE} trixie main\n")
    environ = {"MEDCHECK_MIRROR": f"{TWO}/, {tmp_path}"}
    assert bases(apt, **environ) == (TWO, str(tmp_path))
    option = Mirrors.discover(option="http://o.example/debian", environ=environ, apt_root=apt)
    assert (option.bases, option.origin) == (("http://o.example/debian",), "--mirror")


def test_a_snapshot_archive_comes_last(apt: Path) -> None:
    write(apt, "sources.list", f"deb {ONE} trixie main\n")
    found = Mirrors.discover(environ={"MEDCHECK_SNAPSHOT": TWO}, apt_root=apt)
    assert found.all == (ONE, TWO)


def test_a_machine_without_debian_mirror_is_told_what_to_set(apt: Path) -> None:
    write(apt, "sources.list", "deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(ArtifactError) as caught:
        bases(apt)
    assert "--mirror" in str(caught.value) and "MEDCHECK_MIRROR" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["ftp://x.example/debian", "http://", "http:///debian", "http://[x", "/no/such/folder", "file:///no/such/folder"],
)
def test_a_mirror_that_cannot_be_one_is_a_usage_error(apt: Path, value: str) -> None:
    with pytest.raises(UsageError, match="MEDCHECK_MIRROR"):
        bases(apt, MEDCHECK_MIRROR=value)


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_an_option_that_names_no_mirror_does_not_fall_back_to_apt(apt: Path, value: str) -> None:
    write(apt, "sources.list", f"deb {ONE} trixie main\n")
    with pytest.raises(UsageError, match="--mirror names no mirror"):
        Mirrors.discover(option=value, environ={}, apt_root=apt)
    with pytest.raises(SystemExit) as ended:
        cli.main(["fetch", "--mirror", value])
    assert ended.value.code == 2


def test_an_empty_variable_is_as_good_as_none(apt: Path) -> None:
    write(apt, "sources.list", f"deb {ONE} trixie main\n")
    assert bases(apt, MEDCHECK_MIRROR="") == (ONE,)
    with pytest.raises(UsageError, match="MEDCHECK_MIRROR names no mirror"):
        bases(apt, MEDCHECK_MIRROR=",")


def test_proxies_of_apt(apt: Path) -> None:
    write(apt, "sources.list", f"deb {ONE} trixie main\n")
    (apt / "etc/apt/apt.conf.d").mkdir()
    write(
        apt,
        "apt.conf.d/01proxy",
        'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::https::Proxy "DIRECT";\n',
    )
    found = Mirrors.discover(environ={}, apt_root=apt)
    assert found.proxies == {"http": "http://proxy.example:3128"}


def test_no_host_name_stands_in_the_source_or_the_lock_file() -> None:
    import framework.artifacts
    from framework.common.paths import IMAGES

    code = list(Path(framework.artifacts.__file__).parent.glob("*.py"))
    for path in [*code, IMAGES / "packages.yaml", IMAGES / "artifacts.lock.yaml"]:
        assert not re.search(r"https?://\w", path.read_text()), path

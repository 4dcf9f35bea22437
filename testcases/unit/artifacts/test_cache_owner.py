# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose cache it is: programs run from it, so it is the user's own, marked as one, and no other user writes there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from framework.common import paths
from framework.common.errors import ExitCode, UsageError
from framework.common.paths import CACHE_FOLDERS, CACHE_MARK, cache_root, is_marked
from testcases.unit.artifacts.archive import open_to_all

ROOT = Path(__file__).resolve().parents[3]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("MEDCHECK_CACHE", str(root))
    return root


def refused(what: str) -> str:
    with pytest.raises(UsageError, match=what) as caught:
        cache_root()
    assert caught.value.exit_code == ExitCode.USAGE and caught.value.where and caught.value.hint
    return str(caught.value)


def test_a_cache_is_made_with_its_mark(cache: Path) -> None:
    assert cache_root() == cache
    assert is_marked(cache)
    # What programs that make backups look for.
    assert (cache / CACHE_MARK).read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_a_cache_is_made_so_that_others_cannot_write_whatever_the_umask(cache: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache_root()
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o022 == 0
    assert cache_root() == cache


def test_a_cache_of_an_earlier_release_is_taken_over(cache: Path) -> None:
    for name in ("blobs", "builds", "locks", "ssh", "lost+found"):
        (cache / name).mkdir(parents=True)
    cache_root()
    assert is_marked(cache)


def test_an_empty_folder_becomes_a_cache(cache: Path) -> None:
    cache.mkdir()
    cache_root()
    assert is_marked(cache)


@pytest.mark.parametrize(
    "mark", [None, b"", b"Signature: 8a477f597d28d172789f06886806bc55\n# made by another program\n"]
)
def test_a_folder_with_other_files_is_no_cache(cache: Path, mark: bytes | None) -> None:
    (cache / "builds").mkdir(parents=True)
    (cache / "thesis").mkdir()
    if mark is not None:
        (cache / CACHE_MARK).write_bytes(mark)
    assert str(cache / "medcheck") in refused("holds other files")
    assert (cache / "thesis").is_dir()


def test_a_folder_of_others_whose_names_a_cache_has_too_is_no_cache(cache: Path) -> None:
    for name in ("builds", "logs", "reports"):
        (cache / name).mkdir(parents=True)
    assert "builds, logs, reports" in refused("holds other files")
    assert not is_marked(cache)


def test_other_files_in_a_marked_cache_are_left_alone(cache: Path) -> None:
    cache_root()
    (cache / "thesis").mkdir()
    assert cache_root() == cache


@as_root
@pytest.mark.parametrize("below", ["", *CACHE_FOLDERS])
def test_a_cache_of_somebody_else_is_refused(cache: Path, below: str) -> None:
    cache_root()
    (cache / below).mkdir(exist_ok=True)
    os.chown(cache / below, 1234, 1234)
    assert "uid 1234" in refused("belongs to")


@as_root
def test_a_cache_behind_a_link_is_judged_by_what_it_leads_to(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 1234, 1234)
    cache.symlink_to(tmp_path / "theirs")
    refused("belongs to")


@as_root
def test_a_cache_of_the_superuser_serves_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all(tmp_path)
    root = tmp_path / "cache"
    monkeypatch.setenv("MEDCHECK_CACHE", str(root))
    cache_root()
    os.seteuid(65534)
    try:
        assert cache_root() == root
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("below", ["", "builds"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_cache_that_others_may_write_is_refused(cache: Path, below: str, mode: int) -> None:
    cache_root()
    (cache / below).mkdir(exist_ok=True)
    (cache / below).chmod(mode)
    assert "chmod -R go-w" in refused("can be written by other users")


@pytest.mark.parametrize("private", [True, False])
def test_a_group_may_write_where_it_is_one_users_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    cache_root()
    cache.chmod(0o775)
    monkeypatch.setattr(paths, "_is_private", lambda _gid: private)
    if private:
        assert cache_root() == cache
    else:
        refused("can be written by other users")


def test_a_folder_above_that_everybody_may_write_is_refused_unless_sticky(cache: Path) -> None:
    cache_root()
    cache.parent.chmod(0o777)
    refused("can replace the cache")
    cache.parent.chmod(0o1777)
    assert cache_root() == cache


def test_a_cache_that_cannot_be_made_is_left_to_what_writes_into_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "file/cache"))
    assert cache_root() == tmp_path / "file/cache"


def test_every_folder_that_the_framework_puts_into_a_cache_is_known() -> None:
    found: set[str] = set()
    for path in (ROOT / "framework").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r'cache_root\(\)(?: if root is None else root\))? / "(\w+)"', text))
    for name in ("cache", "store", "stack"):
        text = (ROOT / f"framework/artifacts/{name}.py").read_text()
        found |= set(re.findall(r'root / "(\w+)"', text))
    assert {"blobs", "builds", "kept", "snapshots", "ssh"} <= found <= set(CACHE_FOLDERS)

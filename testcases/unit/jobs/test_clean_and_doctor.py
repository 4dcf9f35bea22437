# SPDX-License-Identifier: GPL-2.0-or-later
"""``medcheck clean`` and ``doctor``: what goes, what stays, and what a fresh machine is told."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from framework.artifacts.lock import Lock
from framework.artifacts.qemu_bundle import GROUP
from framework.board.janitor import Janitor, new_board_id, write_entry
from framework.common.errors import UsageError
from framework.common.paths import CACHE_FOLDERS, CACHE_MARK
from framework.common.terminal import Output
from framework.jobs import clean as clean_job
from framework.jobs import doctor
from framework.jobs.clean import clean
from framework.jobs.doctor import examine
from framework.snapshot.store import SnapshotStore
from framework.snapshot.tmpfs_cache import TmpfsCache
from testcases.unit.artifacts.archive import Archive


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    (root / "blobs").mkdir(parents=True)
    monkeypatch.setenv("MEDCHECK_CACHE", str(root))
    # Other processes of this machine are none of this test's business.
    monkeypatch.setattr(Janitor, "orphans", lambda _self: [])
    tmpfs = tmp_path / "tmpfs"
    tmpfs.mkdir()
    monkeypatch.setattr(clean_job, "SnapshotStore", partial(SnapshotStore, tmpfs=tmpfs))
    return root


def output() -> Output:
    return Output(json=True, stdout=io.StringIO(), stderr=io.StringIO())


def test_a_cache_whose_boards_run_is_not_removed(cache: Path) -> None:
    entry = write_entry(new_board_id(1), [], cache)
    with pytest.raises(UsageError, match="1 boards of this cache are running"):
        clean(True, 0, output())
    assert (cache / "blobs").is_dir()
    entry.unlink()
    clean(True, 0, output())
    assert not cache.exists()


def test_the_whole_cache_takes_its_snapshots_off_tmpfs_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def prune(_self: SnapshotStore, bound: int | None) -> list[str]:
        asked.append(bound)
        return []

    monkeypatch.setattr(SnapshotStore, "prune", prune)
    clean(True, 0, output())
    (cache / "blobs").mkdir(parents=True)
    clean(False, 0, output())
    assert asked == [0, None]


@pytest.mark.parametrize("everything", [False, True])
def test_what_caches_left_on_tmpfs_goes(cache: Path, tmp_path: Path, everything: bool) -> None:
    gone = tmp_path / "gone"
    for root in (gone, cache, tmp_path / "stays"):
        (root / "snapshots").mkdir(parents=True)
        with TmpfsCache(root / "snapshots", tmp_path / "tmpfs", Mock(), Mock()).used():
            pass
    names = {path.name for path in (tmp_path / "tmpfs").iterdir()}
    (gone / "snapshots").rmdir()
    told = io.StringIO()
    clean(everything, 0, Output(json=True, stdout=told, stderr=io.StringIO()))
    left = names - {path.name for path in (tmp_path / "tmpfs").iterdir()}
    assert len(left) == 1 + everything
    removed = json.loads(told.getvalue())["removed"]
    assert {Path(item).name for item in removed if "tmpfs" in item} == left


def test_what_else_lies_in_the_cache_stays(cache: Path) -> None:
    clean(False, 0, output())
    for name in CACHE_FOLDERS:
        (cache / name).mkdir(exist_ok=True)
    (cache / "thesis").mkdir()
    (cache / "thesis/main.tex").write_text("mine")
    clean(True, 0, output())
    assert {path.name for path in cache.iterdir()} == {"thesis", CACHE_MARK}
    assert (cache / "thesis/main.tex").read_text() == "mine"


@pytest.mark.parametrize("everything", [False, True])
def test_a_folder_that_is_no_cache_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    home = tmp_path / "home"
    (home / "builds").mkdir(parents=True)
    (home / "main.tex").write_text("mine")
    monkeypatch.setenv("MEDCHECK_CACHE", str(home))
    with pytest.raises(UsageError, match=r"holds other files \(builds, main\.tex\)") as caught:
        clean(everything, 0, output())
    assert str(home / "medcheck") in str(caught.value)
    assert sorted(path.name for path in home.iterdir()) == ["builds", "main.tex"]


def test_a_folder_that_is_a_link_loses_the_link_only(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (cache / "builds").symlink_to(tmp_path / "elsewhere")
    clean(True, 0, output())
    assert not cache.exists()
    assert (tmp_path / "elsewhere/file").exists()


def found_by_doctor(mirror: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the state of each mirror."""
    told = io.StringIO()
    code = examine(False, mirror, Output(json=True, stdout=told, stderr=io.StringIO()))
    return code, {f["subject"]: f["state"] for f in json.loads(told.getvalue()) if "mirror" in f["subject"]}


@pytest.mark.usefixtures("cache")
def test_a_silent_mirror_is_bad_only_where_something_is_to_be_had_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = "http://127.0.0.1:1/debian"
    monkeypatch.setattr(doctor, "host_packages", lambda: iter(()))
    assert found_by_doctor(unreachable) == (3, {f"mirror {unreachable}": "bad"})
    monkeypatch.setattr(doctor, "_missing", lambda _pins: [])
    monkeypatch.setattr(doctor, "_qemu", lambda: iter(()))
    assert found_by_doctor(unreachable) == (0, {f"mirror {unreachable}": "note"})


@pytest.mark.usefixtures("cache")
def test_a_mirror_that_is_none_is_wrong_use_and_no_finding() -> None:
    with pytest.raises(UsageError, match="--mirror"):
        found_by_doctor("/no/such/folder")


def test_a_cache_that_is_a_file_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", "/dev/null")
    told = io.StringIO()
    assert examine(True, None, Output(json=True, stdout=told, stderr=io.StringIO())) == 3
    assert {f["subject"]: f["state"] for f in json.loads(told.getvalue())}["cache"] == "bad"


@pytest.mark.usefixtures("cache")
def test_one_mirror_that_answers_is_enough() -> None:
    unreachable = "http://127.0.0.1:1/debian"
    with Archive() as archive:
        archive.files[Lock.load().group(GROUP)[0].path] = b"content"
        _, states = found_by_doctor(f"{unreachable},{archive.url}")
    assert states == {f"mirror {unreachable}": "note", f"mirror {archive.url}": "good"}


@pytest.mark.usefixtures("cache")
def test_a_fresh_machine_is_told_to_fetch_and_not_that_something_is_broken() -> None:
    told = io.StringIO()
    examine(True, None, Output(json=True, stdout=told, stderr=io.StringIO()))
    found = {finding["subject"]: finding for finding in json.loads(told.getvalue())}
    assert found["QEMU"]["state"] == found["downloads"]["state"] == "note"
    assert found["QEMU"]["cure"] == "./medcheck fetch"

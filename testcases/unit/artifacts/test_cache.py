# SPDX-License-Identifier: GPL-2.0-or-later
"""The build cache: the same inputs build once, damage builds again, failures keep their logs."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.artifacts.cache import BuildCache
from framework.common.errors import BuildError
from testcases.unit.artifacts.archive import pin_of


class Recipe:
    """A build that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "bin").mkdir()
        (folder / "bin/tool").write_text("tool")
        (folder / "bin/tool").chmod(0o755)
        (folder / "alias").symlink_to("bin/tool")
        (folder / "shortcut").symlink_to("bin")


@pytest.fixture
def recipe() -> Recipe:
    return Recipe()


def test_the_same_inputs_build_once_even_in_another_process(tmp_path: Path, recipe: Recipe) -> None:
    first = BuildCache(tmp_path).get("thing", {"a": 1, "b": [1, "x", None]}, recipe)
    again = BuildCache(tmp_path).get("thing", {"b": (1, "x", None), "a": 1}, recipe)
    assert first == again and recipe.runs == 1
    assert first.name.startswith("thing-")
    assert (first / "alias").read_text() == "tool"


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": True}, {"a": [1]}, {"a": b"1"}, {"a": {"x": 1}}]
)
def test_other_inputs_build_another_folder(tmp_path: Path, recipe: Recipe, other: dict[str, object]) -> None:
    cache = BuildCache(tmp_path)
    assert cache.get("thing", {"a": 1}, recipe) != cache.get("thing", other, recipe)
    assert cache.get("thing", {"a": 1}, recipe) != cache.get("gadget", {"a": 1}, recipe)


def test_a_path_stands_for_its_content(tmp_path: Path, recipe: Recipe) -> None:
    cache, one, two = BuildCache(tmp_path / "cache"), tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub/file").write_text("same")
    assert cache.get("t", {"p": one}, recipe) == cache.get("t", {"p": two}, recipe)
    before = cache.get("t", {"p": one / "sub/file"}, recipe)
    (one / "sub/file").write_text("else")
    assert cache.get("t", {"p": one / "sub/file"}, recipe) != before
    assert cache.get("t", {"p": one}, recipe) != cache.get("t", {"p": two}, recipe)


def test_a_missing_input_is_named_and_a_strange_one_is_a_programming_error(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(BuildError, match="cannot be read") as caught:
        BuildCache(tmp_path).get("t", {"p": tmp_path / "none"}, recipe)
    assert caught.value.where == str(tmp_path / "none")
    with pytest.raises(TypeError, match="set"):
        BuildCache(tmp_path).get("t", {"p": {1, 2}}, recipe)
    assert BuildCache(tmp_path).get("t", {"pin": pin_of("x", b"x")}, recipe)


def damage_content(folder: Path) -> None:
    path = folder / "bin/tool"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("TOOL")
    os.utime(path, ns=times)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "content": damage_content,
    "truncated": lambda folder: (folder / "bin/tool").write_text(""),
    "gone": lambda folder: (folder / "bin/tool").unlink(),
    "added": lambda folder: (folder / "bin/more").write_text(""),
    "mode": lambda folder: (folder / "bin/tool").chmod(0o644),
    "link": lambda folder: ((folder / "alias").unlink(), (folder / "alias").symlink_to("elsewhere")),
    "manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "other manifest": lambda folder: (folder / "manifest.json").write_text('{"files": []}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_built_again(tmp_path: Path, recipe: Recipe, damage: str) -> None:
    cache = BuildCache(tmp_path)
    folder = cache.get("thing", {}, recipe)
    DAMAGES[damage](folder)
    for user in (cache, BuildCache(tmp_path)):
        assert user.get("thing", {}, recipe) == folder
        assert (folder / "bin/tool").read_text() == "tool"
        assert (folder / "bin/tool").stat().st_mode & 0o100
    assert recipe.runs == 2
    assert not (folder / "bin/more").exists()


def test_the_manifest_tells_inputs_and_hashes(tmp_path: Path, recipe: Recipe) -> None:
    folder = BuildCache(tmp_path).get("thing", {"version": "1.0"}, recipe)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == {"version": "1.0"}
    assert set(manifest["files"]) == {"bin/tool", "alias", "shortcut"}


def test_a_failed_build_leaves_its_logs_and_nothing_else(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub/make.log").write_text("error: no")
        (folder / "half").write_text("")
        raise BuildError("it broke")

    with pytest.raises(BuildError) as caught:
        BuildCache(tmp_path).get("thing", {}, fail)
    assert caught.value.where is not None
    assert (Path(caught.value.where) / "sub/make.log").read_text() == "error: no"
    assert not list((tmp_path / "builds").iterdir())


def test_a_log_named_by_the_failure_is_named_where_it_now_lies(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "make.log").write_text("error: no")
        raise BuildError("it broke", where=str(folder / "make.log"))

    with pytest.raises(BuildError) as caught:
        BuildCache(tmp_path).get("thing", {}, fail)
    assert Path(str(caught.value.where)).read_text() == "error: no"


def test_any_other_exception_comes_out_as_it_is(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(FileNotFoundError):
        BuildCache(tmp_path).get("thing", {}, lambda folder: (folder / "none").read_text())  # type: ignore[arg-type]
    BuildCache(tmp_path).get("thing", {}, recipe)
    assert recipe.runs == 1


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, recipe: Recipe) -> None:
    cache = BuildCache(tmp_path)
    folder = cache.get("thing", {}, recipe)
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    assert cache.get("thing", {}, recipe) == folder
    assert recipe.runs == 2
    assert [path.name for path in (tmp_path / "builds").iterdir()] == [folder.name]


def test_no_room_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(BuildError, match="no room") as caught:
            BuildCache(tmp_path).get("thing", {}, lambda folder: (folder / "x").write_bytes(b"x" * 2000))  # type: ignore[arg-type,return-value]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "medcheck clean" in str(caught.value)
    assert not list((tmp_path / "builds").iterdir())


def _build_elsewhere(root: Path, tally: Path, ready: object) -> None:
    def build(folder: Path) -> None:
        with tally.open("a") as stream:
            stream.write("x")
        (folder / "out").write_text("done")

    ready.wait()  # type: ignore[attr-defined]
    assert (BuildCache(root).get("thing", {}, build) / "out").read_text() == "done"


def test_two_runs_at_once_build_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(3)
    runs = [
        spawn.Process(target=_build_elsewhere, args=(tmp_path / "cache", tmp_path / "tally", together))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert (tmp_path / "tally").read_text() == "x"


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)

    def build(folder: Path) -> None:
        (folder / "out").write_bytes(b"x" * 100_000)

    folders = {name: cache.get(name, {}, build) for name in ("old", "middle", "new")}
    for age, name in enumerate(("new", "middle", "old")):
        os.utime(folders[name], (1_000_000 - age, 1_000_000 - age))
    cache.get("old", {}, build)
    entries = cache.entries()
    assert [entry.path for entry in entries] == [folders["middle"], folders["new"], folders["old"]]
    assert all(entry.size >= 100_000 for entry in entries)
    total = sum(entry.size for entry in entries)
    assert not cache.prune(total)
    assert [str(entry) for entry in cache.prune(total - 1)] == [folders["middle"].name]
    assert not cache.prune(0, unused_for=10**10)
    cache.prune(0)
    assert not cache.entries()

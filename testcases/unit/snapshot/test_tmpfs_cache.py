# SPDX-License-Identifier: GPL-2.0-or-later
"""Working copies on tmpfs: bounded, never at the cost of one in use, and never those of another cache."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework.common.locks import flock
from framework.snapshot import sparse
from framework.snapshot import tmpfs_cache as tmpfs_cache
from framework.snapshot.tmpfs_cache import MOST_RAM, TmpfsCache, default_bound, reclaim

BLOCK = 1 << 20


class Cache:
    """A cache of snapshots that are nothing but RAM, each of one MiB, and their locks."""

    def __init__(self, root: Path, tmpfs: Path, most: int = 100 * BLOCK) -> None:
        self.snapshots = root / "snapshots"
        (self.snapshots / ".locks").mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []
        self.copies = TmpfsCache(self.snapshots, tmpfs, lambda name: self.locked(name), self.said.append, most)

    def locked(self, name, exclusive=True):
        return flock(self.snapshots / ".locks" / name, exclusive=exclusive, wait=False)

    def in_use(self, name):
        return self.locked(name, exclusive=False)

    def make(self, name, used):
        """A snapshot, last used at this time."""
        folder = self.snapshots / name
        folder.mkdir(exist_ok=True)
        (folder / "ram").write_bytes(name.encode() * (BLOCK // len(name)) + name.encode()[: BLOCK % len(name)])
        os.utime(folder, (used, used))
        return folder / "ram"

    def copy(self, name, used=1):
        """Make it and its working copy, as who uses it would; whether there was room."""
        source = self.make(name, used)
        want = sparse.digest(source)
        with self.copies.used(), self.in_use(name):
            done = self.copies.copy(name, source, want)
        assert done in (None, want)
        assert self.copies.verified(name, want) == bool(done)
        return bool(done)

    @property
    def copied(self):
        """The names of the copies that are there, and what they take."""
        paths = sorted(self.copies.ram("x").parent.parent.glob("[!.]*/ram"))
        return [path.parent.name for path in paths], sum(sparse.allocated(path) for path in paths)


@pytest.fixture
def tmpfs(tmp_path):
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path, tmpfs):
    """With room for two and a half."""
    return Cache(tmp_path / "cache", tmpfs, most=5 * BLOCK // 2)


def test_the_least_recently_used_goes_so_that_the_bound_is_kept(cache):
    assert cache.copy("a", used=1)
    assert cache.copy("b", used=2)
    assert cache.copy("c", used=3)
    assert cache.copied == (["b", "c"], 2 * BLOCK)
    os.utime(cache.snapshots / "b", (4, 4))
    assert cache.copy("d", used=5)
    assert cache.copied == (["b", "d"], 2 * BLOCK)
    assert cache.said == []


def test_one_in_use_stays_however_long_ago_it_was_used(cache):
    assert cache.copy("a", used=1)
    assert cache.copy("b", used=2)
    with cache.in_use("a"):
        assert cache.copy("c", used=3)
        assert cache.copied[0] == ["a", "c"]
        with cache.in_use("c"):
            assert not cache.copy("d", used=4)
            assert cache.copied[0] == ["a", "c"]
    assert cache.copy("d", used=4)


def test_nothing_goes_for_a_copy_that_does_not_fit_even_so(cache):
    assert cache.copy("a")
    assert cache.copy("b")
    source = cache.make("large", 3)
    source.write_bytes(b"x" * 3 * BLOCK)
    with cache.copies.used(), cache.in_use("large"):
        assert cache.copies.copy("large", source, sparse.digest(source)) is None
    assert cache.copied[0] == ["a", "b"]


def test_one_that_has_grown_to_more_than_twice_goes_first(tmp_path, tmpfs):
    cache = Cache(tmp_path / "cache", tmpfs, most=9 * BLOCK // 2)
    cache.copy("a", used=1)
    cache.copy("b", used=2)
    with cache.copies.ram("b").open("ab") as stream:
        stream.write(b"x" * 2 * BLOCK)
    assert cache.copy("c", used=3)
    assert cache.copied[0] == ["a", "c"]


def test_a_copy_counts_with_the_holes_that_it_will_not_have(cache):
    assert cache.copy("a", used=1)
    assert cache.copy("b", used=2)
    source = cache.make("c", 3)
    with source.open("wb") as stream:
        for at in range(0, 2 * BLOCK, 1 << 16):
            stream.seek(at)
            stream.write(b"x" * 4096)
    assert sparse.allocated(source) < BLOCK // 2
    with cache.copies.used(), cache.in_use("c"):
        assert cache.copies.copy("c", source, sparse.digest(source))
    assert cache.copied == (["c"], 2 * BLOCK - (1 << 16) + 4096)


def test_room_that_tmpfs_has_not_is_made_too(tmp_path, tmpfs, monkeypatch):
    cache = Cache(tmp_path / "cache", tmpfs)
    assert cache.copy("a", used=1)
    assert cache.copy("b", used=2)

    def usage(_path):
        """A tmpfs with room for two, of which others have left nothing more than what must stay free."""
        return SimpleNamespace(free=(256 << 20) + 2 * BLOCK - cache.copied[1])

    monkeypatch.setattr(tmpfs_cache.shutil, "disk_usage", usage)
    assert cache.copy("c", used=3)
    assert cache.copied[0] == ["b", "c"]


def test_a_copy_that_grew_counts_as_what_it_takes(cache):
    cache.copy("a", used=1)
    cache.copy("b", used=2)
    with cache.copies.ram("b").open("ab") as stream:
        # As clones do that read holes.
        stream.write(b"x" * BLOCK)
    assert cache.copy("c", used=3)
    assert cache.copied[0] == ["c"]


def test_a_copy_without_its_snapshot_goes_with_the_next_that_is_made(tmp_path, tmpfs):
    cache = Cache(tmp_path / "cache", tmpfs)
    for name in ("a", "b"):
        cache.copy(name)
        (cache.snapshots / name / "ram").unlink()
        (cache.snapshots / name).rmdir()
    with cache.locked("b"):
        # Another process makes this one anew.
        assert cache.copy("c")
        assert cache.copied[0] == ["b", "c"]
    cache.copies.tidy()
    assert cache.copied[0] == ["c"]


def test_a_copy_whose_snapshot_is_made_just_then_stays(cache, monkeypatch):
    cache.copy("a")
    (cache.snapshots / "a").rename(cache.snapshots / "b")
    locked = cache.locked

    def made_meanwhile(name):
        (cache.snapshots / "b").rename(cache.snapshots / name)
        return locked(name)

    monkeypatch.setattr(cache, "locked", made_meanwhile)
    cache.copies.tidy()
    assert cache.copied[0] == ["a"]


def test_a_board_that_boots_has_the_room_it_may_come_to_take(tmp_path, tmpfs):
    cache = Cache(tmp_path / "cache", tmpfs, most=MOST_RAM + 3 * BLOCK // 2)
    for name, used in (("a", 1), ("b", 2), ("c", 3)):
        assert cache.copy(name, used)
    with cache.copies.used(), cache.locked("new"):
        live = cache.copies.begin("new")
        assert cache.copied[0] == ["c"]
        with cache.in_use("c"):
            assert not cache.copy("d", used=4)
        (live / "ram").write_bytes(b"x" * BLOCK)
        cache.make("new", 5)
        cache.copies.finish("new", sparse.digest(live / "ram"))
    assert not live.exists()
    assert cache.copy("d", used=6)
    assert cache.copied[0] == ["c", "d", "new"]


def test_a_board_boots_on_disk_where_its_ram_may_not_fit(cache):
    assert cache.copy("a")
    with cache.copies.used(), cache.locked("new"):
        assert cache.copies.begin("new") is None
    assert cache.copied[0] == ["a"]


def _copy(root, tmpfs, name, most, barrier, copying):
    """Copy, keep it in use until the others are done; the exit code says whether there was room."""
    cache = Cache(root, tmpfs, most)
    source = cache.make(name, 1)
    copy = sparse.copy

    def slowly(*paths):
        copying.value += 1
        # Two at a time would wait here for each other; they must not be two.
        threading.Event().wait(0.2)
        assert copying.value == 1
        done = copy(*paths)
        copying.value -= 1
        return done

    sparse.copy = slowly
    with cache.copies.used(), cache.in_use(name):
        want = sparse.digest(source)
        barrier.wait(30)
        done = cache.copies.copy(name, source, want)
        assert done is None or cache.copies.verified(name, want)
        barrier.wait(30)
    os._exit(10 if done else 11)


@pytest.mark.parametrize(
    ("names", "most", "codes"),
    [
        (["a", "b"], 3 * BLOCK // 2, [10, 11]),
        (["a", "b"], 2 * BLOCK, [10, 10]),
        (["a", "a"], 3 * BLOCK // 2, [10, 10]),
        (["a", "b", "c", "d"], 5 * BLOCK // 2, [10, 10, 11, 11]),
    ],
)
def test_processes_at_the_same_time_do_not_fill_the_same_room(tmp_path, tmpfs, names, most, codes):
    Cache(tmp_path / "cache", tmpfs)
    context = multiprocessing.get_context("fork")
    barrier, copying = context.Barrier(len(names)), context.Value("i", 0)
    processes = [
        context.Process(target=_copy, args=(tmp_path / "cache", tmpfs, name, most, barrier, copying)) for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(process.exitcode for process in processes) == codes
    assert Cache(tmp_path / "cache", tmpfs).copied[1] <= most


def test_another_caches_copies_are_none_of_our_business(tmp_path, tmpfs, cache):
    other = Cache(tmp_path / "other", tmpfs)
    for name in ("a", "b", "c", "d"):
        assert other.copy(name)
        assert cache.copy(name)
    assert other.copied == (["a", "b", "c", "d"], 4 * BLOCK)
    assert len(cache.copied[0]) == 2


def folder_of(cache):
    return cache.copies.ram("x").parent.parent


def test_the_copies_of_a_cache_that_is_gone_go_with_the_next_that_is_made(tmp_path, tmpfs, cache):
    gone = Cache(tmp_path / "gone", tmpfs)
    gone.copy("a")
    assert reclaim(tmpfs) == []
    gone.snapshots.rename(tmp_path / "moved")
    assert cache.copy("a")
    assert not folder_of(gone).exists()


def other_mounts(folder):
    note = json.loads((folder / ".owner").read_text())
    (folder / ".owner").write_text(json.dumps({**note, "mounts": "mnt:[1]"}))


@pytest.mark.parametrize(
    "change",
    [
        other_mounts,
        lambda folder: (folder / ".owner").unlink(),
        lambda folder: (folder / ".owner").write_text(""),
        lambda folder: (folder / ".owner").write_text("[]"),
        lambda folder: folder.chmod(0o777),
        lambda folder: folder.rename(folder.with_name(f"medcheck-{os.geteuid()}-01234567")),
        lambda folder: folder.rename(folder.with_name(f"medcheck-{os.geteuid() + 1}{folder.name[-9:]}")),
    ],
)
def test_what_may_be_somebodys_stays(tmp_path, tmpfs, change):
    gone = Cache(tmp_path / "gone", tmpfs)
    gone.copy("a")
    gone.snapshots.rename(tmp_path / "moved")
    change(folder_of(gone))
    assert reclaim(tmpfs) == []
    assert len(list(tmpfs.glob("*/a/ram"))) == 1


def test_a_cache_that_is_in_use_is_not_gone(tmp_path, tmpfs):
    cache = Cache(tmp_path / "cache", tmpfs)
    cache.copy("a")
    with cache.copies.used():
        cache.snapshots.rename(tmp_path / "moved")
        assert reclaim(tmpfs) == []
    assert reclaim(tmpfs) == [folder_of(cache)]


def test_a_cache_that_comes_back_while_its_copies_are_taken_away_begins_anew(tmp_path, tmpfs, monkeypatch):
    cache = Cache(tmp_path / "cache", tmpfs)
    cache.copy("a")
    cache.snapshots.rename(tmp_path / "moved")
    waits, release, claimed = threading.Event(), threading.Event(), threading.Event()
    take_away, lock = tmpfs_cache._take_away, fcntl.flock

    def use():
        again = Cache(tmp_path / "cache", tmpfs)
        with again.copies.used():
            claimed.set()
            release.wait(30)

    def locked(file, how):
        if how == fcntl.LOCK_SH:
            waits.set()
        return lock(file, how)

    def taken_away(folder):
        user.start()
        assert waits.wait(30)
        assert not claimed.is_set()
        take_away(folder)

    user = threading.Thread(target=use)
    monkeypatch.setattr(tmpfs_cache.fcntl, "flock", locked)
    monkeypatch.setattr(tmpfs_cache, "_take_away", taken_away)
    with ExitStack() as end:
        end.callback(user.join)
        end.callback(release.set)
        assert reclaim(tmpfs) == [folder_of(cache)]
        assert claimed.wait(30)
        assert [path.name for path in folder_of(cache).iterdir()] == [".owner"]
        # It has the lock of the new file, not of the one that is gone.
        with pytest.raises(BlockingIOError), flock(folder_of(cache) / ".owner", exclusive=True, wait=False):
            pass


def test_a_folder_that_others_can_write_is_not_used(tmp_path, tmpfs):
    cache = Cache(tmp_path / "cache", tmpfs)
    folder_of(cache).mkdir()
    folder_of(cache).chmod(0o777)
    assert not cache.copy("a")
    with cache.locked("new"):
        assert cache.copies.begin("new") is None
    assert list(folder_of(cache).iterdir()) == []


@pytest.mark.parametrize("place", [None, "absent"])
def test_without_tmpfs_there_are_no_copies(tmp_path, place):
    cache = Cache(tmp_path / "cache", None if place is None else tmp_path / place)
    assert not cache.copy("a")
    with cache.locked("a"):
        assert cache.copies.begin("a") is None
        cache.copies.remove("a")
    cache.copies.tidy()
    assert cache.copies.size("a") == 0


@pytest.mark.parametrize(
    ("memory", "given", "bound"),
    [(40, None, 10 << 30), (6, None, 2 << 30), (40, "0", 0), (40, "70", 70 << 20)],
)
def test_the_bound_is_a_quarter_of_the_memory_or_what_is_asked_for(monkeypatch, memory, given, bound):
    monkeypatch.setattr(tmpfs_cache.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory << 30))
    if given is not None:
        monkeypatch.setenv("MEDCHECK_TMPFS_MIB", given)
    assert default_bound() == bound

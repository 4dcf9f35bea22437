# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot store: complete or absent, verified, bounded, and made once by however many processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from framework.common.errors import BoardError, GuestCrash, UsageError
from framework.common.qemu_ids import READERS
from framework.snapshot import sparse
from framework.snapshot import store as snapshot
from framework.snapshot.store import SnapshotStore

SIZE = 8 << 20


@pytest.fixture(autouse=True)
def fake_board(monkeypatch, tmp_path):
    """Saving needs no QEMU here: the state is a text, the logs are made up."""

    def logs(_board, folder):
        folder.mkdir()
        (folder / "xen.log").write_text("[     0.000] (XEN) hello\n")

    monkeypatch.setattr(snapshot, "save_devices", lambda _board: (b"device state", []))
    monkeypatch.setattr(snapshot, "copy_logs", logs)
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tmpfs(tmp_path):
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    return folder


class Told:
    """A progress that remembers."""

    def __init__(self):
        self.lines = []

    @contextmanager
    def task(self, title, **_rest):
        self.lines.append(title)
        yield SimpleNamespace(advance=lambda _amount=1: None)

    def say(self, text):
        self.lines.append(text)


def fill_ram(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(SIZE)
        stream.seek(1 << 20)
        stream.write(b"a guest!" * 8192)


class Maker:
    """Counts how often it was asked."""

    def __init__(self):
        self.times = 0

    @contextmanager
    def __call__(self, ram, run_dir):
        self.times += 1
        run_dir.mkdir(parents=True)
        fill_ram(ram.path)
        yield SimpleNamespace(uptime=12.5), {"guests": []}


def get(store, make, inputs=None):
    with store.get("board", inputs or {"xen": "1"}, make) as found:
        return found


def test_a_snapshot_is_made_once_and_then_found(tmp_path, tmpfs):
    make = Maker()
    first = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    second = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    assert make.times == 1
    assert first == second
    assert second.about == {"guests": []}
    assert second.uptime == 12.5
    assert second.ram.is_relative_to(tmpfs)
    assert sparse.digest(second.ram) == sparse.digest(second.folder / "ram")
    assert second.ram.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("fast", [True, False])
def test_what_guests_had_in_memory_is_for_this_user_and_its_qemus_only(tmp_path, tmpfs, fast):
    for number in (1, 2):
        found = get(SnapshotStore(tmp_path, tmpfs=tmpfs if fast else None), Maker())
        if number == 1 and fast:
            # As after a boot of the machine: copied from the disk.
            shutil.rmtree(found.ram.parent)
    for path in (found.ram, found.folder / "ram"):
        seen = path.stat()
        assert stat.S_IMODE(seen.st_mode) == (0o440 if os.geteuid() == 0 else 0o400)
        assert os.geteuid() != 0 or seen.st_gid == READERS
    assert stat.S_IMODE(found.state.stat().st_mode) == 0o600
    if fast:
        for folder in (found.ram.parent, found.ram.parent.parent):
            assert not folder.stat().st_mode & 0o066


def test_whatever_goes_in_makes_another_snapshot(tmp_path, tmpfs):
    make, store = Maker(), SnapshotStore(tmp_path, tmpfs=tmpfs)
    xen = tmp_path / "xen"
    xen.write_bytes(b"one")
    keys = {get(store, make, {"xen": xen}).key}
    xen.write_bytes(b"two")
    keys.add(get(store, make, {"xen": xen}).key)
    keys.add(get(store, make, {"xen": xen, "line": ["-smp", "2"]}).key)
    assert len(keys) == make.times == 3


def damage_bit(path):
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek((1 << 20) + 5)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))


def cut(path):
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [damage_bit, cut, Path.unlink])
@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_damaged_ram_is_noticed_and_made_again(tmp_path, tmpfs, harm, place):
    make, told = Maker(), Told()
    found = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    before = sparse.digest(found.ram)
    harm(found.folder / "ram" if place == "disk" else found.ram)
    if place == "disk":
        # As after a restart of the machine: nothing but the disk is left.
        (found.ram).unlink()
    again = get(SnapshotStore(tmp_path, tmpfs=tmpfs, progress=told), make)
    assert sparse.digest(again.ram) == before
    # A good original mends the working copy; nothing mends the original.
    assert make.times == (2 if place == "disk" else 1)
    assert any("damaged" in line for line in told.lines) == (place == "disk")


@pytest.mark.parametrize("file", ["state", "consoles/xen.log", "manifest.json"])
def test_a_damaged_small_file_is_noticed_and_made_again(tmp_path, tmpfs, file):
    make = Maker()
    found = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    (found.folder / file).write_bytes(b"{}")
    again = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    assert make.times == 2
    assert again.state.read_bytes() == b"device state"


def test_without_tmpfs_clones_read_from_disk(tmp_path):
    make = Maker()
    for folder in (None, tmp_path / "absent"):
        found = get(SnapshotStore(tmp_path / str(folder is None), tmpfs=folder), make)
        assert found.ram == found.folder / "ram"
    assert make.times == 2


def test_a_full_tmpfs_costs_speed_and_nothing_else(tmp_path, tmpfs, monkeypatch):
    make, told = Maker(), Told()
    found = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    found.ram.unlink()
    copy = sparse.copy

    def full(source, target):
        if target.is_relative_to(tmpfs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copy(source, target)

    monkeypatch.setattr(sparse, "copy", full)
    again = get(SnapshotStore(tmp_path, tmpfs=tmpfs, progress=told), make)
    assert make.times == 1
    assert again.ram == again.folder / "ram"
    assert any("No space left" in line for line in told.lines)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, tmpfs, monkeypatch):
    def full(_source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(sparse, "copy", full)
    store = SnapshotStore(tmp_path, tmpfs=tmpfs)
    with pytest.raises(BoardError, match="No space left") as caught:
        get(store, Maker())
    assert "snapshot prune" in (caught.value.hint or "")
    assert store.entries() == []
    assert list(tmpfs.rglob("ram")) == []


def test_a_boot_that_fails_leaves_its_logs_and_no_snapshot(tmp_path, tmpfs):
    @contextmanager
    def make(ram, run_dir):
        fill_ram(ram.path)
        run_dir.mkdir(parents=True)
        (run_dir / "qemu.log").write_text("boom")
        raise GuestCrash("dom0 panicked")
        yield

    store = SnapshotStore(tmp_path, tmpfs=tmpfs)
    with pytest.raises(GuestCrash):
        get(store, make)
    assert store.entries() == []
    assert list(tmpfs.rglob("ram")) == []
    assert next(tmp_path.rglob("qemu.log")).read_text() == "boom"


def _slow(root, tmpfs, counter, begun):
    @contextmanager
    def make(ram, run_dir):
        counter.value += 1
        begun.set()
        run_dir.mkdir(parents=True)
        fill_ram(ram.path)
        time.sleep(0.5)
        yield SimpleNamespace(uptime=1.0), {}

    with SnapshotStore(root, tmpfs=tmpfs).get("board", {"xen": "1"}, make) as found:
        assert sparse.digest(found.ram)


def test_two_processes_make_the_same_snapshot_once(tmp_path, tmpfs):
    context = multiprocessing.get_context("fork")
    counter, begun = context.Value("i", 0), context.Event()
    pair = [context.Process(target=_slow, args=(tmp_path, tmpfs, counter, begun)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(30)
    assert [process.exitcode for process in pair] == [0, 0]
    assert counter.value == 1


def test_what_a_killed_process_left_is_removed_and_the_snapshot_made(tmp_path, tmpfs):
    context = multiprocessing.get_context("fork")
    counter, begun = context.Value("i", 0), context.Event()
    process = context.Process(target=_slow, args=(tmp_path, tmpfs, counter, begun))
    process.start()
    assert begun.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert list(tmp_path.rglob(".*.partial"))
    make, store = Maker(), SnapshotStore(tmp_path, tmpfs=tmpfs)
    get(store, make)
    assert make.times == 1
    assert not list(tmp_path.rglob(".*.partial"))
    assert len(store.entries()) == 1


def test_prune_keeps_the_bound_and_what_was_used_last(tmp_path, tmpfs):
    make, store = Maker(), SnapshotStore(tmp_path, tmpfs=tmpfs)
    found = [get(store, make, {"number": number}) for number in range(3)]
    for age, item in enumerate(reversed(found)):
        os.utime(item.folder, (1000 - age, 1000 - age))
    sizes = [entry.disk_bytes for entry in store.entries()]
    assert store.prune(sum(sizes) - 1) == [found[0].folder.name]
    assert [entry.name for entry in store.entries()] == [item.folder.name for item in found[1:]]
    assert not found[0].ram.exists()


def test_prune_leaves_a_snapshot_that_is_in_use(tmp_path, tmpfs):
    store = SnapshotStore(tmp_path, tmpfs=tmpfs)
    with store.get("board", {"xen": "1"}, Maker()) as found:
        assert store.prune(0) == []
        assert found.ram.exists()
    assert store.prune(0) == [found.folder.name]


def test_snapshots_take_turns_in_a_memory_that_has_room_for_one(tmp_path, tmpfs):
    make, told = Maker(), Told()
    size = sparse.allocated(get(SnapshotStore(tmp_path, tmpfs=tmpfs), make).folder / "ram")
    store = SnapshotStore(tmp_path, tmpfs=tmpfs, progress=told, most_memory=size * 3 // 2)
    with store.get("board", {"xen": "1"}, make) as first:
        second = get(store, make, {"xen": "2"})
        assert first.ram.is_relative_to(tmpfs)
        assert second.ram == second.folder / "ram"
    second = get(store, make, {"xen": "2"})
    assert second.ram.is_relative_to(tmpfs)
    assert not first.ram.exists()
    assert sparse.digest(get(store, make).ram) == sparse.digest(first.folder / "ram")
    copied = {entry.name: entry.memory_bytes > 0 for entry in store.entries()}
    assert copied == {first.folder.name: True, second.folder.name: False}
    assert make.times == 2
    assert not [line for line in told.lines if "damaged" in line]


def test_the_copies_of_a_snapshot_in_use_are_not_those_of_a_cache_that_is_gone(tmp_path, tmpfs):
    store = SnapshotStore(tmp_path, tmpfs=tmpfs)
    with store.get("board", {"xen": "1"}, Maker()) as found:
        store.root.rename(tmp_path / "elsewhere")
        assert store.reclaim() == []
        assert found.ram.exists()
    assert store.reclaim() == [found.ram.parent.parent]
    assert list(tmpfs.iterdir()) == []


def test_a_manifest_of_another_format_is_made_again(tmp_path, tmpfs):
    make = Maker()
    found = get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    manifest = found.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    get(SnapshotStore(tmp_path, tmpfs=tmpfs), make)
    assert make.times == 2


@pytest.mark.parametrize("pieces", [[], [(0, 1)], [(65535, 2)], [(0, 70000), (200_000, 5), (1 << 20, 65536)]])
def test_sparse_copies_are_equal_and_have_equal_digests(tmp_path, pieces):
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as stream:
        stream.truncate((1 << 20) + 70000)
        for at, size in pieces:
            stream.seek(at)
            stream.write(b"x" * size)
    assert sparse.copy(source, target) == sparse.digest(source) == sparse.digest(target)
    assert source.read_bytes() == target.read_bytes()


def test_written_zeros_and_holes_have_the_same_digest(tmp_path):
    hole, zeros = tmp_path / "hole", tmp_path / "zeros"
    hole.touch()
    os.truncate(hole, 1 << 20)
    zeros.write_bytes(bytes(1 << 20))
    assert sparse.digest(hole) == sparse.digest(zeros)
    os.truncate(hole, 2 << 20)
    assert sparse.digest(hole) != sparse.digest(zeros)


@pytest.mark.parametrize("given", ["abc", "-1", "1e3", "12 GiB", "99999999999"])
@pytest.mark.parametrize("variable", ["MEDCHECK_SNAPSHOTS_MIB", "MEDCHECK_TMPFS_MIB"])
def test_a_bound_that_is_no_number_is_wrong_use(tmp_path, monkeypatch, variable, given):
    monkeypatch.setenv(variable, given)
    with pytest.raises(UsageError, match=variable):
        SnapshotStore(tmp_path)

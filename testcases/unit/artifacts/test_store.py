# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads against a real server on the loopback interface, with every fault a mirror or disk can have."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from framework.artifacts import store as store_module
from framework.artifacts.lock import Pin
from framework.artifacts.mirror import Mirrors
from framework.artifacts.store import Store
from framework.common.errors import ArtifactError
from framework.common.progress import SilentTask
from testcases.unit.artifacts.archive import Archive, Fault, pin_of

BIG = bytes(range(256)) * 4096
"""1 MiB, several chunks long."""


class Watched:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.total: int | None = None
        self.done = 0

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "") -> Iterator[SilentTask]:
        assert title and unit == "B"
        self.total = total
        watched = self

        class Task(SilentTask):
            def advance(self, amount: int = 1) -> None:
                watched.done += amount

        yield Task()

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def store(root: Path, *bases: str, **options: object) -> Store:
    return Store(root, Mirrors(bases), backoff=0.001, **options)  # type: ignore[arg-type]


def fresh(root: Path, archive: Archive) -> Store:
    """A store as another process would see it: nothing remembered."""
    return store(root, archive.url)


def test_many_files_at_once_are_verified_and_read_only(root: Path, archive: Archive) -> None:
    pins = [archive.add(f"file{n}", bytes([n]) * (1000 + n)) for n in range(20)]
    watched = Watched()
    paths = store(root, archive.url, progress=watched).fetch(pins)
    assert {name: path.read_bytes() for name, path in paths.items()} == {
        pin.name: archive.files[pin.path] for pin in pins
    }
    assert {path.stat().st_mode & 0o777 for path in paths.values()} == {0o444}
    assert watched.done == watched.total == sum(pin.size for pin in pins)
    assert not list((root / "partial").iterdir())


def test_a_cached_file_needs_no_network(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    fresh(root, archive).path(pin)
    archive.stop()
    assert store(root, offline=True).path(pin).read_bytes() == b"content"
    assert len(archive.asked(pin)) == 1


def test_equal_files_under_two_names_are_fetched_once(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    twin = Pin("twin", pin.path, "1", pin.size, pin.sha256)
    assert len(set(fresh(root, archive).fetch([pin, twin]).values())) == 1
    assert len(archive.asked(pin)) == 1


def test_a_name_with_plus_and_tilde_arrives_escaped(root: Path, archive: Archive) -> None:
    pin = archive.add("x", b"content", path="pool/main/x/x_1:2+ds-1~bpo13+1_all.deb")
    assert fresh(root, archive).path(pin).read_bytes() == b"content"


def test_content_encoding_is_refused_so_that_archives_stay_archives(root: Path, archive: Archive) -> None:
    pin = archive.add("x", b"content", path="pool/x.orig.tar.gz")
    fresh(root, archive).path(pin)
    assert archive.asked(pin)[0].encoding == "identity"


@pytest.mark.parametrize("damage", ["truncated", "changed", "replaced", "longer", "link"])
def test_a_damaged_file_is_noticed_and_fetched_again(root: Path, archive: Archive, damage: str, tmp_path: Path) -> None:
    pin = archive.add("file", b"content")
    used = fresh(root, archive)
    path = used.path(pin)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.chmod(0o644)
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "replaced":
        (tmp_path / "other").write_bytes(b"CONTENT")
        (tmp_path / "other").replace(path)
    else:
        path.write_bytes({"truncated": b"con", "changed": b"CONTENT", "longer": b"content!"}[damage])
    os.utime(path, ns=times, follow_symlinks=False)
    for store_ in (used, fresh(root, archive)):
        assert store_.path(pin).read_bytes() == b"content"
    assert not path.is_symlink()
    assert len(archive.asked(pin)) == 2


def test_a_damaged_file_is_never_used_offline(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    path = fresh(root, archive).path(pin)
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    with pytest.raises(ArtifactError, match="damaged in the cache"):
        store(root, archive.url, offline=True).path(pin)


def test_offline_without_the_file_says_what_to_run(root: Path, archive: Archive) -> None:
    with pytest.raises(ArtifactError, match="not in the cache") as caught:
        store(root, archive.url, offline=True).path(archive.add("file", b"content"))
    assert "medcheck fetch" in str(caught.value)
    assert not archive.requests


def test_a_truncated_body_is_gone_on_with(root: Path, archive: Archive) -> None:
    pin = archive.add("big", BIG)
    archive.faults[pin.path] = [Fault(cut=400_000), Fault(cut=200_000)]
    watched = Watched()
    assert store(root, archive.url, progress=watched).path(pin).read_bytes() == BIG
    ranges = [request.range for request in archive.asked(pin)]
    assert ranges[0] is None and len(ranges) == 3 and all(ranges[1:])
    assert watched.done == pin.size


def test_a_killed_runs_beginning_is_gone_on_with(root: Path, archive: Archive) -> None:
    pin = archive.add("big", BIG)
    (root / "partial").mkdir(parents=True)
    (root / "partial" / pin.sha256).write_bytes(BIG[:500_000])
    assert fresh(root, archive).path(pin).read_bytes() == BIG
    assert [request.range for request in archive.asked(pin)] == ["bytes=500000-"]


@pytest.mark.parametrize("rest", [b"x" * 500_000, b"x" * len(BIG), b"x" * (len(BIG) + 1)])
def test_a_wrong_beginning_is_thrown_away(root: Path, archive: Archive, rest: bytes) -> None:
    pin = archive.add("big", BIG)
    (root / "partial").mkdir(parents=True)
    (root / "partial" / pin.sha256).write_bytes(rest)
    watched = Watched()
    assert store(root, archive.url, progress=watched).path(pin).read_bytes() == BIG
    assert watched.done == pin.size


def test_a_server_without_ranges_starts_over(root: Path, archive: Archive) -> None:
    pin = archive.add("big", BIG)
    archive.faults[pin.path] = [Fault(cut=400_000), Fault(no_range=True)]
    assert fresh(root, archive).path(pin).read_bytes() == BIG


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(root: Path, archive: Archive, status: int) -> None:
    pin = archive.add("file", b"content")
    archive.faults[pin.path] = [Fault(status=status)] * 2
    assert fresh(root, archive).path(pin).read_bytes() == b"content"


def test_a_server_that_stays_busy_is_given_up(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    archive.faults[pin.path] = [Fault(status=503)] * 50
    with pytest.raises(ArtifactError, match="503"):
        fresh(root, archive).path(pin)
    assert len(archive.asked(pin)) == 4


def test_a_body_that_always_breaks_at_once_is_given_up(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    archive.faults[pin.path] = [Fault(cut=0)] * 50
    with pytest.raises(ArtifactError, match="4 times"):
        fresh(root, archive).path(pin)


def test_a_404_says_what_to_do(root: Path, archive: Archive) -> None:
    with pytest.raises(ArtifactError, match="404") as caught:
        fresh(root, archive).path(pin_of("gone", b"content"))
    told = str(caught.value)
    assert "medcheck lock --update" in told and "MEDCHECK_SNAPSHOT" in told and "gone_1.0_all.deb" in told


def test_several_missing_files_are_all_named(root: Path, archive: Archive) -> None:
    pins = [pin_of("gone", b"1"), pin_of("lost", b"2"), archive.add("there", b"3")]
    with pytest.raises(ArtifactError, match="2 of 3") as caught:
        fresh(root, archive).fetch(pins)
    assert "gone" in str(caught.value) and "lost" in str(caught.value)
    assert store(root, offline=True).path(pins[2]), "what could be had is kept"


def test_a_snapshot_has_what_the_mirror_has_no_more(root: Path, archive: Archive) -> None:
    with Archive() as old:
        pin = old.add("file", b"content")
        found = Store(root, Mirrors((archive.url,), (old.url,)), backoff=0.001)
        assert found.path(pin).read_bytes() == b"content"
    assert archive.asked(pin)


def test_other_content_of_the_same_size_is_refused_and_named(root: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    archive.files[pin.path] = b"CONTENT"
    with pytest.raises(ArtifactError, match="other content than pinned"):
        fresh(root, archive).path(pin)
    assert not (root / "blobs" / pin.sha256).exists()


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b""])
def test_something_of_another_size_is_refused(root: Path, archive: Archive, body: bytes) -> None:
    pin = archive.add("file", b"content")
    archive.faults[pin.path] = [Fault(body=body)] * 9
    with pytest.raises(ArtifactError, match="instead of the pinned 7"):
        fresh(root, archive).path(pin)


def test_the_next_mirror_serves_where_one_is_down_and_is_preferred_from_then_on(root: Path, archive: Archive) -> None:
    down = Archive()
    with down:
        pass
    pins = [archive.add(f"file{n}", bytes([n])) for n in range(3)]
    used = store(root, down.url, archive.url)
    assert used.path(pins[0]).read_bytes() == b"\0"
    used.fetch(pins)


def test_every_mirror_down_is_an_error_that_names_them(root: Path, archive: Archive) -> None:
    archive.stop()
    with pytest.raises(ArtifactError, match="Connection refused") as caught:
        fresh(root, archive).path(pin_of("file", b"content"))
    assert archive.url in str(caught.value) and "--mirror" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("layout", ["archive", "flat", "url"])
def test_a_local_folder_is_a_mirror(root: Path, tmp_path: Path, layout: str) -> None:
    pin = pin_of("file", b"content")
    path = tmp_path / "mirror" / (pin.filename if layout == "flat" else pin.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    base = (tmp_path / "mirror").as_uri() if layout == "url" else str(tmp_path / "mirror")
    blob = store(root, base).path(pin)
    assert blob.read_bytes() == b"content"
    assert not blob.is_symlink()


def test_a_pins_own_sources_come_first(root: Path, tmp_path: Path, archive: Archive) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file_1.0_all.deb").write_bytes(b"content")
    pin = archive.add("file", b"content", sources=(str(tmp_path / "own"),))
    assert fresh(root, archive).path(pin).read_bytes() == b"content"
    direct = pin_of("direct", b"other", sources=(f"{archive.url}/elsewhere.bin",))
    archive.files["elsewhere.bin"] = b"other"
    assert fresh(root, archive).path(direct).read_bytes() == b"other"
    assert [request.path for request in archive.requests] == ["elsewhere.bin"]


def test_a_wrong_file_in_a_local_folder_is_passed_over(root: Path, tmp_path: Path, archive: Archive) -> None:
    pin = archive.add("file", b"content")
    (tmp_path / pin.filename).write_bytes(b"CONTENT")
    assert store(root, str(tmp_path), archive.url).path(pin).read_bytes() == b"content"


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel lets this process write no file larger than ``size``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_said_and_leaves_nothing(root: Path, archive: Archive) -> None:
    pin = archive.add("big", BIG)
    with file_size_limit(300_000), pytest.raises(ArtifactError, match="no room") as caught:
        fresh(root, archive).path(pin)
    assert "medcheck clean" in str(caught.value)
    assert not list((root / "partial").iterdir()) and not list((root / "blobs").iterdir())
    assert fresh(root, archive).path(pin).read_bytes() == BIG


def test_too_little_room_is_noticed_before_the_download(
    root: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = archive.add("big", BIG)
    usage = shutil.disk_usage(root.parent)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ArtifactError, match="no room"):
        fresh(root, archive).path(pin)
    assert not archive.requests


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that this process cannot write, for which the superuser gives up its privileges."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield folder
        os.seteuid(0)
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_cache_that_cannot_be_made_is_said(unprivileged: Path, archive: Archive) -> None:
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        fresh(unprivileged / "cache", archive).path(archive.add("file", b"content"))
    assert "MEDCHECK_CACHE" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_said_once_for_all_files(unprivileged: Path, archive: Archive) -> None:
    pins = [archive.add(f"file{number}", b"content %d" % number) for number in range(30)]
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        fresh(unprivileged / "cache", archive).fetch(pins)
    assert str(caught.value).count("cannot be written") == 1
    assert not archive.requests


def test_a_read_only_cache_that_is_complete_serves(unprivileged: Path, archive: Archive) -> None:
    user, pin = os.geteuid(), archive.add("file", b"content")
    os.seteuid(os.getuid())
    unprivileged.chmod(0o755)
    fresh(unprivileged, archive).path(pin)
    for path in (unprivileged, *unprivileged.iterdir()):
        path.chmod(0o555)
    os.seteuid(user)
    try:
        assert store(unprivileged, offline=True).path(pin).read_bytes() == b"content"
        with pytest.raises(ArtifactError, match="cannot be written"):
            fresh(unprivileged, archive).path(archive.add("more", b"more"))
    finally:
        os.seteuid(os.getuid())
        for path in (unprivileged, *unprivileged.iterdir()):
            path.chmod(0o755)
        os.seteuid(user)


def _fetch_elsewhere(root: Path, url: str, pin: Pin) -> None:
    assert store(root, url).path(pin).stat().st_size == pin.size


def test_two_runs_at_once_download_once(root: Path, archive: Archive) -> None:
    pin, held = archive.add("big", BIG), threading.Event()
    archive.faults[pin.path] = [Fault(hold=held)]
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_fetch_elsewhere, args=(root, archive.url, pin)) for _ in range(2)]
    for run in runs:
        run.start()
    watched = Watched()
    waiting = threading.Thread(target=lambda: store(root, archive.url, progress=watched).path(pin))
    while not archive.asked(pin):
        runs[0].join(0.05)
    waiting.start()
    while not watched.said:
        waiting.join(0.01)
    assert "another run" in watched.said[0]
    held.set()
    waiting.join()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert len(archive.asked(pin)) == 1


def test_a_source_of_its_own_needs_no_mirror(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Mirrors:
        raise ArtifactError("no Debian mirror is known")

    monkeypatch.setattr(store_module.Mirrors, "discover", none)
    (tmp_path / "file_1.0_all.deb").write_bytes(b"content")
    assert Store(root).path(pin_of("file", b"content", sources=(str(tmp_path),)))
    with pytest.raises(ArtifactError, match="no Debian mirror"):
        Store(root).path(pin_of("other", b"other"))

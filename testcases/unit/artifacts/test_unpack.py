# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages unpacked without root: what must be kept, and what must be refused."""

from __future__ import annotations

import lzma
import shutil
import tarfile
from pathlib import Path

import pytest

from framework.artifacts import unpack
from framework.artifacts.unpack import unpack_deb, unpack_source
from framework.common.errors import ArtifactError, BuildError, InfrastructureError
from testcases.unit.artifacts.archive import deb, special, tar

Entries = dict[str, "bytes | tarfile.TarInfo"]


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "root"


def package(tmp_path: Path, entries: Entries, compression: str = "xz") -> Path:
    path = tmp_path / "x.deb"
    path.write_bytes(deb(entries, compression))
    return path


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_files_links_modes_and_times(tmp_path: Path, dest: Path, compression: str) -> None:
    entries: Entries = {
        "./": special(tarfile.DIRTYPE),
        "./usr/": special(tarfile.DIRTYPE),
        "./usr/bin/tool": b"#!",
        "./usr/bin/alias": special(tarfile.SYMTYPE, "tool"),
        "./usr/bin/same": special(tarfile.LNKTYPE, "./usr/bin/tool"),
        "./etc/absolute": special(tarfile.SYMTYPE, "/usr/bin/tool"),
    }
    unpack_deb(package(tmp_path, entries, compression), dest)
    tool = dest / "usr/bin/tool"
    assert tool.read_bytes() == b"#!"
    assert (tool.stat().st_mode & 0o777, int(tool.stat().st_mtime)) == (0o755, 1_700_000_000)
    assert (dest / "usr/bin/alias").readlink() == Path("tool")
    assert (dest / "usr/bin/same").samefile(tool)
    assert (dest / "etc/absolute").readlink() == Path("/usr/bin/tool")


def test_only_what_is_selected_even_behind_a_hard_link(tmp_path: Path, dest: Path) -> None:
    entries: Entries = {
        "./usr/bin/first": b"data",
        "./usr/bin/second": special(tarfile.LNKTYPE, "./usr/bin/first"),
    }
    unpack_deb(package(tmp_path, entries), dest, lambda name: name == "usr/bin/second")
    assert [path.name for path in (dest / "usr/bin").iterdir()] == ["second"]
    assert (dest / "usr/bin/second").read_bytes() == b"data"


def test_packages_lie_over_one_another_through_links_inside_the_tree(tmp_path: Path, dest: Path) -> None:
    unpack_deb(package(tmp_path, {"./lib": special(tarfile.SYMTYPE, "usr/lib"), "./usr/lib/a": b"a"}), dest)
    unpack_deb(package(tmp_path, {"./lib/": special(tarfile.DIRTYPE), "./lib/b": b"b"}), dest)
    assert (dest / "lib").is_symlink()
    assert (dest / "usr/lib/b").read_bytes() == b"b"


def test_set_user_id_is_dropped(tmp_path: Path, dest: Path) -> None:
    info = special(tarfile.REGTYPE)
    info.mode = 0o4755
    unpack_deb(package(tmp_path, {"./su": info}), dest)
    assert (dest / "su").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "entries",
    [
        {"../evil": b"x"},
        {"./a/../../evil": b"x"},
        {"/evil": b"x"},
        {"./out": special(tarfile.SYMTYPE, "../../evil")},
        {"./out": special(tarfile.SYMTYPE, "/a/../../evil")},
        {"./out": special(tarfile.SYMTYPE, "/tmp"), "./out/evil": b"x"},
        {"./out": special(tarfile.LNKTYPE, "../evil")},
        {"./out": special(tarfile.LNKTYPE, "/etc/passwd")},
        {"./out": special(tarfile.LNKTYPE, "./nothing")},
        {"./null": special(tarfile.CHRTYPE)},
        {"./pipe": special(tarfile.FIFOTYPE)},
    ],
)
def test_what_would_leave_the_tree_is_refused(tmp_path: Path, dest: Path, entries: Entries) -> None:
    with pytest.raises(ArtifactError, match="refused") as caught:
        unpack_deb(package(tmp_path, entries), dest)
    assert caught.value.where == "x.deb"
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/evil").exists()


def test_nothing_is_written_through_a_link_that_is_in_the_way(tmp_path: Path, dest: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    dest.mkdir()
    (dest / "file").symlink_to(outside)
    unpack_deb(package(tmp_path, {"./file": b"theirs"}), dest)
    assert outside.read_text() == "mine"
    assert (dest / "file").read_bytes() == b"theirs"


def test_damaged_packages(tmp_path: Path, dest: Path) -> None:
    whole = deb({"./file": bytes(range(256)) * 400})
    path = tmp_path / "x.deb"
    for content in (b"", b"<html>", whole[:100], whole[:-40], whole[:300] + b"\0" * 40 + whole[340:]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            unpack_deb(path, dest)


@pytest.mark.parametrize("name", [".config", "..config", ".config/.hidden", "config"])
def test_a_leading_dot_is_part_of_a_name(tmp_path: Path, dest: Path, name: str) -> None:
    entries: Entries = {f"./{name}": b"dotted", "./config" if name == ".config" else "./other": b"plain"}
    unpack_deb(package(tmp_path, entries), dest)
    assert (dest / name).read_bytes() == b"dotted"


def test_a_source_keeps_its_dotted_files(tmp_path: Path, dest: Path) -> None:
    orig: Entries = {"thing-1.0/.gitignore": b"dotted", "thing-1.0/gitignore": b"plain"}
    unpack_source(*source(tmp_path, {"debian/control": b""}, orig), dest)
    assert (dest / ".gitignore").read_bytes() == b"dotted"
    assert (dest / "gitignore").read_bytes() == b"plain"


LOOP = {"./d": special(tarfile.SYMTYPE, ".")}


@pytest.mark.parametrize(
    "entries",
    [
        {**LOOP, "./d/d/d/link": special(tarfile.SYMTYPE, "../../../evil")},
        {**LOOP, "./link": special(tarfile.SYMTYPE, "d/../evil")},
        {"./link": special(tarfile.SYMTYPE, "d/../evil"), **LOOP},
        {"./a/b/c": b"", "./d": special(tarfile.SYMTYPE, "a/b"), "./link": special(tarfile.SYMTYPE, "d/../../../x")},
    ],
)  # fmt: skip
def test_a_link_that_leaves_the_tree_by_way_of_another_is_refused(tmp_path: Path, dest: Path, entries: Entries) -> None:
    with pytest.raises(ArtifactError, match="leaves the tree"):
        unpack_deb(package(tmp_path, entries), dest)
    assert not (dest / "link").is_symlink()


def test_a_link_that_another_package_makes_leave_the_tree_is_refused(tmp_path: Path, dest: Path) -> None:
    unpack_deb(package(tmp_path, {"./link": special(tarfile.SYMTYPE, "d/../evil")}), dest)
    with pytest.raises(ArtifactError, match="leaves the tree"):
        unpack_deb(package(tmp_path, LOOP), dest)


@pytest.mark.parametrize(
    "entries",
    [
        {"./a": b"file", "./a/b": b"in it"},
        {"./a/b": b"in it", "./a": b"file"},
        {"./a/b": b"in it", "./a": special(tarfile.SYMTYPE, "c")},
        {"./a": b"file", "./a/b/": special(tarfile.DIRTYPE)},
        {"./a/b": b"in it", "./c": b"", "./a": special(tarfile.LNKTYPE, "./c")},
        {"./" + "x" * 300: b"too long"},
        {"./a": special(tarfile.SYMTYPE, "b"), "./b": special(tarfile.SYMTYPE, "a"), "./a/c": b""},
    ],
)
def test_a_file_and_a_folder_of_one_name_are_an_error_of_the_archive(
    tmp_path: Path, dest: Path, entries: Entries
) -> None:
    with pytest.raises(ArtifactError) as caught:
        unpack_deb(package(tmp_path, entries), dest)
    assert caught.value.where == "x.deb"


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_what_a_small_package_unpacks_to_is_bounded(
    tmp_path: Path, dest: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_MOST", 1 << 20)
    path = package(tmp_path, {"./zeros": bytes(2 << 20)}, compression)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ArtifactError, match="more than"):
        unpack_deb(path, dest)


def test_a_header_of_any_size_is_not_read_into_memory(tmp_path: Path, dest: Path) -> None:
    info = tarfile.TarInfo("./PaxHeaders")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    path = tmp_path / "orig.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(ArtifactError, match="a header of"):
        unpack_source(path, path, dest)


PATCH = """\
--- a/file
+++ b/file
@@ -1 +1 @@
-{old}
+{new}
"""


def source(tmp_path: Path, debian: Entries, orig: Entries | None = None) -> tuple[Path, Path]:
    paths = tmp_path / "orig", tmp_path / "debian"
    paths[0].write_bytes(lzma.compress(tar(orig or {"thing-1.0/file": b"one\n", "thing-1.0/debian/old": b""})))
    paths[1].write_bytes(lzma.compress(tar(debian)))
    return paths


def test_a_source_package_gets_its_patches_in_order(tmp_path: Path, dest: Path) -> None:
    debian: Entries = {
        "debian/control": b"c",
        "debian/patches/series": b"# first this\n2.patch -p1 # why\n\n1.patch\n",
        "debian/patches/1.patch": PATCH.format(old="two", new="three").encode(),
        "debian/patches/2.patch": PATCH.format(old="one", new="two").encode(),
    }
    unpack_source(*source(tmp_path, debian), dest)
    assert (dest / "file").read_text() == "three\n"
    assert (dest / "debian/control").exists()
    assert not (dest / "debian/old").exists(), "upstream's debian folder gives way"


def test_a_patch_that_does_not_apply_is_named(tmp_path: Path, dest: Path) -> None:
    debian: Entries = {
        "debian/patches/series": b"bad.patch\n",
        "debian/patches/bad.patch": PATCH.format(old="other", new="two").encode(),
    }
    with pytest.raises(BuildError, match="does not apply") as caught:
        unpack_source(*source(tmp_path, debian), dest)
    assert caught.value.where == "debian/patches/bad.patch"


def test_a_host_without_patch_is_told_to_install_it(
    tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InfrastructureError, match="install"):
        unpack_source(*source(tmp_path, {"debian/patches/series": b"x\n"}), dest)


def test_a_source_with_two_top_folders_or_a_damaged_one_is_refused(tmp_path: Path, dest: Path) -> None:
    orig, debian = source(tmp_path, {"debian/control": b""}, {"a/file": b"", "b/file": b""})
    with pytest.raises(ArtifactError, match="one folder"):
        unpack_source(orig, debian, dest)
    orig.write_bytes(orig.read_bytes()[: orig.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        unpack_source(orig, debian, dest)

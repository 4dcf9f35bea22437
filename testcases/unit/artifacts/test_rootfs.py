# SPDX-License-Identifier: GPL-2.0-or-later
"""Root file systems out of foreign folders: nothing from outside of a folder gets into a guest, whatever names it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from framework.artifacts import cpio
from framework.artifacts.guest_path import climbs_out, resolve
from framework.artifacts.rootfs import Recipe, RootFs
from framework.common.errors import ArtifactError, ConfigError, InfrastructureError, UsageError
from framework.common.paths import IMAGES
from testcases.unit.artifacts.elf_files import X86, elf, module

LIBRARIES = "usr/lib/aarch64-linux-gnu"
SECRET = b"\x7fELF secret of this machine"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder as a user brings it, with something beside it that is not meant for the guest."""
    folder = tmp_path / "root"
    (folder / "usr/bin").mkdir(parents=True)
    (folder / LIBRARIES).mkdir(parents=True)
    (tmp_path / "secret").write_bytes(SECRET)
    return folder


def made(root: Path, path: str = "usr/bin/xtest") -> RootFs:
    rootfs = RootFs([root], given={root: "--xtest-root"})
    rootfs.add_file(path)
    return rootfs


def nothing_of(secret: bytes, rootfs: RootFs) -> bool:
    return all(secret not in entry.data for entry in rootfs.entries.values())


def test_a_program_brings_its_libraries_and_theirs(root: Path) -> None:
    (root / "usr/bin/xtest").write_bytes(elf(needed=["liba.so"], interpreter="/lib/ld-linux.so.1"))
    (root / f"{LIBRARIES}/liba.so").symlink_to("liba.so.1")
    (root / f"{LIBRARIES}/liba.so.1").write_bytes(elf(needed=["libb.so", "liba.so"]))
    (root / "usr/lib/libb.so").write_bytes(elf())
    (root / "usr/lib/ld-linux.so.1").write_bytes(elf())
    found = set(made(root).entries) - {"lib", "bin", "sbin"}
    assert found == {"usr/bin/xtest", f"{LIBRARIES}/liba.so", f"{LIBRARIES}/libb.so", "usr/lib/ld-linux.so.1"}


def test_the_loader_is_there_once_though_libraries_need_it_by_name(root: Path) -> None:
    loader = "/lib/ld-linux.so.1"
    (root / "usr/bin/xtest").write_bytes(elf(needed=["libc.so.6", "ld-linux.so.1"], interpreter=loader))
    (root / f"{LIBRARIES}/libc.so.6").write_bytes(elf(needed=["ld-linux.so.1"]))
    for folder in ("usr/lib", LIBRARIES):
        (root / folder / "ld-linux.so.1").write_bytes(elf())
    found = set(made(root).entries) - {"lib", "bin", "sbin"}
    assert found == {"usr/bin/xtest", f"{LIBRARIES}/libc.so.6", "usr/lib/ld-linux.so.1"}


@pytest.mark.parametrize(
    "name",
    ["../../../../secret", "../../../secret", "a/../../../../../secret", "..", ".", "", "a/b", "./liba.so", "a//b"],
)
def test_a_library_name_that_is_a_path_is_refused(root: Path, name: str) -> None:
    (root / "usr/bin/xtest").write_bytes(elf(needed=[name]))
    with pytest.raises(UsageError, match="no name of one") as caught:
        made(root)
    assert "--xtest-root" in str(caught.value) and "usr/bin/xtest" in str(caught.value)


@pytest.mark.parametrize("name", ["/../../secret", "/lib/../../../secret", "lib/ld.so", "//secret", "/"])
def test_an_interpreter_that_leaves_the_tree_is_refused(root: Path, name: str) -> None:
    (root / "usr/bin/xtest").write_bytes(elf(interpreter=name))
    with pytest.raises(UsageError, match="no name of one"):
        made(root)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("link", ["usr/bin/xtest", "usr/bin", "usr"])
def test_a_link_out_of_the_folder_leads_nowhere(root: Path, tmp_path: Path, absolute: bool, link: str) -> None:
    outside = tmp_path / "outside"
    (outside / "bin").mkdir(parents=True)
    for name in ("bin/xtest", "xtest"):
        (outside / name).write_bytes(SECRET)
    target = {"usr/bin/xtest": outside / "xtest", "usr/bin": outside / "bin", "usr": outside}[link]
    if (root / link).exists():
        (root / link).rename(tmp_path / "away")
    (root / link).symlink_to(target if absolute else os.path.relpath(target, (root / link).parent))
    with pytest.raises(InfrastructureError, match="no unpacked package holds"):
        made(root)


def test_a_folder_of_files_that_is_a_link_brings_none_of_them(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.ta").write_bytes(SECRET)
    (root / "usr/lib/optee_armtz").symlink_to(outside)
    rootfs = RootFs([root])
    with pytest.raises(InfrastructureError):
        rootfs.add_glob("/usr/lib/optee_armtz/*.ta")
    assert nothing_of(SECRET, rootfs)


def test_a_file_of_a_folder_that_is_a_link_out_is_left_out(root: Path, tmp_path: Path) -> None:
    (root / "usr/lib/optee_armtz").mkdir()
    (root / "usr/lib/optee_armtz/good.ta").write_bytes(b"good")
    (root / "usr/lib/optee_armtz/bad.ta").symlink_to(tmp_path / "secret")
    rootfs = RootFs([root])
    rootfs.add_glob("/usr/lib/optee_armtz/*.ta")
    assert "usr/lib/optee_armtz/good.ta" in rootfs.entries and nothing_of(SECRET, rootfs)


def test_links_inside_the_folder_are_followed_as_in_the_guest(root: Path) -> None:
    (root / "opt").mkdir()
    (root / "opt/xtest").write_bytes(b"program")
    (root / "usr/bin/xtest").symlink_to("/usr/opt/xtest")
    (root / "usr/opt").symlink_to("../../../opt")
    assert made(root).entries["usr/bin/xtest"].data == b"program"


def test_links_in_a_circle(root: Path) -> None:
    (root / "usr/bin/xtest").symlink_to("other")
    (root / "usr/bin/other").symlink_to("xtest")
    with pytest.raises(InfrastructureError, match="no unpacked package holds"):
        made(root)


def test_a_module_that_is_a_link_out_is_not_read(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.ko"
    outside.write_bytes(module("tee"))
    (root / "tee.ko").symlink_to(outside)
    with pytest.raises(InfrastructureError, match="no module tee"):
        RootFs([root]).add_modules(["tee"])


@pytest.mark.parametrize(
    ("content", "what"),
    [(elf(machine=X86), "for x86-64"), (elf(needed=["liba.so"])[:-20], "cut off"), (b"\x7fELF", "ends within")],
)
def test_what_no_guest_can_run_is_refused_with_its_name(root: Path, content: bytes, what: str) -> None:
    (root / "usr/bin/xtest").write_bytes(content)
    with pytest.raises(UsageError, match=what) as users:
        made(root)
    assert str(root / "usr/bin/xtest") in str(users.value)
    with pytest.raises(ArtifactError, match=what):
        RootFs([root]).add_file("usr/bin/xtest")


def test_a_library_that_nobody_has_is_the_users_to_bring(root: Path) -> None:
    (root / "usr/bin/xtest").write_bytes(elf(needed=["libmine.so.1"]))
    with pytest.raises(UsageError, match=r"xtest cannot be used: it needs .*libmine\.so\.1"):
        made(root)


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "a//b", "a/./b", "", "a/", "a\0b", "..", "TRAILER!!!"])
def test_an_archive_has_no_path_that_leaves_it(path: str) -> None:
    with pytest.raises(ArtifactError, match="no path of a file"):
        cpio.write({path: cpio.regular(b"")}, io.BytesIO())


def test_the_walk_stays_below_its_root(tmp_path: Path) -> None:
    (tmp_path / "d").symlink_to(".")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "host").symlink_to("/etc")
    inside = {"../../x": "x", "d/../x": "x", "d/d/d/../x": "x", "up/up/x": "x", "host/passwd": "etc/passwd", "/x": "x"}
    assert {path: str(resolve(tmp_path, path).relative_to(tmp_path)) for path in inside} == inside  # type: ignore[union-attr]
    assert [path for path in (*inside, "d/x", "x/../y") if climbs_out(tmp_path, path)] == [
        "../../x", "d/../x", "d/d/d/../x", "up/up/x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "- a", "name: x", "name: x\ngroups: y", "name: x\ngroups: [a]\nmodles: [b]", "name: [x]\ngroups: [a]",
             "name: x\ngroups: [a]\nlinks: [b]", "name: x\ngroups: [", "name: x\ngroups: [[a]]"],
)  # fmt: skip
def test_a_recipe_that_is_wrong_names_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert str(caught.value.where).startswith(f"{path}:")


def test_the_projects_recipes_are_read_whole() -> None:
    recipe = Recipe.load(IMAGES / "rootfs/dom0.yaml")
    assert recipe.groups == ("dom0", "kernel") and "xen-evtchn" in recipe.modules
    assert recipe.links["var/run"] == "/run"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees of the user's own: what of them is taken, that nothing is written, and what is said of those that are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from framework.artifacts import source_tree
from framework.artifacts.source_tree import TreeKind
from framework.artifacts.xen_source import read_tree
from framework.common.errors import InfrastructureError, UsageError
from testcases.unit.artifacts.source_state import state
from testcases.unit.artifacts.xen_tree import OPTEE, commit, git, make_tree

MEDIATOR = "xen/arch/arm/tee/optee.c"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return commit(make_tree(tmp_path / "xen-git"), tag="RELEASE-4.17.5")


def test_a_tree_is_read_as_it_is_with_what_is_not_committed(repository: Path) -> None:
    (repository / MEDIATOR).write_text(OPTEE.replace("22", "14"))
    (repository / "xen/arch/arm/new.c").write_text("new")
    (repository / "xen/arch/arm/built.o").write_text("ignored")
    (repository / "docs/index").unlink()
    source = read_tree(repository)
    assert source.files[MEDIATOR].data == OPTEE.replace("22", "14").encode()
    assert source.files["xen/arch/arm/new.c"].data == b"new"
    assert not {"xen/arch/arm/built.o", "docs/index"} & set(source.files)
    assert (source.release, source.version, source.interfaces) == ("4.17", "4.17.5", (0x15, 0x15))
    assert source.label == "RELEASE-4.17.5, changed"


def test_nothing_of_a_tree_is_written_and_it_need_not_be_writable(repository: Path) -> None:
    (repository / MEDIATOR).write_text("changed")
    # git would like to refresh its index now.
    os.utime(repository / "Config.mk")
    for path in [repository, *repository.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = state(repository)
    read_tree(repository)
    read_tree(repository, "RELEASE-4.17.5")
    assert state(repository) == before


def test_a_commit_is_read_without_checking_it_out(repository: Path) -> None:
    (repository / MEDIATOR).write_text("later")
    commit(repository)
    source = read_tree(repository, "RELEASE-4.17.5")
    assert source.files[MEDIATOR].data == OPTEE.encode()
    assert source.label == "RELEASE-4.17.5"
    for wrong in ("no-such", "--output=x"):
        with pytest.raises(UsageError, match=f"no commit {wrong}"):
            read_tree(repository, wrong)


def test_a_tree_without_git_counts_as_a_whole_but_for_products(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "xen")
    # As a source package does, which ignores files that it brings.
    (tree / ".gitignore").write_text("*.in\n")
    (tree / "tools/xl/rc.in").write_text("x")
    for name in (
        "xen/xen",
        "xen/xen-syms",
        "xen/.config",
        "xen/arch/arm/a.o",
        "xen/arch/arm/.a.o.cmd",
        "tools/l.so.1.0",
    ):
        (tree / name).write_text("product")
    source = read_tree(tree)
    assert {MEDIATOR, "tools/xl/rc.in", "xen/arch/arm/Makefile"} <= set(source.files)
    assert b"product" not in {file.data for file in source.files.values()}
    assert source.label == "no git"
    assert not (tree / ".git").exists()


def test_a_tree_that_another_repository_ignores_is_read(tmp_path: Path) -> None:
    outer = tmp_path / "product"
    outer.mkdir()
    (outer / ".gitignore").write_text("build\n")
    commit(outer)
    assert MEDIATOR in read_tree(make_tree(outer / "build")).files


def test_submodules_belong_to_the_tree(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "code.c").write_text("inside")
    commit(inner)
    tree = commit(make_tree(tmp_path / "xen"))
    git(tree, "submodule", "--quiet", "add", str(inner), "sub")
    commit(tree)
    assert read_tree(tree).files["sub/code.c"].data == b"inside"
    shutil.rmtree(tree / "sub")
    (tree / "sub").mkdir()
    assert "sub/code.c" not in read_tree(tree).files


@pytest.mark.parametrize(
    ("inside", "changes", "words"),
    [
        ("", {"xen__Makefile": None}, "no xen/Makefile"),
        ("", {"xen__Makefile": "all:\n"}, "no version in xen/Makefile"),
        ("xen", {}, "give its parent"),
        ("docs", {}, "is no Xen source tree"),
    ],
)
def test_a_folder_that_is_no_tree_is_refused(
    tmp_path: Path, inside: str, changes: dict[str, str | None], words: str
) -> None:
    make_tree(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        read_tree(tmp_path / inside)
    assert words in str(caught.value)


def test_a_pipe_in_a_tree_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tree / ".gitignore").unlink()
    os.mkfifo(tree / "pipe")
    with pytest.raises(UsageError, match="pipe is no source file"):
        read_tree(tree)


def test_a_tree_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path)
    read, said = source_tree._read, []
    edits = iter(["first"])

    def reading(kind: TreeKind, folder: Path):  # type: ignore[no-untyped-def]
        result = read(kind, folder)
        if (text := next(edits, None)) is not None:
            (folder / MEDIATOR).write_text(text)
        return result

    monkeypatch.setattr(source_tree, "_read", reading)
    assert read_tree(tree, say=said.append).files[MEDIATOR].data == b"first"
    assert len(said) == 1
    assert "optee.c changed while the tree was copied" in said[0]
    edits = iter(["1", "22", "333"])
    with pytest.raises(InfrastructureError, match="keeps changing"):
        read_tree(tree)


def test_a_copy_is_by_content_and_leaves_times_and_products_alone(tmp_path: Path) -> None:
    tree, copy = make_tree(tmp_path / "tree"), tmp_path / "copy"
    (tree / "link").symlink_to("Config.mk")
    copy.mkdir()
    read_tree(tree).copy_to(copy)
    assert (copy / "link").readlink() == Path("Config.mk")
    (copy / "xen/arch/arm/tee/optee.o").write_text("object")
    before = {path: path.lstat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    os.utime(tree / "Config.mk")
    (tree / MEDIATOR).write_text("edited")
    (tree / "docs/index").unlink()
    read_tree(tree).copy_to(copy)
    changed = {path for path, time in before.items() if path.exists() and path.lstat().st_mtime_ns != time}
    assert {path.name for path in changed} == {"optee.c", ".medcheck-copied"}
    assert not (copy / "docs/index").exists()
    assert (copy / "xen/arch/arm/tee/optee.o").read_text() == "object"
    # What a build did to a file of the source is undone.
    (copy / "Config.mk").write_text("broken by a build")
    read_tree(tree).copy_to(copy)
    assert (copy / "Config.mk").read_text() == "\n"


PATCH = """\
From: someone
---
 xen/arch/arm/tee/optee.c | 2 +-

--- a/xen/arch/arm/tee/optee.c
+++ b/xen/arch/arm/tee/optee.c
@@ -3,4 +3,4 @@
 {
     if ( a )
-        return -22;
+        return -14;
     return 0;
--- /dev/null
+++ b/xen/arch/arm/tee/more.c
@@ -0,0 +1 @@
+int more;
--
2.39
"""


def test_a_patch_is_applied_in_memory_only(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    patch = tmp_path / "my.patch"
    patch.write_text(PATCH)
    before = state(tree)
    source = read_tree(tree).patched([patch])
    assert b"return -14;" in source.files[MEDIATOR].data
    assert source.files["xen/arch/arm/tee/more.c"].data == b"int more;\n"
    assert source.digest() != read_tree(tree).digest()
    assert state(tree) == before


def test_a_patch_that_does_not_apply_shows_what_stands_there(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", xen__arch__arm__tee__optee_c=None)
    (tree / MEDIATOR).write_text(OPTEE.replace("-22", "-EINVAL"))
    patch = tmp_path / "my.patch"
    patch.write_text(PATCH)
    with pytest.raises(UsageError) as caught:
        read_tree(tree).patched([patch])
    text = str(caught.value)
    assert "hunk 1 of xen/arch/arm/tee/optee.c expects at line 5" in text
    assert "return -22;" in text
    assert "5:         return -EINVAL;" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no patch at all\n", "is no patch"),
        (PATCH.replace("tee/optee.c", "tee/other.c"), "the tree has no xen/arch/arm/tee/other.c"),
        ("--- a/../../x\n+++ b/../../x\n@@ -1 +1 @@\n-a\n+b\n", "outside of the tree"),
        (
            PATCH.replace("-        return -22;\n+        return -14;", "-        return -1;\n+        return -22;"),
            "in the tree",
        ),
    ],
)
def test_a_patch_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    patch = tmp_path / "my.patch"
    patch.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_tree(make_tree(tmp_path / "tree")).patched([patch])
    assert words in str(caught.value)


def test_a_patch_that_makes_a_link_to_a_file_of_this_machine_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of this machine")
    patch = tmp_path / "my.patch"
    patch.write_text(
        "diff --git a/xen/leak.c b/xen/leak.c\nnew file mode 120000\n--- /dev/null\n+++ b/xen/leak.c\n"
        f"@@ -0,0 +1 @@\n+{secret}\n\\ No newline at end of file\n"
    )
    with pytest.raises(UsageError, match=r"makes xen/leak\.c a symbolic link"):
        read_tree(make_tree(tmp_path / "tree")).patched([patch])

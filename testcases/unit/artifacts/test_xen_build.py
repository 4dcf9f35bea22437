# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds of a tree: only what has changed, with the user's configuration, and the compiler's own words on errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import xen_build
from framework.artifacts.cache import BuildCache
from framework.artifacts.make import CompileError, run_make
from framework.artifacts.xen_build import XenConfig, build_hypervisor, choose_config
from framework.artifacts.xen_source import XenSource, read_tree
from framework.common.errors import BuildError, UsageError
from framework.common.progress import Silent
from testcases.unit.artifacts.source_state import state
from testcases.unit.artifacts.xen_tree import make_tree

# As Xen's: a target that configures, and one that compiles what is newer than its object.
FAKE_MAKE = """#!/bin/sh
for word; do target=$word; done
echo "$*" >>"$MADE"
case $target in
medcheck_defconfig) cp arch/arm/configs/medcheck_defconfig .config ;;
xen)
    grep -n bad arch/arm/tee/optee.c >/dev/null &&
        { echo "arch/arm/tee/optee.c:4:9: error: 'bad' undeclared"; echo "make: *** [x] Error 1"; exit 2; }
    [ -e stale ] && { echo "make: *** No rule to make target 'gone.h'"; exit 2; }
    for source in arch/arm/tee/*.c; do
        object=${source%c}o
        [ -e "$object" ] && [ ! "$source" -nt "$object" ] && continue
        touch "$object"; echo "compiled $source" >>"$MADE"
    done
    echo image >xen; echo symbols >xen-syms ;;
esac
exit 0
"""
CONFIG = XenConfig("CONFIG_TEE=y\nCONFIG_OPTEE=y\n", "a test's")
MEDIATOR = "xen/arch/arm/tee/optee.c"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "made"
    for name, text in (
        ("make", FAKE_MAKE.replace('"$MADE"', str(log))),
        ("aarch64-linux-gnu-gcc", "#!/bin/sh\necho 1\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / "other-clang").write_text("#!/bin/sh\necho clang 19\n")
    (tools / "other-clang").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return log


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", xen__arch__arm__tee__other_c=None)


def build(tree: Path, tmp_path: Path, config: XenConfig = CONFIG, compiler: str | None = None) -> Path:
    source: XenSource = read_tree(tree)
    return build_hypervisor(source, config, compiler, BuildCache(tmp_path / "cache"), Silent())


def compiled(made: Path) -> list[str]:
    found = [line.removeprefix("compiled ") for line in made.read_text().splitlines() if line.startswith("compiled")]
    made.write_text("")
    return found


def test_an_edit_compiles_what_it_changed(tree: Path, tmp_path: Path, made: Path) -> None:
    (tree / "xen/arch/arm/tee/tee.c").write_text("int tee;\n")
    first = build(tree, tmp_path)
    assert {path.name for path in first.iterdir()} >= {"xen", "xen-syms", "config"}
    assert len(compiled(made)) == 2
    (tree / MEDIATOR).write_text("edited\n")
    second = build(tree, tmp_path)
    assert second != first
    assert compiled(made) == ["arch/arm/tee/optee.c"]
    # Nothing new, and what is not Xen's own: nothing to do at all.
    (tree / "tools/xl/Makefile").write_text("changed:\n")
    assert build(tree, tmp_path) == second
    assert made.read_text() == ""


def test_another_tree_of_the_release_compiles_what_differs(tree: Path, tmp_path: Path, made: Path) -> None:
    (tree / "xen/arch/arm/tee/tee.c").write_text("int tee;\n")
    build(tree, tmp_path)
    other = Path(shutil.copytree(tree, tmp_path / "worktree"))
    (other / MEDIATOR).write_text("edited\n")
    made.write_text("")
    build(other, tmp_path)
    assert compiled(made) == ["arch/arm/tee/optee.c"]


def test_an_edit_while_it_is_built_counts_for_the_next_build(
    tree: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = iter(["edited meanwhile\n"])

    def making(title: str, folder: Path, *given: Any, **more: Any) -> None:
        if (text := next(editing, None)) is not None:
            (tree / MEDIATOR).write_text(text)
        run_make(title, folder, *given, **more)

    monkeypatch.setattr(xen_build, "run_make", making)
    source = read_tree(tree)
    cache = BuildCache(tmp_path / "cache")
    first = build_hypervisor(source, CONFIG, None, cache, Silent())
    workspace = next((tmp_path / "cache/builds").glob("xen-tree-*"))
    assert (workspace / "tree" / MEDIATOR).read_bytes() == source.files[MEDIATOR].data
    # What was read is what was built and is found again; the edit is another content.
    assert build_hypervisor(source, CONFIG, None, cache, Silent()) == first
    made.write_text("")
    assert build(tree, tmp_path) != first
    assert compiled(made) == ["arch/arm/tee/optee.c"]


def test_nothing_is_written_into_a_tree_that_is_built(tree: Path, tmp_path: Path, made: Path) -> None:
    before = state(tree)
    build(tree, tmp_path)
    assert "compiled" in made.read_text()
    assert state(tree) == before


def test_it_is_configured_only_when_the_configuration_changes(tree: Path, tmp_path: Path, made: Path) -> None:
    build(tree, tmp_path)
    assert "medcheck_defconfig" in made.read_text()
    made.write_text("")
    (tree / MEDIATOR).write_text("edited\n")
    build(tree, tmp_path)
    assert "medcheck_defconfig" not in made.read_text()
    (tree / "xen/arch/arm/Kconfig").write_text("config NEW\n")
    build(tree, tmp_path)
    assert "medcheck_defconfig" in made.read_text()


@pytest.mark.usefixtures("made")
def test_the_compilers_errors_are_shown_with_their_place_in_the_tree(tree: Path, tmp_path: Path) -> None:
    (tree / MEDIATOR).write_text("bad\n")
    with pytest.raises(CompileError) as caught:
        build(tree, tmp_path)
    assert "xen/arch/arm/tee/optee.c:4:9: error: 'bad' undeclared" in str(caught.value)
    assert "Error 1" not in str(caught.value)
    assert caught.value.exit_code == 3
    (tree / MEDIATOR).write_text("good\n")
    assert (build(tree, tmp_path) / "xen").exists()


@pytest.mark.usefixtures("made")
def test_a_build_that_cannot_go_on_begins_anew(tree: Path, tmp_path: Path) -> None:
    build(tree, tmp_path)
    workspace = next((tmp_path / "cache/builds").glob("xen-tree-*"))
    (workspace / "tree/xen/stale").touch()
    (tree / MEDIATOR).write_text("edited\n")
    build(tree, tmp_path)
    assert not (workspace / "tree/xen/stale").exists()
    # As after a kill: it is not known what is whole.
    (workspace / "unfinished").touch()
    (workspace / "tree/xen/half").touch()
    (tree / MEDIATOR).write_text("edited again\n")
    build(tree, tmp_path)
    assert not (workspace / "tree/xen/half").exists()


def test_what_fails_from_the_beginning_is_an_error(tree: Path, tmp_path: Path, made: Path) -> None:
    (tree / "xen/stale").touch()
    with pytest.raises(BuildError, match="No rule to make target"):
        build(tree, tmp_path)
    assert made.read_text().count("medcheck_defconfig") == 1


@pytest.mark.usefixtures("made")
def test_a_configuration_without_mediator_is_refused(tree: Path, tmp_path: Path) -> None:
    config = XenConfig("CONFIG_EXPERT=y\n# CONFIG_UNSUPPORTED is not set\nCONFIG_TEE=y\n", "my.config")
    with pytest.raises(UsageError) as caught:
        build(tree, tmp_path, config)
    assert "my.config" in caught.value.what
    assert "CONFIG_UNSUPPORTED=y, CONFIG_OPTEE=y missing" in caught.value.what


def test_another_compiler_is_part_of_the_key_and_is_told_to_make(tree: Path, tmp_path: Path, made: Path) -> None:
    first = build(tree, tmp_path)
    made.write_text("")
    assert build(tree, tmp_path, compiler="other-clang") != first
    assert "clang=y" in made.read_text()
    assert "CC=other-clang --target=aarch64-linux-gnu" in made.read_text()
    with pytest.raises(UsageError, match="--cc no-such-cc"):
        build(tree, tmp_path, compiler="no-such-cc")


def test_the_configuration_is_the_given_one_else_the_trees_else_ours(tree: Path, tmp_path: Path) -> None:
    own = tree / "xen/.config"
    ours = choose_config(None, tree, "release")
    assert "CONFIG_OPTEE=y" in ours.text
    assert "release" in ours.origin
    own.write_text("CONFIG_ARM_64=y\nCONFIG_TEE=y\n# CONFIG_OPTEE is not set\n")
    assert choose_config(None, tree, "release") == ours
    own.write_text("CONFIG_ARM_64=y\nCONFIG_TEE=y\nCONFIG_OPTEE=y\nCONFIG_MINE=y\n")
    assert "CONFIG_MINE=y" in choose_config(None, tree, "debug").text
    given = tmp_path / "given"
    given.write_text("CONFIG_GIVEN=y\n")
    assert choose_config(given, tree, "debug") == XenConfig("CONFIG_GIVEN=y\n", str(given))

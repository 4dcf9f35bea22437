# SPDX-License-Identifier: GPL-2.0-or-later
"""OP-TEE from a tree: what is read, what make is told, and what is refused before anything boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.artifacts import optee as optee_module
from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import Builder
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.lock import Lock
from framework.artifacts.make import CompileError
from framework.artifacts.optee import Optee, build_optee, frozen_optee, provide_optee, read_optee_tree
from framework.artifacts.overrides import Overrides
from framework.common.errors import UsageError
from framework.common.progress import Silent
from testcases.unit.artifacts.elf_files import optee
from testcases.unit.artifacts.source_state import state

CONFIG = "CFG_OPTEE_REVISION_MAJOR ?= 4\nCFG_OPTEE_REVISION_MINOR ?= 5\nCFG_NS_VIRTUALIZATION ?= n\n"
MAIN = "core/kernel/main.c"
FAKE_MAKE = """#!/bin/sh
echo "$*" >>{log}
grep -q bad core/kernel/main.c && {{ echo "core/kernel/main.c:1:1: error: 'bad' undeclared"; exit 2; }}
[ medcheck-out/main.o -nt core/kernel/main.c ] || echo compiled >>{log}
mkdir -p medcheck-out/core
touch medcheck-out/main.o
cp {built}/tee-*.bin medcheck-out/core
echo elf >medcheck-out/core/tee.elf
cp {built}/conf.mk medcheck-out
"""


def tree(folder: Path, config: str = CONFIG) -> Path:
    files = {"mk/config.mk": config, "core/core.mk": "", "core/arch/arm/plat-vexpress/conf.mk": "", MAIN: "int main;\n"}
    for name, text in {**files, "out/arm/core/tee.elf": "a product"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What the build of a tree leaves."""
    folder = optee(tmp_path / "built")
    (folder / "conf.mk").write_text("CFG_ARM64_core=y\nCFG_NS_VIRTUALIZATION=y\n")
    return folder


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


@pytest.fixture
def builder(tmp_path: Path, built: Path, told: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    tools, pinned = tmp_path / "tools", tmp_path / "pinned"
    (pinned / "keys").mkdir(parents=True)
    (pinned / "keys/default_ta.pem").write_text("a key")
    tools.mkdir()
    make = FAKE_MAKE.format(log=told, built=built)
    for name, text in (("make", make), ("aarch64-linux-gnu-gcc", "#!/bin/sh\necho 1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(optee_module, "pinned_tree", lambda *_: pinned)
    return Builder(None, Lock.load(), BuildCache(tmp_path / "cache"), Silent())  # type: ignore[arg-type]


def test_a_tree_is_built_with_the_boards_variables_and_the_key_of_the_pinned_tas(
    builder: Builder, tmp_path: Path, told: Path
) -> None:
    folder = tree(tmp_path / "os")
    before = state(folder)
    found = provide_optee(Overrides(optee_tree=folder), builder)
    assert (found.version, found.origin) == ("4.5, no git", "user")
    assert {path.name for path in found.folder.iterdir()} >= {"tee-pager_v2.bin", "tee.elf", "conf.mk"}
    words = told.read_text().split()
    assert {f"{name}={value}" for name, value in FirmwareConfig.load().optee.make.items()} <= set(words)
    assert {f"TA_PUBLIC_KEY={tmp_path / 'pinned/keys/default_ta.pem'}", "TEE_IMPL_VERSION=4.5"} <= set(words)
    assert any(sentence.startswith("xtest is of OP-TEE 4.10") for sentence in found.said)
    assert state(folder) == before


def test_only_what_an_edit_changed_is_compiled(builder: Builder, tmp_path: Path, told: Path) -> None:
    folder = tree(tmp_path / "os")
    first = build_optee(read_optee_tree(folder), builder)
    told.write_text("")
    assert build_optee(read_optee_tree(folder), builder) == first
    assert told.read_text() == ""
    (folder / "core/core.mk").write_text("# another\n")
    assert build_optee(read_optee_tree(folder), builder) != first
    assert "compiled" not in told.read_text()


def test_the_switch_of_virtualization_has_the_name_of_its_version(
    builder: Builder, built: Path, tmp_path: Path, told: Path
) -> None:
    (built / "conf.mk").write_text("CFG_VIRTUALIZATION=y\n")
    folder = tree(tmp_path / "os", CONFIG.replace("CFG_NS_VIRT", "CFG_VIRT"))
    provide_optee(Overrides(optee_tree=folder), builder)
    assert "CFG_VIRTUALIZATION=y" in told.read_text().split()
    assert "CFG_NS_VIRTUALIZATION=y" not in told.read_text().split()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIG.replace("CFG_NS_VIRT", "CFG_"), "OP-TEE 4.5, which has no virtualization"),
        ("CFG_NS_VIRTUALIZATION ?= n\n", "no version in mk/config.mk"),
    ],
)
def test_a_tree_that_cannot_work_is_refused(tmp_path: Path, config: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_optee_tree(tree(tmp_path, config))


def test_a_folder_that_is_no_tree_is_refused(tmp_path: Path) -> None:
    folder = tree(tmp_path / "os")
    with pytest.raises(UsageError, match="give its parent"):
        read_optee_tree(folder / "core")
    (folder / "core/core.mk").unlink()
    with pytest.raises(UsageError, match=r"is no OP-TEE OS source tree \(no core/core\.mk\)"):
        read_optee_tree(folder)


@pytest.mark.parametrize(
    ("address", "machine", "config", "words"),
    [
        (0x0E10_0000, 1, "CFG_NS_VIRTUALIZATION=y", "asks to be loaded at 0xe100000"),
        (0xF000_0000, 0, "CFG_NS_VIRTUALIZATION=y", "32-bit Arm"),
        (0xF000_0000, 1, "# CFG_NS_VIRTUALIZATION is not set", "built without virtualization"),
    ],
)
def test_what_a_tree_made_is_held_against_the_board(
    builder: Builder, built: Path, tmp_path: Path, address: int, machine: int, config: str, words: str
) -> None:
    optee(built, address, machine=machine)
    (built / "conf.mk").write_text(f"{config}\n")
    with pytest.raises(UsageError, match=words) as caught:
        provide_optee(Overrides(optee_tree=tree(tmp_path / "os")), builder)
    assert caught.value.what.startswith("--optee-tree: ")


def test_the_compilers_errors_are_the_users_lines(builder: Builder, tmp_path: Path) -> None:
    folder = tree(tmp_path / "os")
    (folder / MAIN).write_text("bad\n")
    with pytest.raises(CompileError, match=r"core/kernel/main\.c:1:1: error: 'bad' undeclared"):
        provide_optee(Overrides(optee_tree=folder), builder)


def test_one_optee_is_enough_and_stimuli_get_that_of_the_run(builder: Builder, tmp_path: Path) -> None:
    given = Overrides(optee_tree=tmp_path)
    with pytest.raises(UsageError, match="--optee and --optee-tree"):
        provide_optee(Overrides(optee=tmp_path, optee_tree=tmp_path), builder)
    fixed = frozen_optee(given, Optee(tmp_path / "built", "", "user"))
    assert (fixed.optee, fixed.optee_tree) == (tmp_path / "built", None)
    assert frozen_optee(Overrides(), Optee(tmp_path, "", "built")) == Overrides()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Board descriptions: every mistake is answered with file, line, key and what was expected."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from framework.board.spec import BOARDS, BoardSpec, all_boards, board_names, check_load_map
from framework.common.errors import ConfigError, UsageError

GOOD = (BOARDS / "default.yaml").read_text()


def load(folder: Path, text: str) -> BoardSpec:
    path = folder / "mine.yaml"
    path.write_text(text)
    return BoardSpec.load(path)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_every_shipped_board_is_valid_and_has_a_description() -> None:
    boards = all_boards()
    assert {board.name for board in boards} >= {"default", "three"}
    assert all(board.description for board in boards)
    assert board_names() == [board.name for board in boards]


def test_defaults_of_a_guest_are_filled_in() -> None:
    guest = BoardSpec.load("default").guests[0]
    assert (guest.kind, guest.vcpus, guest.tee) == ("linux", 1, True)


def test_size_of_dom0_reaches_xens_command_line() -> None:
    board = BoardSpec.load("default")
    assert f"dom0_mem={board.dom0.memory_mib}M dom0_max_vcpus={board.dom0.vcpus}" in board.xen_bootargs


def test_unknown_board_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no board called 'defualt'") as caught:
        BoardSpec.load("defualt")
    assert caught.value.hint == "did you mean 'default'?"


def test_board_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        BoardSpec.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested too deeply"),
        ("# " * (1 << 20), "longer than"),
        ("word " * 1000, "found 'word word"),
    ],
    ids=["deep", "long", "prose"],
)
def test_a_file_that_is_something_else_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert len(caught.value.what) < 200


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        (
            "smp: 2",
            "smp: two",
            "smp: two",
            "smp: expected a whole number from 1 to 8 virtual CPUs, found 'two'",
        ),
        ("smp: 2", "smp: 99", "smp: 99", "smp: expected a whole number from 1 to 8"),
        ("smp: 2", "smp: true", "smp: true", "smp: expected a whole number"),
        ("smp: 2", "smp:", "smp:", "smp: expected a whole number from 1 to 8 virtual CPUs, found nothing"),
        ("smp: 2", "smp: 2\nsmp: 3", "smp: 3", "smp: this key stands here twice"),
        ("cpu: cortex-a53", "cpu: [a, b]", "cpu: [a", "cpu: expected a CPU model of QEMU"),
        ("cpu: cortex-a53\n", "", "description", "the key 'cpu' is missing, expected a CPU model"),
        ("guest_slots: 3", "guest_slot: 3", "guest_slot: 3", "guest_slot: unknown key"),
        (
            "  xen: 0x50000000",
            "  xen: 0x50000001",
            "xen: 0x50000001",
            "load.xen: expected a whole number from 0x40",
        ),
        ("  xen: 0x50000000\n", "", "load:", "load: the key 'xen' is missing"),
        (
            "- name: vm2",
            "- name: VM2",
            "- name: VM2",
            "guests[1].name: expected a name of lower-case letters",
        ),
        ("- name: vm2", "- name: vm1", "memory_mib: 320 # x", "guests[1].name: two guests are called 'vm1'"),
        ("guest_slots: 3", "guest_slots: 1", "guest_slots: 1", "2 guests do not fit in 1 guest slots"),
        (
            "memory_mib: 3072",
            "memory_mib: 1024",
            "memory_mib: 1024",
            "memory_mib: dom0, the guests and Xen itself",
        ),
        (
            "xen_args: ",
            "xen_args: dom0_mem=1G ",
            "xen_args",
            "xen_args: dom0_mem follows from dom0's own keys",
        ),
        ("machine: virt", "machine: raspi3b", "machine: raspi", "machine: expected QEMU's machine line"),
    ],
)
def test_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, at: str, expected: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if "vm1'" in expected:
        line = text.splitlines().index("  - name: vm1", line_of(text, "- name: vm1")) + 1
    else:
        line = line_of(text, at)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.where == f"{tmp_path}/mine.yaml:{line}"
    assert expected in caught.value.what


def test_unknown_key_suggests_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("guest_slots", "guest_slot"))
    assert caught.value.hint == "did you mean 'guest_slots'?"


def test_text_that_is_not_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        load(tmp_path, "description: x\nmachine: [virt\ncpu: cortex-a53\n")
    assert caught.value.where == f"{tmp_path}/mine.yaml:3"


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a list\n", "just text\n"])
def test_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        load(tmp_path, text)


def test_files_that_overlap_in_ram_are_refused() -> None:
    board = BoardSpec.load("default")
    check_load_map(board, {"xen": 1 << 20, "dom0_kernel": 32 << 20, "dom0_ramdisk": 100 << 20})
    with pytest.raises(ConfigError, match=r"dom0_kernel at 0x54000000 is .* reaches beyond 0x58000000"):
        check_load_map(board, {"xen": 1 << 20, "dom0_kernel": (64 << 20) + 1, "dom0_ramdisk": 1})


@pytest.mark.parametrize(
    "number", ["9" * 5000, "0x" + "f" * 5000, "0b_", "0x_", "-0b_", "+0x__", "1:" * 2000 + "1", "0b", "0x", "1_" * 2000]
)
def test_a_number_that_is_none_or_too_long_is_named_with_its_line(tmp_path: Path, number: str) -> None:
    text = (BOARDS / "default.yaml").read_text()
    line = text.splitlines().index("smp: 2") + 1
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("smp: 2\n", f"smp: {number}\n"))
    with pytest.raises(ConfigError, match="smp: expected a whole number from 1 to 8") as caught:
        BoardSpec.load(path)
    assert caught.value.where == f"{path}:{line}"
    assert len(str(caught.value)) < 500


def test_a_pipe_is_no_board_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "board.yaml")
    with pytest.raises(ConfigError, match="no file"):
        BoardSpec.load(str(tmp_path / "board.yaml"))


@pytest.mark.parametrize(
    ("given", "added"),
    [("sync_console", "sync_console tee=optee"), ("tee=ffa", "tee=ffa"), ("teepee=1", "teepee=1 tee=optee")],
)
def test_an_argument_for_xen_that_the_board_gives_itself_stays(given: str, added: str) -> None:
    board = replace(BoardSpec.load("default"), xen_args=given)
    assert board.with_xen_args("tee=optee").xen_args == added
    assert board.with_xen_args("").xen_args == given


def test_a_key_of_lists_in_lists_is_refused_and_not_written_out(tmp_path: Path) -> None:
    # Ten times as much on each level: a billion words on the last.
    levels = ["&l0 [x]", *(f"&l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))]
    path = tmp_path / "board.yaml"
    path.write_text(f"# a board\n? [{', '.join(levels)}]\n: 1\n")
    with pytest.raises(ConfigError, match="expected a key, found a list of 10") as caught:
        BoardSpec.load(str(path))
    assert caught.value.where == f"{path}:2"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock file: what is read from it, and what is said about a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.artifacts.lock import Lock, names
from framework.common.errors import ConfigError, UsageError
from testcases.unit.artifacts.archive import pin_of

GOOD = f"""\
format: 1
groups:
  tools:
    busybox:
      path: pool/main/b/busybox/busybox_1.0_arm64.deb
      version: 1.10
      size: 12
      sha256: {"a" * 64}
      sources: [local, "http://archive.example/busybox.deb", "file:///srv/files"]
"""


def load(tmp_path: Path, text: str) -> Lock:
    path = tmp_path / "lock.yaml"
    path.write_text(text)
    return Lock.load(path)


def test_a_pin_has_every_fact_and_its_version_stays_text(tmp_path: Path) -> None:
    (pin,) = load(tmp_path, GOOD).group("tools")
    assert (pin.name, pin.version, pin.size, pin.sha256) == ("busybox", "1.10", 12, "a" * 64)
    assert pin.filename == "busybox_1.0_arm64.deb"


def test_a_folder_counts_from_the_lock_file_and_urls_stay(tmp_path: Path) -> None:
    (pin,) = load(tmp_path, GOOD).group("tools")
    assert pin.sources == (str(tmp_path / "local"), "http://archive.example/busybox.deb", "file:///srv/files")


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    pins = (
        pin_of("one", b"1", version="1:2~3"),
        pin_of("two", b"22", version="6.10", sources=("http://a.example/x",)),
    )
    lock = Lock({"g": pins, "empty": ()}, tmp_path / "lock.yaml")
    lock.save()
    assert Lock.load(lock.path) == lock


def test_the_committed_lock_file_is_complete() -> None:
    lock = Lock.load()
    expected = {"qemu", "tfa-source", "optee-source", "xen-source", "kernel", "xtest", "domu", "dom0"}
    assert expected <= set(lock.groups)
    assert all(lock.group(group) for group in expected)
    assert not any(pin.sources for pin in lock.pins.values())


def test_committed_xtest_and_optee_are_one_release() -> None:
    lock = Lock.load()
    release = lock.pins["optee-test-qemu"].version.split("-")[0]
    assert {pin.version.split("-")[0] for pin in lock.group("optee-source")} == {release}


def test_an_unknown_group_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tools"):
        load(tmp_path, GOOD).group("toys")


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("format: 1", "format: 2", 1, "format 2"),
        ("size: 12", "size: twelve", 7, "size"),
        ("size: 12", "size: 0", 7, "size"),
        ("a" * 64, "a" * 63, 8, "sha256"),
        ("pool/main", "/pool/main", 5, "path"),
        ("pool/main", "pool/../..", 5, "path"),
        ("pool/main", "http://archive.example/pool", 5, "path"),
        ("      size: 12\n", "", 5, "size is missing"),
        ("      size: 12\n", "      size: 12\n      colour: red\n", 8, "colour"),
        ("      size: 12\n", "      size: 12\n      size: 13\n", 8, "occurs twice"),
        ("version: 1.10", "version: [1]", 6, "version"),
        ("groups:", "groups: [", 4, "not valid YAML"),
    ],
)
def test_a_bad_lock_file_is_an_error_with_its_line(tmp_path: Path, old: str, new: str, line: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.where == f"{tmp_path / 'lock.yaml'}:{line}"
    assert "lock --update" in str(caught.value)


def test_one_name_in_two_groups_is_refused(tmp_path: Path) -> None:
    again = GOOD.split("groups:\n")[1].replace("tools", "more")
    with pytest.raises(ConfigError, match="two groups"):
        load(tmp_path, GOOD + again)


def test_an_empty_a_missing_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        load(tmp_path, "")
    with pytest.raises(ConfigError, match="No such file"):
        Lock.load(tmp_path / "none.yaml")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        Lock.load(tmp_path / "bin.yaml")


def test_only_packages_in_several_groups_carry_the_groups_name() -> None:
    assert names({"a": ["x", "libc6"], "b": ["libc6"]}) == {
        ("a", "x"): "x",
        ("a", "libc6"): "a/libc6",
        ("b", "libc6"): "b/libc6",
    }

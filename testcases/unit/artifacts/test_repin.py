# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinning anew against a small archive with real indexes, and what is said when it does not fit."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.artifacts import repin
from framework.artifacts.lock import Lock
from framework.artifacts.mirror import Mirrors
from framework.artifacts.repin import compare, compare_versions, read_requests, update, verified_text
from framework.common.errors import ArtifactError, ConfigError
from framework.common.progress import Silent
from testcases.unit.artifacts.archive import Archive, pin_of

REQUESTS = """\
groups:
  qemu:
    - suite: stable
      arch: amd64
      packages:
        - emulator: "1:2.*"
        - libc6
  guest:
    - suite: stable
      arch: arm64
      packages: [libc6, linux-image-6.*-cloud]
  source:
    - suite: stable
      sources: [firmware]
"""


def stanza(package: str, version: str, arch: str, content: str = "") -> str:
    sha256 = hashlib.sha256((content or package + version + arch).encode()).hexdigest()
    return (
        f"Package: {package}\nVersion: {version}\nDescription: a package\n that does things\n"
        f"Size: {len(package)}\n"
        f"Filename: pool/main/{package}_{version}_{arch}.deb\nSHA256: {sha256}\n\n"
    )


SOURCES = f"""\
Package: firmware
Version: 1.0-1
Directory: pool/main/f/firmware
Checksums-Sha256:
 {"1" * 64} 10 firmware_1.0-1.dsc
 {"2" * 64} 20 firmware_1.0.orig.tar.xz
 {"3" * 64} 30 firmware_1.0-1.debian.tar.xz
"""


class Suite:
    """The indexes of one suite, published anew at will."""

    def __init__(self, archive: Archive, by_hash: bool = True) -> None:
        self.archive = archive
        self.by_hash = by_hash
        self.indexes = {
            "main/binary-amd64/Packages.xz": stanza("emulator", "1:2.9", "amd64")
            + stanza("emulator", "1:2.10", "amd64")
            + stanza("emulator", "1:3.0", "amd64")
            + stanza("libc6", "2.41-1", "amd64"),
            "main/binary-arm64/Packages.xz": stanza("libc6", "2.41-1", "arm64")
            + stanza("linux-image-6.12.1-cloud", "6.12.1", "arm64")
            + stanza("linux-image-6.12.1-cloud-dbg", "6.12.1", "arm64"),
            "main/source/Sources.xz": SOURCES,
        }
        self.publish()

    def publish(self) -> None:
        release = "Suite: stable\n" + ("Acquire-By-Hash: yes\n" if self.by_hash else "") + "SHA256:\n"
        for name, text in self.indexes.items():
            packed = lzma.compress(text.encode())
            sha256 = hashlib.sha256(packed).hexdigest()
            release += f" {sha256} {len(packed)} {name}\n"
            path = f"dists/stable/{name}"
            self.archive.files[path] = packed
            if self.by_hash:
                self.archive.files[path] = b"already of the next publication"
                self.archive.files[f"{path.rsplit('/', 1)[0]}/by-hash/SHA256/{sha256}"] = packed
        self.archive.files["dists/stable/Release"] = release.encode()


@pytest.fixture
def suite() -> Iterator[Suite]:
    with Archive() as archive:
        yield Suite(archive)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    path = tmp_path / "packages.yaml"
    path.write_text(REQUESTS)
    return path


def again(packages: Path, suite: Suite) -> list[str]:
    return update(packages, packages.with_name("lock.yaml"), Mirrors((suite.archive.url,)), unsigned=True).lines()


def test_everything_is_pinned_by_the_newest_that_fits(packages: Path, suite: Suite) -> None:
    assert len(again(packages, suite)) == 6
    lock = Lock.load(packages.with_name("lock.yaml"))
    assert [pin.name for pin in lock.group("qemu")] == ["emulator", "qemu/libc6"]
    assert [pin.name for pin in lock.group("guest")] == ["guest/libc6", "linux-image-6.12.1-cloud"]
    assert [(pin.name, pin.size) for pin in lock.group("source")] == [
        ("firmware.orig", 20),
        ("firmware.debian", 30),
    ]
    assert lock.pins["emulator"].version == "1:2.10"
    assert lock.pins["firmware.orig"].path == "pool/main/f/firmware/firmware_1.0.orig.tar.xz"


def test_an_archive_without_by_hash_serves_too(packages: Path, suite: Suite) -> None:
    plain = Suite(suite.archive, by_hash=False)
    assert len(again(packages, plain)) == 6


def test_the_difference_is_told_and_an_unchanged_lock_is_left_alone(packages: Path, suite: Suite) -> None:
    again(packages, suite)
    lock = packages.with_name("lock.yaml")
    before = lock.stat().st_ino
    assert again(packages, suite) == []
    assert lock.stat().st_ino == before
    index = suite.indexes["main/binary-arm64/Packages.xz"]
    suite.indexes["main/binary-arm64/Packages.xz"] = index.replace("6.12.1", "6.12.2").replace(
        stanza("libc6", "2.41-1", "arm64"), stanza("libc6", "2.41-1", "arm64", content="rebuilt")
    )
    suite.indexes["main/source/Sources.xz"] = SOURCES.replace("1.0-1", "1.0-2")
    suite.publish()
    assert again(packages, suite) == [
        "+ linux-image-6.12.2-cloud 6.12.2 (0 kB)",
        "- linux-image-6.12.1-cloud 6.12.1 (0 kB)",
        "~ guest/libc6 2.41-1: same version, OTHER CONTENT (0 kB -> 0 kB)",
        "~ firmware.orig 1.0-1 -> 1.0-2 (0 kB -> 0 kB)",
        "~ firmware.debian 1.0-1 -> 1.0-2 (0 kB -> 0 kB)",
    ]


def test_sources_that_a_user_added_are_kept_while_they_can_be_right(packages: Path, suite: Suite) -> None:
    again(packages, suite)
    path = packages.with_name("lock.yaml")
    text = path.read_text()
    path.write_text(
        text.replace("    emulator:\n", "    emulator:\n      sources: [local, 'http://a.example/emulator.deb']\n")
    )
    again(packages, suite)
    kept = Lock.load(path, resolve_sources=False).pins["emulator"].sources
    assert kept == ("local", "http://a.example/emulator.deb")
    suite.indexes["main/binary-amd64/Packages.xz"] += stanza("emulator", "1:2.11", "amd64")
    suite.publish()
    again(packages, suite)
    assert Lock.load(path, resolve_sources=False).pins["emulator"].sources == ("local",)


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("- libc6\n", "- libd7\n", 7, "no package libd7"),
        ('"1:2.*"', '"1:9.*"', 6, "offers 1:2.9, 1:2.10, 1:3.0"),
        ("arch: amd64", "arch: vax", 6, "binary-vax"),
    ],
)
def test_what_the_archive_lacks_is_said_with_the_line_that_asks(
    packages: Path, suite: Suite, old: str, new: str, line: int, text: str
) -> None:
    packages.write_text(REQUESTS.replace(old, new))
    with pytest.raises(ArtifactError, match=text) as caught:
        again(packages, suite)
    assert caught.value.where == f"{packages}:{line}"
    assert not packages.with_name("lock.yaml").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("      arch: amd64\n", "", 3),
        ("sources: [firmware]", "sources: [firmware]\n      arch: arm64", 12),
        ("sources: [firmware]", "sources: firmware", 13),
        ("- libc6\n", "- libc6\n        - libc6\n", 8),
        ("suite: stable", "sweet: stable", 3),
    ],
)
def test_a_bad_packages_file_is_an_error_with_its_line(packages: Path, old: str, new: str, line: int) -> None:
    packages.write_text(REQUESTS.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_requests(packages)
    where = str(caught.value.where)
    assert where.startswith(f"{packages}:") and abs(int(where.rsplit(":", 1)[1]) - line) <= 1


def test_an_index_that_is_not_the_released_one_is_refused(packages: Path, suite: Suite) -> None:
    for path in [path for path in suite.archive.files if "by-hash" in path]:
        suite.archive.files[path] = bytes(len(suite.archive.files[path]))
    with pytest.raises(ArtifactError, match="other content than pinned"):
        again(packages, suite)


def test_a_suite_nobody_has_and_a_mirror_that_is_down(packages: Path, suite: Suite) -> None:
    packages.write_text(REQUESTS.replace("suite: stable", "suite: unheard", 1))
    with pytest.raises(ArtifactError, match="dists/unheard/Release"):
        again(packages, suite)
    suite.archive.stop()
    with pytest.raises(ArtifactError, match="no mirror has"):
        again(packages, suite)


def test_without_a_signature_nothing_is_pinned(packages: Path, suite: Suite) -> None:
    lock = packages.with_name("lock.yaml")
    with pytest.raises(ArtifactError, match="not signed") as caught:
        update(packages, lock, Mirrors((suite.archive.url,)))
    assert "--unsigned" in str(caught.value)
    assert not lock.exists()


@pytest.mark.parametrize("lacking", ["gpgv", "debian-archive-keyring"])
def test_a_signature_that_cannot_be_checked_counts_as_none(
    packages: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    text = suite.archive.files["dists/stable/Release"]
    suite.archive.files["dists/stable/InRelease"] = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + text
    if lacking == "gpgv":
        monkeypatch.setattr(repin.shutil, "which", lambda _name: None)
    else:
        monkeypatch.setattr(repin.shutil, "which", lambda _name: "/bin/true")
        monkeypatch.setattr(repin, "_KEYRINGS", ("no/such/keyring",))
    with pytest.raises(ArtifactError, match=f"{lacking} is not installed"):
        update(packages, packages.with_name("lock.yaml"), Mirrors((suite.archive.url,)))
    assert len(again(packages, suite)) == 6


def test_the_release_file_of_another_suite_is_refused(packages: Path, suite: Suite) -> None:
    text = suite.archive.files["dists/stable/Release"]
    suite.archive.files["dists/stable/Release"] = text.replace(b"Suite: stable", b"Suite: oldstable")
    with pytest.raises(ArtifactError, match="that of oldstable"):
        again(packages, suite)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Size: 8\n", "Size: eight\n"), ("Size: 8\n", f"Size: {'9' * 5000}\n"), ("Size: 8\n", ""),
        ("Filename: pool/main/emulator", "Filename: ../../emulator"), ("SHA256: ", "SHA256: z"),
    ],
)  # fmt: skip
def test_a_malformed_index_is_an_error_of_the_archive(packages: Path, suite: Suite, old: str, new: str) -> None:
    name = "main/binary-amd64/Packages.xz"
    assert old in suite.indexes[name]
    suite.indexes[name] = suite.indexes[name].replace(old, new)
    suite.publish()
    with pytest.raises(ArtifactError, match="malformed entry for emulator"):
        again(packages, suite)
    assert not packages.with_name("lock.yaml").exists()


def test_a_missing_signature_is_said(packages: Path, suite: Suite) -> None:
    said: list[str] = []

    class Teller(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    update(packages, packages.with_name("lock.yaml"), Mirrors((suite.archive.url,)), Teller(), unsigned=True)
    assert any("not signed" in text for text in said)


@pytest.mark.skipif(shutil.which("gpgv") is None, reason="gpgv is not installed")
def test_a_signature_nobody_knows_is_refused(tmp_path: Path) -> None:
    keyring = tmp_path / "empty.gpg"
    keyring.touch()
    text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSuite: x\n"
    text += "-----BEGIN PGP SIGNATURE-----\n\naaaa\n"
    with pytest.raises(ArtifactError, match="no good signature"):
        verified_text(text, "stable", ["gpgv", "--keyring", str(keyring)])


def test_a_file_that_only_moved_is_told_as_such() -> None:
    old, new = pin_of("a", b"1"), pin_of("a", b"1", path="pool/elsewhere/a.deb")
    difference = compare(Lock({"g": (old,)}), Lock({"g": (new,)}))
    assert difference.lines() == ["~ a 1.0: moved to pool/elsewhere/a.deb (0 kB -> 0 kB)"]
    assert not compare(Lock({"g": (old,)}), Lock({"g": (old,)}))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"), ("1.0~rc1", "1.0"), ("1.0", "1.0-1"), ("1.0-1", "1.0-1+b1"), ("1.0+b1", "1.0+deb1"),
        ("9", "1:1"), ("1.0-9", "1.0.1-1"), ("1:11.1.3+ds-1~bpo13+1", "1:11.1.3+ds-1"), ("1.0a", "1.0+"),
        ("2.41-12+deb13u5", "2.41-12+deb13u10"), ("1-2-3", "1-2-4"), ("1.0-0~", "1.0"),
    ],
)  # fmt: skip
def test_versions_are_ordered_as_dpkg_orders_them(older: str, newer: str) -> None:
    assert compare_versions(older, newer) < 0 < compare_versions(newer, older)
    assert compare_versions(older, older) == 0


def test_the_committed_wishes_and_pins_belong_together() -> None:
    from framework.common.paths import IMAGES

    lock = Lock.load()
    requests = read_requests(IMAGES / "packages.yaml")
    for request in requests:
        packages = [re.sub(r"^.*/|\.(orig|debian)$", "", pin.name) for pin in lock.group(request.group)]
        members = zip(packages, lock.group(request.group), strict=True)
        matching = [pin for name, pin in members if request.names(name)]
        assert matching and all(request.accepts(pin.version) for pin in matching), request

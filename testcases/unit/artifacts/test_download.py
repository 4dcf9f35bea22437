# SPDX-License-Identifier: GPL-2.0-or-later
"""What mirrors are asked beside pinned files: small texts, bounded, and whether they are there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.artifacts import download
from framework.artifacts.download import Downloader
from framework.artifacts.mirror import Mirrors
from framework.common.errors import ArtifactError
from testcases.unit.artifacts.archive import Archive, Fault, pin_of

UNREACHABLE = "http://127.0.0.1:1/debian"
RELEASE = "dists/x/Release"


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as running:
        yield running


def test_a_text_comes_from_the_first_mirror_that_has_it(archive: Archive, tmp_path: Path) -> None:
    archive.files[RELEASE] = "Origin: Ä\n".encode()
    assert Downloader(Mirrors((UNREACHABLE, str(tmp_path), archive.url))).text(RELEASE) == "Origin: Ä\n"


@pytest.mark.parametrize("local", [True, False])
def test_a_text_without_end_is_refused(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(download, "_TEXT_LIMIT", 1000)
    archive.files[RELEASE] = bytes(1001)
    (tmp_path / RELEASE).parent.mkdir(parents=True)
    (tmp_path / RELEASE).write_bytes(bytes(1001))
    with pytest.raises(ArtifactError, match="sends more than"):
        Downloader(Mirrors((str(tmp_path) if local else archive.url,))).text(RELEASE)


def test_a_pipe_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Release")
    with pytest.raises(ArtifactError, match="no such file"):
        Downloader(Mirrors((str(tmp_path),))).text("Release")


def test_a_text_that_breaks_off_is_an_error_of_that_mirror(archive: Archive) -> None:
    archive.files[RELEASE] = bytes(1001)
    archive.faults[RELEASE] = [Fault(cut=10)]
    with pytest.raises(ArtifactError, match=archive.url):
        Downloader(Mirrors((archive.url,))).text(RELEASE)


def test_every_mirror_says_whether_it_has_a_file(archive: Archive, tmp_path: Path) -> None:
    pin = archive.add("file", b"content")
    folders = tmp_path / "empty", tmp_path / "full"
    for folder in folders:
        folder.mkdir()
    (folders[1] / pin.filename).write_bytes(b"content")
    bases = (UNREACHABLE, archive.url, *map(str, folders))
    said = Downloader(Mirrors(bases)).ask(pin)
    assert list(said) == list(bases)
    assert said[archive.url] is None and said[str(folders[1])] is None
    assert "refused" in str(said[UNREACHABLE]) and "has no" in str(said[str(folders[0])])
    assert str(Downloader(Mirrors((archive.url,))).ask(pin_of("other", b""))[archive.url]).startswith("404")

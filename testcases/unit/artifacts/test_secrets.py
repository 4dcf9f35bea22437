# SPDX-License-Identifier: GPL-2.0-or-later
"""What must not get out: passwords in mirrors' addresses, and the guests' private keys."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from framework.artifacts.download import Downloader
from framework.artifacts.keys import guard, guest_keys
from framework.artifacts.mirror import Mirrors
from framework.artifacts.store import Store
from framework.board import walls
from framework.common.errors import ArtifactError, InfrastructureError, MedcheckError, redacted
from framework.common.qemu_ids import FIRST_UID, READERS
from framework.common.terminal import Output
from framework.conformance.policy import FailOn
from framework.console.problems import ProblemLog
from framework.jobs.doctor import examine
from framework.jobs.run_report import Found, report_of
from testcases.unit.artifacts.archive import Archive, open_to_all, pin_of

SECRET = "s3cr3t"
MIRROR = f"http://user:{SECRET}@127.0.0.1:1/debian"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (MIRROR, "http://***@127.0.0.1:1/debian"),
        (f"--mirror={MIRROR},{MIRROR}", "--mirror=http://***@127.0.0.1:1/debian,http://***@127.0.0.1:1/debian"),
        (f"'https://{SECRET}@host/a' x", "'https://***@host/a' x"),
        (f"ftp://u:p@{SECRET}@host", "ftp://***@host"),
        ("http://host/a@b and me@host", "http://host/a@b and me@host"),
        ("http://host?a=b@c", "http://host?a=b@c"),
    ],
)
def test_credentials_are_cut_out_of_addresses_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_no_error_shows_them() -> None:
    error = MedcheckError(f"no answer from {MIRROR}", where=MIRROR, hint=f"try {MIRROR} again")
    for text in (str(error), *map(str, error.args), error.what, str(error.where), str(error.hint)):
        assert SECRET not in text


@pytest.mark.parametrize("answers", [False, True])
def test_no_failed_download_shows_them(tmp_path: Path, answers: bool) -> None:
    with Archive() as archive:
        url = archive.url.replace("//", f"//user:{SECRET}@") if answers else MIRROR
        with pytest.raises(ArtifactError) as file:
            Store(tmp_path, Mirrors((url,)), backoff=0.001).path(pin_of("file", b"content"))
        with pytest.raises(ArtifactError) as text:
            Downloader(Mirrors((url,))).text("dists/stable/InRelease")
    for told in (str(file.value), str(text.value)):
        assert SECRET not in told and "***@127.0.0.1" in told


def test_no_report_shows_them() -> None:
    board = Mock(problem_log=ProblemLog(), consoles={})
    target = Mock(trace=None, guests={}, phases=[], board=board, stack=Mock(components=()))
    target.spec.guests = ()
    found = Found({}, {}, (), InfrastructureError(f"no answer from {MIRROR}"))
    command = ["run", "--mirror", MIRROR]
    report, _ = report_of(found, target, FailOn.NONCONFORMANCE, None, "smoke", command, datetime.now(UTC), 1.0)
    assert report.reproduce == "./medcheck run --mirror http://***@127.0.0.1:1/debian"
    assert SECRET not in str(report)


def test_the_doctor_does_not_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    told = io.StringIO()
    examine(False, MIRROR, Output(json=True, stdout=told, stderr=io.StringIO()))
    assert "mirror http://***@127.0.0.1" in told.getvalue()
    assert SECRET not in told.getvalue()


def test_private_keys_are_this_users_alone(tmp_path: Path) -> None:
    keys = guest_keys(tmp_path / "ssh")
    assert (tmp_path / "ssh").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (keys.client, keys.host)} == {0o600}


def test_an_image_with_keys_is_for_this_user_and_its_qemu(tmp_path: Path) -> None:
    path = tmp_path / "dom0.cpio"
    path.write_bytes(b"key")
    path.chmod(0o644)
    for _ in range(2):
        guard(path)
        found = path.stat()
        if os.geteuid() == 0:
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, READERS, 0o640)
        else:
            assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser's QEMU runs as a user of its own")
def test_qemu_reads_such_an_image_and_no_other_user_does(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    path = tmp_path / "dom0.cpio"
    path.write_bytes(b"key")
    guard(path)
    assert walls.reachable([str(path)], [], READERS)
    for groups, readable in (([READERS], True), ([], False)):
        child = os.fork()
        if child == 0:
            os.setgroups(groups)
            os.setresgid(FIRST_UID, FIRST_UID, FIRST_UID)
            os.setresuid(FIRST_UID, FIRST_UID, FIRST_UID)
            os._exit(0 if os.access(path, os.R_OK) else 1)
        assert (os.waitpid(child, 0)[1] == 0) == readable
    os.chown(path, 0, 1234)
    assert not walls.reachable([str(path)], [], READERS)

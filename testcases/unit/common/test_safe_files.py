# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that nothing of another user can turn into a way to files elsewhere, and ends of files of any length."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from framework.common import safe_files
from framework.common.errors import UsageError
from framework.common.polling import readable

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led to files of other users")


@as_root
def test_root_refuses_a_folder_of_another_user(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="folder of user 12345"):
        safe_files.make_own(folder)


@as_root
@pytest.mark.parametrize(("mode", "gid", "good"), [(0o777, 0, False), (0o775, 99, False), (0o775, 0, True)])
def test_root_refuses_a_folder_that_others_can_write(tmp_path: Path, mode: int, gid: int, good: bool) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    os.chown(folder, 0, gid)
    folder.chmod(mode)
    if good:
        safe_files.make_own(folder)
    else:
        with pytest.raises(UsageError, match="other users can write"):
            safe_files.make_own(folder)


def test_an_ordinary_user_may_write_wherever_he_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    safe_files.make_own(folder)


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "xen.log").symlink_to(victim)
    for append in (False, True):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            os.close(safe_files.create(tmp_path / "xen.log", append=append))
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        safe_files.write(tmp_path / "xen.log", b"overwritten")
    assert victim.read_text() == "precious"


def test_the_end_of_a_file_is_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
        stream.seek(0, os.SEEK_END)
        stream.write(b"the last line\n")
    assert safe_files.tail(path, 14) == b"the last line\n"
    assert safe_files.tail(path, 15)[1:] == b"the last line\n"
    assert safe_files.tail(tmp_path / "missing", 15) == b""


def test_a_descriptor_of_any_number_can_be_waited_for() -> None:
    read, write = os.pipe()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("this user may not open 3000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    high = 2500
    os.dup2(read, high)
    try:
        assert not readable(high, 0)
        os.write(write, b"x")
        assert readable(high, 0)
    finally:
        for fd in (read, write, high):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The walls around a QEMU, with an interpreter in its place that tries what a broken-out QEMU would."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from framework.board import janitor, qemu, walls
from framework.board.process import Job, QemuProcess
from framework.common.qemu_ids import FIRST_UID, LAST_UID, READERS

TRY = """
import json, os, resource, socket, sys
def attempt(what):
    try:
        return repr(what())
    except OSError as error:
        return type(error).__name__
name, given, output, port = sys.argv[1:5]
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "given": attempt(lambda: open(given).read()),
    "secret": attempt(lambda: open(name).read()),
    "passwd": attempt(lambda: open("/etc/passwd", "a").close()),
    "output": attempt(lambda: open(output, "w").write("written")),
    "other": attempt(lambda: open(output + ".other", "w").close()),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", int(port)), 5).close()),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
    "root": attempt(lambda: sorted(os.listdir("/"))),
}), flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives QEMU a user of its own")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Tried:
    """What the interpreter found behind the walls."""

    def __init__(self, folder: Path, port: int, run_as: str = "auto") -> None:
        private = folder / "private"
        private.mkdir(mode=0o700)
        self.output = private / "output"
        secret, given = private / "secret", private / "given"
        for path in (secret, given, self.output):
            path.write_text(path.name)
        given.chmod(0o600)
        entry = janitor.write_entry(janitor.new_board_id(1), [], folder)
        argv = [sys.executable, "-c", TRY, str(secret), str(given), str(self.output), str(port)]
        read = [*qemu.program_files([sys.executable]), Path(sys.prefix), Path(sys.base_prefix), given]
        process = QemuProcess(
            Job(argv, [], run_as, folder / "qemu.log", entry, [], read, [self.output], file_bytes=1 << 33)
        )
        while process.read_status():
            continue
        self.log = (folder / "qemu.log").read_text()
        assert process.exit_code == 0, self.log
        self.found = json.loads(self.log)
        assert process.walls is not None
        self.walls = process.walls


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: int) -> Tried:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    return Tried(tmp_path, listening)


@as_root
def test_root_gives_a_board_a_user_of_its_own_however_private_its_files_are(tried: Tried) -> None:
    uid, gid, groups = tried.found["ids"]
    assert FIRST_UID < uid < LAST_UID
    assert (gid, groups) == (uid, [READERS])
    assert tried.walls.uid == uid and tried.walls.lack == ""
    assert tried.found["given"] == "'given'"
    assert tried.found["output"] == "7"
    assert tried.output.read_text() == "written"
    assert tried.output.stat().st_uid == os.geteuid()


@as_root
def test_nothing_but_the_boards_own_files_is_there(tried: Tried) -> None:
    assert tried.walls.view
    assert tried.found["secret"] == "FileNotFoundError"
    assert tried.found["passwd"] in ("FileNotFoundError", "PermissionError", "OSError")  # the view is read-only
    assert tried.found["other"] in ("PermissionError", "OSError")


def test_it_leaves_no_core_and_no_file_without_bound(tried: Tried) -> None:
    assert tried.found["core"] == 0
    assert tried.found["size"] == 1 << 33


@pytest.mark.skipif(walls.landlock_version() < 4, reason="this kernel's Landlock knows no network")
def test_it_connects_to_nothing_on_the_host(tried: Tried) -> None:
    assert tried.found["connect"] == "PermissionError"


@pytest.mark.skipif(not walls.landlock_version(), reason="this kernel has no Landlock")
def test_landlock_alone_keeps_the_users_other_files_away(tmp_path: Path) -> None:
    for name in ("read", "written", "other"):
        (tmp_path / name).write_text(name)
    code = """
import ctypes, sys
from framework.board import walls
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
read, written, other = sys.argv[1:]
walls.restrict([read], [written])
for name, mode in ((read, "r"), (read, "w"), (written, "w"), (other, "r"), (other + ".new", "w"), ("/", "list")):
    try:
        import os
        os.listdir(name) if mode == "list" else open(name, mode).close()
        print("yes")
    except PermissionError:
        print("no")
"""
    paths = [str(tmp_path / name) for name in ("read", "written", "other")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["yes", "no", "yes", "no", "no", "no"]


@as_root
def test_a_link_in_the_place_of_an_output_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "trace").symlink_to(victim)
    entry = janitor.write_entry(janitor.new_board_id(1), [], tmp_path)
    process = QemuProcess(Job(["/bin/true"], [], "auto", tmp_path / "qemu.log", entry, [], [], [tmp_path / "trace"]))
    while process.read_status():
        continue
    assert "not a file or socket of our own" in process.ending
    assert victim.stat().st_uid == 0


@as_root
def test_a_socket_that_is_given_is_open_to_its_board_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    path = folder / "socket"
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        listener.settimeout(20)
        entry = janitor.write_entry(janitor.new_board_id(1), [], tmp_path)
        read = [*qemu.program_files([sys.executable]), Path(sys.prefix), Path(sys.base_prefix)]
        process = QemuProcess(
            Job([sys.executable, "-c", code], [], "auto", tmp_path / "qemu.log", entry, [], read, [path])
        )
        peer, _ = listener.accept()
        seen = path.stat()
        peer.sendall(b"x")
        peer.close()
        while process.read_status():
            continue
    assert process.exit_code == 0, process.log_tail()
    assert stat.S_IMODE(seen.st_mode) == 0o600
    assert FIRST_UID < seen.st_uid < LAST_UID


@as_root
@pytest.mark.parametrize("reached", [True, False])
def test_without_a_view_root_is_given_up_only_where_the_files_can_be_reached_and_else_that_is_said(
    tmp_path: Path, reached: bool
) -> None:
    """A container without CAP_SYS_ADMIN, as far as the supervisor can tell."""
    code = f"""
import json, os, sys
from framework.board import supervisor, walls
def refused(*_):
    raise OSError(1, "unshare: Operation not permitted")
walls.enter_view = refused
walls.reachable = lambda *_: {reached}
job = {{"run_as": "auto", "read": [], "write": [], "entry": {str(tmp_path / "entry")!r}}}
print(json.dumps(supervisor._put_up_walls(job, 77)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["uid"] == (FIRST_UID + 77 if reached else 0)
    assert ("unshare" in found["lack"]) == (not reached)


def test_what_another_user_reaches(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    (folder / "file").touch(mode=0o644)
    assert not walls.reachable([str(folder / "file")], [], READERS)
    assert walls.reachable(["/etc/passwd"], [], READERS)
    if os.geteuid() == 0:
        assert not walls.reachable(["/etc/shadow"], [], READERS)

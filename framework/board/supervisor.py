# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor: a tiny process between a board's owner and its QEMU, so that no QEMU outlives its owner.

It runs as ``python -I -S supervisor.py OWNER_FD STATUS_FD JOB`` in a session of its own (a terminal's Ctrl-C
does not reach it) and uses the standard library only, so that it starts in a few milliseconds.

- The owner dies, whatever the way: the owner's pipe ends and the owner's pidfd fires; the supervisor kills QEMU.
- The supervisor dies: the kernel kills QEMU by PR_SET_PDEATHSIG. That signal is tied to the *thread* that
  forked, which is why it is this single-threaded process, and not the owner, that is QEMU's parent.
- QEMU dies: the supervisor writes how to the status pipe and ends.

JOB is JSON: ``argv``; ``run_as`` (``auto``: a uid of the board's own in a view of its own; ``keep``; or a number);
``read`` and ``write`` (all files that QEMU opens by name; what it writes is given to its uid); ``file_bytes`` (the
largest file that it may write); ``owner`` (pid); ``entry`` (the board's entry file, completed here with the
supervisor's and QEMU's identity) and ``temporary`` (files that end with the board).

The status pipe carries one JSON object a line: ``{"qemu": pid}`` and ``{"walls": …}`` (see :func:`_put_up_walls`) in
any order, then ``{"exit": code}``, ``{"signal": number}`` or ``{"error": text}``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module that has this constant costs a third of a start
    from collections.abc import Callable
    from typing import Any

# An isolated interpreter's path has nothing of the project.
sys.path.append(__file__.rsplit("/", 3)[0])

from framework.board import walls  # noqa: E402
from framework.common.qemu_ids import FIRST_UID, LAST_UID, READERS  # noqa: E402

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def start_time(pid: int) -> int | None:
    """Return when a process started (clock ticks since boot), or None when it is gone or a zombie.

    Together with the pid this names a process for ever: a pid alone may be used again.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 - pathlib costs 10 ms at start
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def _drop_capabilities() -> None:
    """Give up every capability, also those that an exec could bring back to uid 0."""
    for capability in range(_LAST_CAPABILITY + 1):
        # Numbers above what this kernel knows answer EINVAL, and there is nothing to drop there.
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    if _libc.capset(ctypes.byref(header), ctypes.byref(empty)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _become_qemu(job: dict[str, Any], supervisor: int, report: Callable[..., None]) -> None:
    """Turn the child into QEMU. Order matters: a change of uid clears the parent-death signal."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    # Its memory is a guest's, and gigabytes of that. (Python ignores SIGXFSZ, and so does QEMU: writing fails.)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = job["file_bytes"] if allowed == resource.RLIM_INFINITY else min(allowed, job["file_bytes"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    report(walls=_put_up_walls(job, supervisor))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(127)
    os.execv(job["argv"][0], job["argv"])


def _put_up_walls(job: dict[str, Any], supervisor: int) -> dict[str, Any]:
    """Keep what breaks out of QEMU away from the host's files, as far as this process can.

    Returns ``uid`` (as which QEMU runs), ``view`` (whether it sees its own files only), ``landlock`` (the kernel's
    version of that, 0 without) and ``lack`` (why it runs as root; empty where it does not, or where that was
    requested).
    """
    run_as, read, write = job["run_as"], job["read"], job["write"]
    view, lack = False, ""
    uid = run_as if isinstance(run_as, int) else None
    if os.geteuid() == 0:
        if run_as == "auto":
            own = FIRST_UID + supervisor
            if _is_mapped("uid", own) and _is_mapped("gid", own) and _is_mapped("gid", READERS):
                uid = own
            else:
                lack = f"this container has no uid {own}"
        if uid is not None:
            for path in write:
                _give(path, uid)
        if run_as == "auto":
            try:
                walls.enter_view(read, write, os.path.dirname(job["entry"]), READERS)  # noqa: PTH120 - see start_time
                view = True
            except OSError as error:
                if uid is not None and not walls.reachable(read, write, READERS):
                    uid, lack = None, f"no other user reaches the board's files, and a view of them is refused: {error}"
        if uid is None:
            _drop_capabilities()
        else:
            os.setgroups([READERS] if run_as == "auto" else [])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    landlock = 0 if run_as == "keep" else walls.restrict(read, write)
    return {"uid": os.geteuid(), "view": view, "landlock": landlock, "lack": lack}


def _is_mapped(kind: str, number: int) -> bool:
    """Whether a uid or gid exists in this user namespace."""
    with open(f"/proc/self/{kind}_map") as stream:  # noqa: PTH123 - see start_time
        ranges = [[int(word) for word in line.split()] for line in stream]
    return any(first <= number < first + count for first, _, count in ranges)


def _give(path: str, uid: int) -> None:
    """Make a file or socket QEMU's own, or, with the own uid, take it back; never what a link leads to, nor what is
    another user's. A missing one stays away."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        seen = os.fstat(fd)
        # A supervisor that was killed took back nothing.
        ours = seen.st_uid == os.geteuid() or FIRST_UID <= seen.st_uid < LAST_UID
        file = stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1
        if not ours or not (file or stat.S_ISSOCK(seen.st_mode)):
            raise OSError(errno.EPERM, "not a file or socket of our own", path)
        here = f"/proc/self/fd/{fd}"
        if not file:
            os.chmod(here, 0o600)  # noqa: PTH101 - see start_time
        os.chown(here, uid, uid)
    finally:
        os.close(fd)


def _take_back(path: str) -> None:
    try:
        _give(path, os.geteuid())
    except OSError as error:
        print(f"medcheck: {path} still belongs to QEMU's user: {error}", file=sys.stderr)


def _write_entry(path: str, qemu: int) -> None:
    with open(path, encoding="utf-8") as stream:  # noqa: PTH123 - see start_time
        entry = json.load(stream)
    entry["supervisor"] = {"pid": os.getpid(), "start": start_time(os.getpid())}
    entry["qemu"] = {"pid": qemu, "start": start_time(qemu)}
    with open(path + ".new", "w", encoding="utf-8") as stream:  # noqa: PTH123 - see start_time
        json.dump(entry, stream)
    os.replace(path + ".new", path)  # noqa: PTH105 - see start_time


def _wait(owner_fd: int, owner: int, child: int, asked: int) -> None:
    """Return when the owner hangs up or dies, QEMU ends, or the supervisor gets a signal to end."""
    poll = select.poll()
    fds = [owner_fd, asked, os.pidfd_open(child)]
    try:
        # A forked child of the owner may hold the pipe open; the pidfd knows better.
        fds.append(os.pidfd_open(owner))
    except ProcessLookupError:
        return
    for fd in fds:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    if start_time(owner) is not None:
        poll.poll()


def main(owner_fd: int, status_fd: int, job: dict[str, Any]) -> None:
    """Start QEMU, wait for the first of the reasons to end, and leave nothing behind."""
    asked, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGTERM, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(owner_fd, False)
    os.set_inheritable(status_fd, False)

    def report(**fields: object) -> None:
        try:
            os.write(status_fd, json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:
            return  # the owner is gone, and its end is the very reason to go on cleaning up

    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become_qemu(job, supervisor, report)
        except OSError as error:
            report(error=f"cannot start QEMU: {error}")
        os._exit(127)
    # QEMU has its own copies; while the supervisor kept these open, no console would ever see its end.
    for fd in job["fds"]:
        os.close(fd)
    _write_entry(job["entry"], child)
    report(qemu=child)
    _wait(owner_fd, job["owner"], child, asked)
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended == 0:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if os.geteuid() == 0:
        for path in job["write"]:
            _take_back(path)
    for path in [*job["temporary"], job["entry"]]:
        try:
            os.unlink(path)  # noqa: PTH108 - see start_time
        except FileNotFoundError:
            continue
    if os.WIFSIGNALED(status):
        report(signal=os.WTERMSIG(status))
    else:
        report(exit=os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))

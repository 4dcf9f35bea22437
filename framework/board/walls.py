# SPDX-License-Identifier: GPL-2.0-or-later
"""The walls around a QEMU, put up by its supervisor: a view of the file system with nothing but the board's files in
it, under their usual names, and Landlock.

Uses the standard library only, and little of that: it is part of every start of a board.

Sources: mount_namespaces(7), open_tree(2), mount_setattr(2), pivot_root(2), landlock(7); Linux
include/uapi/linux/{mount,landlock}.h. System calls of Linux 5.1 and later have the same number on all architectures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 0x4000, 0x40000
_MNT_DETACH = 2
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _TRUNCATE_SINCE = 1 << 14, 3
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""All of Landlock's rights to files since each of its versions; those that no rule grants are refused."""
_CONNECT_TCP, _NETWORK_SINCE = 1 << 1, 4
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS, _SCOPES_SINCE = 1, 2, 6

_DEVICES = ["/dev/null", "/dev/urandom"]
"""Files that every program may need."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *words)), what)


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    _checked(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data), f"mount {os.fsdecode(target)}")


def enter_view(read: list[str], write: list[str], place: str, readers: int) -> None:
    """Leave the host's file system for an own one that holds these files and folders only, under the same names.

    ``read`` are for reading, ``write`` files and sockets for writing. A file that is not readable for all, nor for the
    group ``readers``, is copied into it. What does not exist stays away. ``place`` is some folder that exists.

    :raises OSError: this process may not do that, or the kernel is older than 5.12; nothing is lost then.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, b"/", None, _MS_REC | _MS_PRIVATE)
    parts = []
    for path in dict.fromkeys([*read, *write, *_DEVICES]):
        try:
            parts.append((path, _part(path, path in write, readers)))
        except FileNotFoundError:
            continue
    _mount(b"medcheck", os.fsencode(place), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=755")
    os.chdir(place)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    for path, (fd, kind) in parts:
        _place(path, fd, kind)
        os.close(fd)
    _mount(None, b"/", None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _part(path: str, writable: bool, readers: int) -> tuple[int, str]:
    """A descriptor of what goes into the view, and what it is: a ``folder``, a ``file``, or the file for a ``copy``."""
    seen = os.stat(path)  # noqa: PTH116 - see framework.board.supervisor.start_time
    folder = stat.S_ISDIR(seen.st_mode)
    readable = seen.st_mode & stat.S_IROTH or (seen.st_mode & stat.S_IRGRP and seen.st_gid == readers)
    if not (folder or writable or readable):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), "copy"
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if folder else 0)
    tree = _syscall(f"open_tree {path}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_NOSUID | (0 if writable else _MOUNT_ATTR_RDONLY), 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if folder else 0)
    _syscall(f"mount_setattr {path}", _MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes))
    return tree, "folder" if folder else "file"


def _place(path: str, fd: int, kind: str) -> None:
    at = ""
    *folders, _ = path.split("/")[1:]
    for folder in folders:
        at += f"/{folder}"
        _make_folder(at)
    if kind == "folder":
        _make_folder(path)
    else:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444)
        if kind == "copy":
            while os.sendfile(target, fd, None, 1 << 30):
                continue
        os.close(target)
    if kind != "copy":
        _syscall(f"move_mount {path}", _MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH)


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o755)  # noqa: PTH102 - see framework.board.supervisor.start_time
    except FileExistsError:
        return


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0 without one."""
    try:
        return _syscall("landlock", _LANDLOCK_CREATE_RULESET, 0, 0, 1)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def restrict(read: list[str], write: list[str]) -> int:
    """Have the kernel refuse this process, for good, all other files than these, every TCP connection that it would
    begin, and signals and abstract sockets to processes outside. Needs no privilege, but NO_NEW_PRIVS.

    Returns Landlock's version: 0 when the kernel has none, and nothing is refused.
    """
    version = landlock_version()
    if not version:
        return 0
    rights = max((since, rights) for since, rights in _FILE_RIGHTS.items() if since <= version)[1]
    network = _CONNECT_TCP if version >= _NETWORK_SINCE else 0
    scopes = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= _SCOPES_SINCE else 0
    # An older kernel takes the longer structure as long as what it does not know is zero.
    wanted = struct.pack("=QQQ", rights, network, scopes)
    rules = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE_RULESET, wanted, len(wanted), 0)
    change = _WRITE_FILE | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)
    write = [*write, *_DEVICES]
    for path in dict.fromkeys([*read, *write]):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        granted = _READ_FILE | (change if path in write else _EXECUTE) | (_READ_DIR if folder else 0)
        _syscall(f"landlock {path}", _LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", granted, fd), 0)
        os.close(fd)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)
    return version


def reachable(read: list[str], write: list[str], readers: int) -> bool:
    """Whether a user without any rights but those of the group ``readers`` could read and find all of these."""
    for path in [*read, *write]:
        path = os.path.realpath(path)
        try:
            seen = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            continue
        shift = 3 if seen.st_gid == readers else 0
        need = 0 if path in write else (0o5 if stat.S_ISDIR(seen.st_mode) else 0o4) << shift
        if seen.st_mode & need != need:
            return False
        while path != "/":
            path = os.path.dirname(path)  # noqa: PTH120
            if not os.stat(path).st_mode & stat.S_IXOTH:  # noqa: PTH116
                return False
    return True

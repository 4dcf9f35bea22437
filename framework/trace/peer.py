# SPDX-License-Identifier: GPL-2.0-or-later
"""Identity of the process at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid at the time of connect (unix(7), SO_PEERCRED)."""


def is_welcome(connection: socket.socket, path: Path, pid: int | None = None) -> bool:
    """Whether QEMU connected to our socket at ``path``.

    With ``pid``: that process. Without: one of our own user; or one of the user that QEMU runs as, if we started it:
    other boards, and other services, may have the same user.
    """
    peer, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if pid is not None:
        return bool(peer == pid)
    if uid == os.geteuid():
        return True
    try:
        return bool(uid == path.stat().st_uid) and is_descendant(peer)
    except OSError:  # the socket's file is gone
        return False


def is_descendant(pid: int) -> bool:
    """Whether this process started that one, or one of its parents."""
    own = os.getpid()
    while pid > 1 and pid != own:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:  # it has ended
            return False
        pid = int(stat.rpartition(b")")[2].split()[1])
    return pid == own

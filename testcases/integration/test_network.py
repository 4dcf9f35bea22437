# SPDX-License-Identifier: GPL-2.0-or-later
"""The board's network: SSH comes in, nothing goes out; and what became of the way to the host."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from framework.common.qemu_ids import FIRST_UID, LAST_UID
from framework.target.target import Target

HOST = "10.0.2.2"
"""QEMU's user network takes this address to the host's own loopback (unless it is restricted)."""


def test_guests_reach_no_service_of_the_host(target: Target) -> None:
    """SSH through the forwarded port is how dom0 is asked, so that works."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(1)
        # busybox' nc connects, or says why not; the other end of what it connects to would send it nothing.
        tried = target.dom0.ssh.run(f'nc -w 5 {HOST} {port} </dev/null; echo "nc: $?"').check()
        with pytest.raises(TimeoutError):
            listener.accept()
    assert tried.text.endswith("nc: 1"), tried.text


def test_there_is_no_way_out(target: Target) -> None:
    routes = target.dom0.ssh.run("ip route").check().text
    assert "default" not in routes
    assert "10.0.2.0/24" in routes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives QEMU a user of its own")
def test_qemu_is_neither_root_nor_a_user_that_anything_else_runs_as(target: Target) -> None:
    status = Path(f"/proc/{target.board.pid}/status").read_text()
    (uid,) = {int(word) for word in re.search(r"^Uid:(.*)$", status, re.MULTILINE)[1].split()}  # type: ignore[index]
    assert FIRST_UID < uid < LAST_UID
    assert target.board.remarks == []


def test_no_other_user_reads_the_guests_memory(target: Target) -> None:
    assert target.board.ram is not None
    assert not stat.S_IMODE(target.board.ram.path.stat().st_mode) & stat.S_IRWXO

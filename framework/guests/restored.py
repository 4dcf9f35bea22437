# SPDX-License-Identifier: GPL-2.0-or-later
"""Wakes guests of a restored board: sets their time, and gives each clone random numbers of its own.

A clone's guests believe that no time has passed, and all clones of one snapshot would draw the same random
numbers. Linux mixes what is written to /dev/urandom into its pool but draws from it only at the next reseed, up
to a minute later; the ioctl RNDRESEEDCRNG (linux/random.h) makes it do so at once. Busybox has no applet for
that, hence the smallest program that does it, put into the guest before it is saved.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Sequence

from framework.common.errors import GuestError
from framework.common.safe_text import number
from framework.diagnosis.crash import ConsoleLike
from framework.guests.ssh import SshClient
from framework.guests.ssh_talk import SilentGuestError


class LostTimerError(GuestError):
    """A guest that answers, but whose timer is dead: everything that sleeps in it sleeps for ever. Seen once in some
    25 boots of Xen 4.17 on a busy host, of dom0, whose armed virtual timer had not interrupted it for seconds."""


PROGRAM = "/run/medcheck-reseed"
_SCRIPT = "/run/medcheck-wake"
_WAKE = f"""date -s @$1 >/dev/null
echo $2 >/dev/urandom
{PROGRAM}
echo "$3 awake $?"
"""

_AWAKE = rb" awake ([0-9]{1,18})\r?\n"
_TIMER_SECONDS = 10.0

_LOAD_AT = 0x40_0000
_HEADERS = 64 + 56
_PATH = b"/dev/urandom\0\0\0\0"
_CODE = (
    0x9280_0C60,  # mov x0, #-100         AT_FDCWD
    0x1000_0141,  # adr x1, path          40 bytes on: behind the code
    0xD280_0042,  # mov x2, #2            O_RDWR
    0xD280_0708,  # mov x8, #56           openat
    0xD400_0001,  # svc #0
    0xD28A_40E1,  # mov x1, #0x5207       RNDRESEEDCRNG
    0xD280_0002,  # mov x2, #0
    0xD280_03A8,  # mov x8, #29           ioctl
    0xD400_0001,  # svc #0
    0xD280_0BA8,  # mov x8, #93           exit, with what ioctl gave: 0 is good
    0xD400_0001,  # svc #0
)


def reseed_program() -> bytes:
    """Return a static arm64 ELF executable that makes the kernel reseed; exit code 0 when it did."""
    code = struct.pack(f"<{len(_CODE)}I", *_CODE) + _PATH
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 183, 1, _LOAD_AT + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_AT, _LOAD_AT, size, size, 0x1_0000)
    return elf + segment + code


def prepare(ssh: SshClient, ttys: Sequence[str] = ()) -> None:
    """Put what waking needs into a guest that is going to be saved, and try the program.

    ``ttys`` are terminals of further guests in dom0: waking dom0 then wakes those as well. Raises
    :class:`LostTimerError` for a guest that no clone could use.
    """
    ssh.put(reseed_program(), PROGRAM, 0o755)
    further = "".join(f'echo "{_SCRIPT} $1 $2{number} $3" >{tty}\n' for number, tty in enumerate(ttys))
    ssh.put(f"#!/bin/sh\n{further}{_WAKE}".encode(), _SCRIPT, 0o755)
    ssh.run(PROGRAM).check()
    try:
        ssh.run("usleep 10000", idle_timeout=_TIMER_SECONDS).check()
    except SilentGuestError as error:
        raise LostTimerError(
            f"its timer no longer fires: a sleep of 10 ms did not end within {_TIMER_SECONDS:.0f} s", where=ssh.name
        ) from error


def wake(console: ConsoleLike, others: Sequence[ConsoleLike], idle_timeout: float = 60.0) -> None:
    """Set the clocks of restored guests and reseed them, all at the same time; returns when all have answered.

    ``console`` is dom0's. Typing on it also wakes a dom0 whose CPU sleeps. Raises GuestError for a guest that
    did not reseed, BoardError for a silent one.
    """
    marker = secrets.token_hex(4)
    console.sendline(f"{_SCRIPT} {time.time():.0f} {os.urandom(32).hex()} {marker}")
    for each in (console, *others):
        match = each.expect([marker.encode() + _AWAKE], idle_timeout)
        if match[1] != b"0":
            raise GuestError(f"did not reseed after the restore (exit code {number(match[1])})", where=each.name)

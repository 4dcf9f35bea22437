# SPDX-License-Identifier: GPL-2.0-or-later
"""The control domain: waits for its ready message and drives it over SSH, or on its console when the network fails.
It is a client of OP-TEE as well, and can run xtest."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from framework.common.errors import BoardError, GuestCrash, GuestError, MedcheckError
from framework.common.safe_text import number
from framework.diagnosis.crash import BoardLike, ConsoleLike, Watch
from framework.guests.ssh import Completed, SshClient
from framework.guests.xl import TOOLS_HINT, Xl, how_it_ended

READY = rb"medcheck: dom0 ready"
PANIC = rb"Kernel panic - not syncing[^\r\n]{0,400}"
TOOL_FAILED = rb"medcheck: Xen's tool ([a-z0-9-]{1,40}) ended with exit code ([0-9]{1,3})"
_BEGIN = rb"-begin\r?\n"
_END = rb"-end ([0-9]{1,18})\r?\n"
CONSOLE = "dom0"
_CLIENT = "/usr/lib/medcheck/tee-client"
_NO_CONSOLE = re.compile("no console of its own for dom0.{0,200}")
_BOOT_LINES = 400
ADDRESS = "192.168.77.1"
"""dom0's address on the guests' bridge."""


class Dom0:
    """dom0 of one board. ``key`` is the client's private key, ``host_key`` the public line of the only host
    key that is accepted."""

    name = "dom0"

    def __init__(self, board: BoardLike, key: Path, *, host_key: str | None = None) -> None:
        self.board = board
        self.key = key
        self.host_key = host_key
        self.xl = Xl(lambda command, stdin: self.run(command, stdin=stdin))
        self._ssh: SshClient | None = None
        self._watch: Watch | None = None
        self._markers = itertools.count(1)

    @property
    def console(self) -> ConsoleLike:
        """dom0's own console (a virtio console, not Xen's)."""
        return self.board.consoles[CONSOLE]

    @property
    def ssh(self) -> SshClient:
        """The connection to dom0; connects at first use."""
        if self._ssh is None:
            self._ssh = SshClient("127.0.0.1", self.board.ssh_port, self.key, host_key=self.host_key, name="dom0")
            self._ssh.alive = self.check_alive
            self._ssh.on_silence = self.board.on_silence
        return self._ssh

    def wait_ready(self, idle_timeout: float = 60.0) -> None:
        """Wait until dom0's userland is up and answers over SSH.

        Raises GuestCrash when its kernel panics, GuestError when one of Xen's tools does not start, BoardError when
        its console stays silent for ``idle_timeout`` seconds (scaled).
        """
        try:
            match = self.console.expect([READY, PANIC, TOOL_FAILED], idle_timeout)
        except BoardError as silence:
            raise self._without_console(silence) from silence
        if failed := re.fullmatch(TOOL_FAILED, match[0]):
            raise GuestError(
                f"Xen's tool {failed[1].decode()} did not start: {how_it_ended(number(failed[2].decode()))}",
                where=f"console {CONSOLE}",
                hint=TOOLS_HINT,
            )
        if match[0] != READY:
            raise GuestCrash(f"dom0: {match[0].decode(errors='replace')}", where=f"console {CONSOLE}")
        self.ssh.connect()

    def _without_console(self, silence: BoardError) -> MedcheckError:
        """The reason of a silence that dom0's init gave on Xen's console, because it could open no other one."""
        xen = self.board.consoles.get("xen")
        said = [match for line in (xen.tail(_BOOT_LINES) if xen else ()) if (match := _NO_CONSOLE.search(line))]
        if not said:
            return silence
        return GuestError(said[0][0], where=self.name, hint="give --kernel-modules the modules of that kernel")

    @property
    def watch(self) -> Watch:
        """The watch over what ends dom0, since its first use."""
        if self._watch is None:
            self._watch = Watch(self.board, self.name, CONSOLE, 0)
        return self._watch

    def check_alive(self) -> None:
        """Raise GuestCrash or BoardError when dom0, or something it needs, died since the first call."""
        self.watch.check()

    def check_domain(self) -> None:
        """Ask nothing: the toolstack runs in dom0, and would not answer either."""

    def diagnose(self, what: str) -> GuestCrash:
        """Find out why dom0 does not answer: raises if it died, else returns the error that names a hang."""
        self.check_alive()
        return self.watch.hang(what)

    def logs(self) -> list[bytes]:
        """The beginnings (1 MiB) of its own console's log and of OP-TEE's."""
        return self.watch.logs()

    def become_client(self) -> None:
        """Give dom0 what a client of OP-TEE needs, tee-supplicant and xtest; once is enough. Raises GuestError when
        dom0 has no OP-TEE."""
        self.run(_CLIENT).check()

    def run(self, command: str, *, stdin: bytes = b"", idle_timeout: float = 60.0) -> Completed:
        """Run a command in dom0: over SSH, or on the console if no connection can be made.

        Raises GuestError when neither answers.
        """
        try:
            self.ssh.connect()
        except GuestError as unreachable:
            if stdin:
                raise
            try:
                return self.run_on_console(command, idle_timeout=idle_timeout)
            except BoardError as silence:
                raise unreachable from silence
        return self.ssh.run(command, stdin=stdin, idle_timeout=idle_timeout)

    def run_on_console(self, command: str, *, idle_timeout: float = 60.0) -> Completed:
        """Run a command by typing it on dom0's console; its output (stdout and stderr together) may have
        kernel messages between its lines."""
        # The quotes in the middle keep the typed line, which is echoed, from looking like the answer.
        marker = f"medcheck-{next(self._markers)}"
        head, tail = marker[:4], marker[4:]
        console = self.console
        console.sendline(f'echo "{head}""{tail}-begin"; ( {command} ) 2>&1; echo "{head}""{tail}-end $?"')
        console.expect([re.escape(marker.encode()) + _BEGIN], idle_timeout)
        match = console.expect([re.escape(marker.encode()) + _END], idle_timeout)
        output = console.before.replace(b"\r\n", b"\n")
        return Completed(command, "dom0's console", number(match[1]), output, b"")

    def close(self) -> None:
        """End the connection; may be called twice."""
        if self._ssh is not None:
            self._ssh.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Interactive shells in dom0 or a domU of a freshly restored board (``medcheck boot``)."""

from __future__ import annotations

import os
import selectors
import sys
import tempfile
import termios
import tty
from pathlib import Path

from framework.artifacts.stack import Overrides
from framework.board.spec import BoardSpec
from framework.common.errors import ExitCode, UsageError
from framework.common.terminal import Output
from framework.guests.ssh import SshClient
from framework.target.stack import open_store, prepare_stack, with_guests
from framework.target.target import Target


def boot(
    board: str, domus: int | None, overrides: Overrides, offline: bool, mirrors: str | None, output: Output
) -> int:
    """Boot ``board`` and give shells, one after the other, until the user quits."""
    if not sys.stdin.isatty():
        raise UsageError("`medcheck boot` needs a terminal", hint="scripts use pytest's fixtures or `medcheck run`")
    spec = with_guests(BoardSpec.load(board), domus)
    stack = prepare_stack(overrides, open_store(offline, mirrors, output.progress), output.progress, cpu=spec.cpu)
    with tempfile.TemporaryDirectory(prefix="medcheck-") as folder, Target(spec, stack, Path(folder)) as target:
        target.boot(output.progress)
        visit(target, output)
    return ExitCode.GOOD


def visit(target: Target, output: Output) -> None:
    """Offer shells in the guests of a running board."""
    hosts = {"dom0": target.dom0.ssh, **{name: guest.ssh for name, guest in target.guests.items()}}
    output.say(f"the board is up; logs are in {target.board.run_dir / 'consoles'}")
    while True:
        try:
            choice = input(f"shell in [{', '.join(hosts)}] or quit: ").strip() or "dom0"
        except EOFError:
            return
        if choice in ("q", "quit", "exit"):
            return
        if choice in hosts:
            shell(hosts[choice])
        else:
            output.say(f"no guest is called {choice}")


def shell(client: SshClient) -> None:
    """Join this terminal and a login shell in a guest until the shell ends."""
    channel = client.open_shell()
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin.fileno())
        ends = selectors.DefaultSelector()
        for end in (channel, sys.stdin):
            ends.register(end, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in ends.select()}
            if channel in ready:
                try:
                    data = channel.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            if sys.stdin in ready:
                channel.sendall(os.read(sys.stdin.fileno(), 4096))
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        channel.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a guest over SSH: complete output as it comes, exit codes that never hang, one jump through dom0.

No wait has a fixed duration: it ends when bytes stop moving for ``idle_timeout`` seconds (scaled
by :func:`framework.common.host_speed.host_factor`), or when ``alive`` says that the other side is dead.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import shlex
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from framework.common.errors import GuestError, MedcheckError
from framework.common.host_speed import host_factor
from framework.console.wait_policy import OnSilence
from framework.guests.ssh_talk import MOST_OUTPUT, TICK, Alive, CommandStream, Talk, short

# Whatever goes wrong is raised from here; paramiko would also print it on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_GREETING_SECONDS = 60.0
_ATTEMPTS = 4
"""Handshakes that are given an equal share of those seconds each, so that one that is swallowed is not the last."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


__all__ = ["Alive", "CommandStream", "Completed", "SshClient", "always_alive"]


def always_alive() -> None:
    """An ``alive`` for callers that have no board to ask."""


@dataclass(frozen=True)
class Completed:
    """A command that ended. ``rc`` is its exit code, or -1 when a signal ended it."""

    command: str
    where: str
    rc: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        """Return itself; raises GuestError with the end of stderr when the command failed."""
        if self.rc != 0:
            said = (self.stderr or self.stdout).decode(errors="replace").strip()
            tail = "\n".join(f"    {line}" for line in said.splitlines()[-8:]) or "    (it said nothing)"
            raise GuestError(f"`{short(self.command)}` ended with exit code {self.rc}:\n{tail}", where=self.where)
        return self

    @property
    def text(self) -> str:
        """Standard output as text, without the last line end."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class SshClient:
    """A connection to one guest; connects at first use, may be used by several threads at once.

    ``via`` is the connection to jump through (dom0). ``host_key`` is the public line of the only host key
    that is accepted (``ssh-ed25519 AAAA…``). ``name`` is what errors call the guest.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: Path,
        *,
        user: str = "root",
        via: SshClient | None = None,
        host_key: str | None = None,
        name: str = "",
    ) -> None:
        self.name = name or f"{host}:{port}"
        self.alive: Alive = always_alive
        self.on_silence: OnSilence | None = None
        """Who says why a command is silent for too long."""
        self._address = (host, port)
        self._user = user
        self._key = key
        self._via = via
        self._host_key = None if host_key is None else _public_key(host_key)
        self._transport: paramiko.Transport | None = None
        self._connecting = threading.Lock()

    # The connection

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._transport is not None and self._transport.is_active()

    def connect(self, alive: Alive | None = None) -> None:
        """Connect, trying again with growing pauses until the guest's SSH server answers; once is enough.

        A server that swallows a connection is given a new one after a quarter of a minute. Raises what ``alive``
        raises; GuestError when the server refuses the key, shows another host key, or has not answered for a minute;
        both times are scaled, and the error says how each attempt ended.
        """
        alive = alive or self.alive
        with self._connecting:
            if self.connected:
                return
            self.close()
            self._transport = self._try_until_connected(alive)

    def close(self) -> None:
        """End the connection and whatever runs over it; may be called twice."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _try_until_connected(self, alive: Alive) -> paramiko.Transport:
        pause = _FIRST_PAUSE
        deadline = time.monotonic() + _GREETING_SECONDS * host_factor()
        waiter = threading.Event()
        ends: Counter[str] = Counter()
        while True:
            alive()
            try:
                return self._handshake(alive)
            except MedcheckError:
                raise
            except (paramiko.SSHException, OSError, EOFError) as error:
                if isinstance(error, paramiko.AuthenticationException):
                    raise GuestError(
                        "the guest refuses our SSH key",
                        where=self.name,
                        hint="the guests' images were made with other keys: rebuild them, or clear the cache",
                    ) from error
                ends[repr(error)] += 1
                if time.monotonic() > deadline:
                    how = "; ".join(f"{end} ({_times(count)})" for end, count in ends.items())
                    raise GuestError(
                        f"no SSH server answers: tried {_times(ends.total())}: {how}",
                        where=self.name,
                        hint="the guest's console says how far it came",
                    ) from error
            except Exception as error:  # What paramiko's parsers met: UnicodeDecodeError, IndexError, ValueError, ...
                raise GuestError(
                    f"its SSH server breaks the protocol: {error!r}", where=self.name, hint="is it an SSH server?"
                ) from error
            # A server that is not up yet refuses at once: there is no event to wait for on this side.
            waiter.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _handshake(self, alive: Alive) -> paramiko.Transport:
        transport = paramiko.Transport(self._socket(alive), disabled_algorithms=None)
        transport.daemon = True
        share = _GREETING_SECONDS / _ATTEMPTS * host_factor()
        deadline = time.monotonic() + share
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = share
        options = transport.get_security_options()
        options.kex = _cheap(options.kex, "curve25519-sha256@libssh.org")
        options.ciphers = _cheap(options.ciphers, "aes128-ctr")
        if self._host_key is not None:
            options.key_types = (self._host_key.get_name(),)
        try:
            self._step(transport, lambda done: transport.start_client(event=done), alive, deadline)
            self._verify(transport)
            key = paramiko.Ed25519Key.from_private_key_file(str(self._key))
            self._step(transport, lambda done: transport.auth_publickey(self._user, key, event=done), alive, deadline)
            if not transport.is_authenticated():
                raise transport.get_exception() or paramiko.AuthenticationException("not authenticated")
            return transport
        except BaseException:
            transport.close()
            raise

    def _socket(self, alive: Alive) -> socket.socket | paramiko.Channel:
        if self._via is None:
            near = socket.create_connection(self._address, timeout=10 * host_factor())
            # Else a small packet waits for the acknowledgement of the one before, which the far side delays by 40 ms.
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return near
        self._via.connect(alive)
        transport = self._via._transport
        if transport is None:
            raise GuestError("the connection to jump through is closed", where=self._via.name)
        return transport.open_channel("direct-tcpip", self._address, ("127.0.0.1", 0), timeout=20 * host_factor())

    def _step(
        self,
        transport: paramiko.Transport,
        begin: Callable[[threading.Event], object],
        alive: Alive,
        deadline: float,
    ) -> None:
        done = threading.Event()
        begin(done)
        while not done.wait(TICK):
            alive()
            if not transport.is_active():
                break
            if time.monotonic() > deadline:
                raise paramiko.SSHException("the server stopped answering during the handshake")
        if not transport.is_active():
            raise transport.get_exception() or EOFError("the connection was closed during the handshake")

    def _verify(self, transport: paramiko.Transport) -> None:
        shown = transport.get_remote_server_key()
        if self._host_key is not None and shown.asbytes() != self._host_key.asbytes():
            raise GuestError(
                f"shows host key {shown.get_name()} {shown.get_base64()[:24]}…, not the one of our images",
                where=self.name,
                hint="something else listens there, or the images were made with other keys",
            )

    def _channel(self, alive: Alive) -> paramiko.Channel:
        self.connect(alive)
        transport = self._transport
        if transport is None:
            raise GuestError("the connection was closed", where=self.name)
        try:
            return transport.open_session(timeout=30 * host_factor())
        except Exception as error:
            alive()
            raise GuestError(f"opens no session: {error!r}", where=self.name) from error

    def _begin(self, channel: paramiko.Channel, command: str, alive: Alive) -> None:
        """Ask for the command. paramiko would wait for ever for the answer of a guest that has died, so
        another thread waits and this one checks whether it lives."""
        failure: list[Exception] = []
        done = threading.Event()

        def ask() -> None:
            try:
                channel.exec_command(command)
            except Exception as error:
                failure.append(error)
            done.set()

        threading.Thread(target=ask, daemon=True).start()
        deadline = time.monotonic() + _GREETING_SECONDS * host_factor()
        try:
            while not done.wait(TICK):
                alive()
                if time.monotonic() > deadline:
                    raise GuestError(f"does not take `{short(command)}`", where=self.name)
            if failure:
                alive()
                raise GuestError(
                    f"`{short(command)}`: the connection broke before it began", where=self.name
                ) from failure[0]
        except BaseException:
            channel.close()
            raise

    # What to do with it

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        idle_timeout: float = 60.0,
        alive: Alive | None = None,
        deadline: float | None = None,
    ) -> Completed:
        """Run a command in the guest's shell and wait for its end.

        Raises GuestError when no byte moved in either direction for ``idle_timeout`` seconds (scaled), when
        it printed more than :data:`MOST_OUTPUT` bytes, was not done after ``deadline`` seconds (scaled;
        :func:`framework.console.wait_policy.deadline` unless given), or when the connection broke; a command that
        fails is no error here, see :meth:`Completed.check`.
        """
        alive = alive or self.alive
        with contextlib.closing(self._channel(alive)) as channel:
            self._begin(channel, command, alive)
            talk = self._talk(channel, command, stdin, idle_timeout, alive, MOST_OUTPUT, deadline)
            out, err = bytearray(), bytearray()
            for data, is_error in talk.pieces():
                (err if is_error else out).extend(data)
            return Completed(command, self.name, talk.exit_code(), bytes(out), bytes(err))

    def stream(
        self,
        command: str,
        *,
        idle_timeout: float = 120.0,
        alive: Alive | None = None,
        limit: int = MOST_OUTPUT,
        deadline: float | None = None,
    ) -> CommandStream:
        """Run a command and give its lines (stdout and stderr merged) while it runs; see CommandStream. ``limit``
        bytes at most, for ``deadline`` seconds (as in :meth:`run`) at most."""
        alive = alive or self.alive
        channel = self._channel(alive)
        channel.set_combine_stderr(True)
        self._begin(channel, command, alive)
        return CommandStream(channel, self._talk(channel, command, b"", idle_timeout, alive, limit, deadline))

    def _talk(
        self, channel: paramiko.Channel, command: str, stdin: bytes, idle_timeout: float, alive: Alive, limit: int,
        deadline: float | None,
    ) -> Talk:  # fmt: skip
        what = f"`{short(command)}`"
        return Talk(
            channel, stdin, idle_timeout, alive, what, self.name, self.on_silence, limit=limit, deadline=deadline
        )

    def put(self, data: bytes, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest; it appears whole or not at all."""
        target, part = shlex.quote(path), shlex.quote(f"{path}.part")
        self.run(f"cat >{part} && chmod {mode:o} {part} && mv {part} {target}", stdin=data).check()

    def get(self, path: str, limit: int = 64 << 20) -> bytes:
        """Read a file of the guest; raises GuestError when it is larger than ``limit`` bytes."""
        data = self.run(f"head -c {limit + 1} {shlex.quote(path)}").check().stdout
        if len(data) > limit:
            raise GuestError(f"{path} is larger than {limit} bytes", where=self.name)
        return data

    def open_shell(self) -> paramiko.Channel:
        """Open a login shell on a terminal of its own, for a person; the caller closes the channel."""
        channel = self._channel(self.alive)
        try:
            channel.get_pty("xterm", 120, 40)
            channel.invoke_shell()
        except Exception as error:
            channel.close()
            raise GuestError(f"gives no shell: {error!r}", where=self.name) from error
        return channel


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _public_key(line: str) -> paramiko.PKey:
    kind, encoded = line.split()[:2]
    return paramiko.PKey.from_type_string(kind, base64.b64decode(encoded, validate=True))


def _cheap(offered: Sequence[str], wanted: str) -> tuple[str, ...]:
    """Put ``wanted``, the cheapest algorithm for an emulated CPU, first if it is offered."""
    return (wanted, *(name for name in offered if name != wanted)) if wanted in offered else tuple(offered)

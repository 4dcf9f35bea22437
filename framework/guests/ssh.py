"""Commands in a guest over SSH: output live and whole, exit codes that never hang, one jump through dom0.

Nothing here waits by the clock alone: a wait ends when bytes stop moving for ``idle_timeout`` seconds (scaled
by :func:`framework.board.hostspeed.host_factor`), or when ``alive`` says that the other side is dead.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from framework.board.hostspeed import host_factor
from framework.errors import GuestError

Alive = Callable[[], None]
"""Raises GuestCrash or BoardError when the other side is dead; called about once a second while waiting."""

# Whatever goes wrong is raised from here; paramiko would also print it on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_CHUNK = 64 * 1024
_LONGEST_LINE = 1 << 20
_TICK = 0.5
_GREETING_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


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
            raise GuestError(
                f"`{_short(self.command)}` ended with exit code {self.rc}:\n{tail}", where=self.where
            )
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

        Raises what ``alive`` raises; GuestError when the server refuses the key, shows another host key, or
        has not answered for a minute (scaled).
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
        while True:
            alive()
            try:
                return self._handshake(alive)
            except (paramiko.SSHException, OSError, EOFError) as error:
                if isinstance(error, paramiko.AuthenticationException):
                    raise GuestError(
                        "the guest refuses our SSH key",
                        where=self.name,
                        hint="the guests' images were made with other keys: rebuild them, or clear the cache",
                    ) from error
                if time.monotonic() > deadline:
                    raise GuestError(
                        f"no SSH server answers: {error!r}",
                        where=self.name,
                        hint="the guest's console says how far it came",
                    ) from error
            # A server that is not up yet refuses at once: there is no event to wait for on this side.
            waiter.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _handshake(self, alive: Alive) -> paramiko.Transport:
        transport = paramiko.Transport(self._socket(alive), disabled_algorithms=None)
        transport.daemon = True
        patience = _GREETING_SECONDS * host_factor()
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = patience
        options = transport.get_security_options()
        options.kex = _cheap(options.kex, "curve25519-sha256@libssh.org")
        options.ciphers = _cheap(options.ciphers, "aes128-ctr")
        if self._host_key is not None:
            options.key_types = (self._host_key.get_name(),)
        try:
            self._step(transport, lambda done: transport.start_client(event=done), alive)
            self._verify(transport)
            key = paramiko.Ed25519Key.from_private_key_file(str(self._key))
            self._step(transport, lambda done: transport.auth_publickey(self._user, key, event=done), alive)
            if not transport.is_authenticated():
                raise transport.get_exception() or paramiko.AuthenticationException("not authenticated")
            return transport
        except BaseException:
            transport.close()
            raise

    def _socket(self, alive: Alive) -> socket.socket | paramiko.Channel:
        if self._via is None:
            return socket.create_connection(self._address, timeout=10 * host_factor())
        self._via.connect(alive)
        transport = self._via._transport
        if transport is None:
            raise GuestError("the connection to jump through is closed", where=self._via.name)
        return transport.open_channel(
            "direct-tcpip", self._address, ("127.0.0.1", 0), timeout=20 * host_factor()
        )

    def _step(
        self, transport: paramiko.Transport, begin: Callable[[threading.Event], object], alive: Alive
    ) -> None:
        done = threading.Event()
        begin(done)
        deadline = time.monotonic() + _GREETING_SECONDS * host_factor()
        while not done.wait(_TICK):
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
        except (paramiko.SSHException, OSError, EOFError) as error:
            alive()
            raise GuestError(f"opens no session: {error}", where=self.name) from error

    def _begin(self, channel: paramiko.Channel, command: str, alive: Alive) -> None:
        """Ask for the command. paramiko would wait for ever for the answer of a guest that has died, so
        another thread waits and this one looks whether it lives."""
        failure: list[Exception] = []
        done = threading.Event()

        def ask() -> None:
            try:
                channel.exec_command(command)
            except (paramiko.SSHException, OSError, EOFError) as error:
                failure.append(error)
            done.set()

        threading.Thread(target=ask, daemon=True).start()
        deadline = time.monotonic() + _GREETING_SECONDS * host_factor()
        try:
            while not done.wait(_TICK):
                alive()
                if time.monotonic() > deadline:
                    raise GuestError(f"does not take `{_short(command)}`", where=self.name)
            if failure:
                alive()
                raise GuestError(
                    f"`{_short(command)}`: the connection broke before it began", where=self.name
                ) from failure[0]
        except BaseException:
            channel.close()
            raise

    # What to do with it

    def run(
        self, command: str, *, stdin: bytes = b"", idle_timeout: float = 60.0, alive: Alive | None = None
    ) -> Completed:
        """Run a command in the guest's shell and wait for its end.

        Raises GuestError when no byte moved in either direction for ``idle_timeout`` seconds (scaled), or
        when the connection broke; a command that fails is no error here, see :meth:`Completed.check`.
        """
        alive = alive or self.alive
        with contextlib.closing(self._channel(alive)) as channel:
            self._begin(channel, command, alive)
            talk = _Talk(channel, stdin, idle_timeout, alive, f"`{_short(command)}`", self.name)
            out, err = bytearray(), bytearray()
            for data, is_error in talk.pieces():
                (err if is_error else out).extend(data)
            return Completed(command, self.name, talk.exit_code(), bytes(out), bytes(err))

    def stream(
        self, command: str, *, idle_timeout: float = 120.0, alive: Alive | None = None
    ) -> CommandStream:
        """Run a command and give its lines (stdout and stderr merged) while it runs; see CommandStream."""
        alive = alive or self.alive
        channel = self._channel(alive)
        channel.set_combine_stderr(True)
        self._begin(channel, command, alive)
        talk = _Talk(channel, b"", idle_timeout, alive, f"`{_short(command)}`", self.name)
        return CommandStream(channel, talk)

    def put(self, data: bytes, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest; it appears whole or not at all."""
        target, part = shlex.quote(path), shlex.quote(f"{path}.part")
        self.run(
            f"cat >{part} && chmod {mode:o} {part} && mv {part} {target}", stdin=data
        ).check()

    def get(self, path: str, limit: int = 64 << 20) -> bytes:
        """Read a file of the guest; raises GuestError when it is larger than ``limit`` bytes."""
        data = self.run(f"head -c {limit + 1} {shlex.quote(path)}").check().stdout
        if len(data) > limit:
            raise GuestError(f"{path} is larger than {limit} bytes", where=self.name)
        return data

    def open_shell(self) -> paramiko.Channel:
        """Open a login shell on a terminal of its own, for a person; the caller closes the channel."""
        channel = self._channel(self.alive)
        channel.get_pty("xterm", 120, 40)
        channel.invoke_shell()
        return channel


class CommandStream:
    """The lines of a running command, each with its line end unless it is a piece of a longer one (pieces
    are at most 1 MiB) or the last. :attr:`rc` holds the exit code once the lines have ended."""

    def __init__(self, channel: paramiko.Channel, talk: _Talk) -> None:
        self.rc: int | None = None
        self._channel = channel
        self._talk = talk

    def __iter__(self) -> Iterator[bytes]:
        """Wait for lines; raises GuestError when none comes for the stream's idle timeout."""
        try:
            rest = b""
            for data, _ in self._talk.pieces():
                lines = _lines(rest + data)
                rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
                yield from lines
                while len(rest) >= _LONGEST_LINE:
                    yield rest[:_LONGEST_LINE]
                    rest = rest[_LONGEST_LINE:]
            if rest:
                yield rest
            self.rc = self._talk.exit_code()
        finally:
            self.close()

    def close(self) -> None:
        """Leave the command to itself; may be called twice."""
        self._channel.close()


class _Talk:
    """Both directions of one channel, drained with a deadline before the exit code is asked for.

    paramiko's ``recv_exit_status`` knows no timeout and never returns when output is left unread.
    """

    def __init__(
        self, channel: paramiko.Channel, stdin: bytes, idle_timeout: float, alive: Alive, what: str,
        where: str,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._stdin = memoryview(stdin)
        self._limit = idle_timeout * host_factor()
        self._alive = alive
        self._what = what
        self._where = where
        self._moved = time.monotonic()
        self._wrote_all = False

    def pieces(self) -> Iterator[tuple[bytes, bool]]:
        """Give what the command prints, True for stderr, until it has closed both streams."""
        channel = self._channel
        checked = time.monotonic()
        while True:
            self._write()
            got = False
            if channel.recv_ready():
                got = True
                yield channel.recv(_CHUNK), False
            if channel.recv_stderr_ready():
                got = True
                yield channel.recv_stderr(_CHUNK), True
            now = time.monotonic()
            if now - checked >= 2 * _TICK:
                checked = now
                self._alive()
            if got:
                self._moved = now
                continue
            if channel.eof_received or channel.closed:
                # Bytes may have come between the look and the end mark.
                if channel.recv_ready() or channel.recv_stderr_ready():
                    continue
                return
            self._patience(now)
            select.select([channel], [], [], _TICK if self._wrote_all else 0.02)

    def exit_code(self) -> int:
        """Wait for the exit code, -1 for a signal; raises GuestError when the connection broke before."""
        channel = self._channel
        while not channel.exit_status_ready():
            self._alive()
            self._patience(time.monotonic())
            channel.status_event.wait(_TICK)
        if channel.exit_status == -1 and not channel.get_transport().is_active():
            self._alive()
            raise GuestError(f"{self._what}: the connection broke before it ended", where=self._where)
        return channel.exit_status

    def _write(self) -> None:
        channel = self._channel
        while not self._wrote_all and (not self._stdin or channel.send_ready()):
            if not self._stdin or channel.closed:
                with contextlib.suppress(OSError):
                    channel.shutdown_write()
                self._wrote_all = True
                return
            try:
                self._stdin = self._stdin[channel.send(self._stdin[:_CHUNK].tobytes()) :]
            except OSError:
                # The command closed its standard input early; what it printed and its exit code say why.
                self._stdin = self._stdin[:0]
            self._moved = time.monotonic()

    def _patience(self, now: float) -> None:
        if now - self._moved > self._limit:
            self._alive()
            raise GuestError(
                f"{self._what}: no byte for {now - self._moved:.0f} s", where=self._where,
                hint="it hangs, or the guest does; the consoles say more",
            )  # fmt: skip


def _lines(data: bytes) -> list[bytes]:
    """Split at newlines only: a lone carriage return belongs to its line."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _public_key(line: str) -> paramiko.PKey:
    kind, encoded = line.split()[:2]
    return paramiko.PKey.from_type_string(kind, base64.b64decode(encoded, validate=True))


def _cheap(offered: Sequence[str], wanted: str) -> tuple[str, ...]:
    """Put what costs an emulated CPU the least first."""
    return (wanted, *(name for name in offered if name != wanted)) if wanted in offered else tuple(offered)


def _short(command: str) -> str:
    first = " ".join(command.split())
    return first if len(first) <= 120 else f"{first[:117]}..."

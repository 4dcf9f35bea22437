# SPDX-License-Identifier: GPL-2.0-or-later
"""A small SSH server on 127.0.0.1 whose commands are real shells: what a guest looks like to SshClient."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def new_key(path: Path) -> paramiko.Ed25519Key:
    """A fresh key pair; the private half lands in ``path``."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    path.chmod(0o600)
    return paramiko.Ed25519Key.from_private_key_file(str(path))


class _Rules(paramiko.ServerInterface):
    def __init__(self, server: LoopbackServer) -> None:
        self.server = server

    def check_auth_publickey(self, username, key):
        good = username == "root" and key.asbytes() == self.server.client_key.asbytes()
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username):  # noqa: ARG002 - paramiko's shape
        return "publickey"

    def check_channel_request(self, kind, chanid):  # noqa: ARG002
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_UNKNOWN_CHANNEL_TYPE

    def check_channel_direct_tcpip_request(self, chanid, origin, destination):  # noqa: ARG002
        self.server.jumps[chanid] = destination
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self.server.execute, args=(channel, command), daemon=True).start()
        return True


class LoopbackServer:
    """Serves until closed; ``path`` is put before the commands' search path."""

    def __init__(self, folder: Path, path: Path | None = None, port: int = 0) -> None:
        self.client_key_file = folder / "client"
        self.client_key = new_key(self.client_key_file)
        self.host_key = new_key(folder / "host")
        self.jumps: dict[int, tuple[str, int]] = {}
        self.transports: list[paramiko.Transport] = []
        self.swallow = 0
        """Connections to take and never to answer; each is kept in ``swallowed``."""
        self.swallowed: list[socket.socket] = []
        self._programs: list[subprocess.Popen[bytes]] = []
        self._env = {**os.environ, "PATH": f"{path or folder}:{os.environ['PATH']}"}
        self._listen = socket.create_server(("127.0.0.1", port))
        self.port = self._listen.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def host_line(self) -> str:
        return f"{self.host_key.get_name()} {self.host_key.get_base64()} test\n"

    def close(self) -> None:
        self._listen.close()
        self.drop()

    def drop(self) -> None:
        """Cut all connections and end what runs, as a guest that dies does."""
        for transport in self.transports:
            transport.close()
        for client in self.swallowed:
            client.close()
        for program in self._programs:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listen.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return
            if len(self.swallowed) < self.swallow:
                self.swallowed.append(client)
                continue
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        transport = paramiko.Transport(client)
        self.transports.append(transport)
        transport.add_server_key(self.host_key)
        channels = []  # a channel without a reference is closed by the garbage collector
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=_Rules(self))
            while transport.is_active():
                channel = transport.accept(0.2)
                channels.append(channel)
                if channel is not None and channel.chanid in self.jumps:
                    self._join(channel, self.jumps[channel.chanid])

    def _join(self, channel: paramiko.Channel, address: tuple[str, int]) -> None:
        far = socket.create_connection(address)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        # paramiko raises EOFError where the transport under a channel has gone.
        def copy(read, write):
            with contextlib.suppress(OSError, EOFError):
                while data := read(65536):
                    write(data)
            with contextlib.suppress(EOFError):
                channel.close()
            far.close()

        threading.Thread(target=copy, args=(channel.recv, far.sendall), daemon=True).start()
        threading.Thread(target=copy, args=(far.recv, channel.sendall), daemon=True).start()

    def execute(self, channel: paramiko.Channel, command: bytes) -> None:
        process = subprocess.Popen(
            ["sh", "-c", command.decode()], env=self._env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._programs.append(process)

        def feed():
            with contextlib.suppress(OSError, EOFError):
                while data := channel.recv(65536):
                    process.stdin.write(data)
                    process.stdin.flush()
            with contextlib.suppress(OSError):
                process.stdin.close()

        def copy(stream, send):
            with contextlib.suppress(OSError, EOFError):
                while data := os.read(stream.fileno(), 65536):
                    send(data)

        threading.Thread(target=feed, daemon=True).start()
        copies = [
            threading.Thread(target=copy, args=(process.stdout, channel.sendall), daemon=True),
            threading.Thread(target=copy, args=(process.stderr, channel.sendall_stderr), daemon=True),
        ]
        for thread in copies:
            thread.start()
        for thread in copies:
            thread.join()
        code = process.wait()
        with contextlib.suppress(OSError, paramiko.SSHException, EOFError):
            channel.shutdown_write()
            if code >= 0:
                channel.send_exit_status(code)
            channel.close()

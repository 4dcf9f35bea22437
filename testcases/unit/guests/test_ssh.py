# SPDX-License-Identifier: GPL-2.0-or-later
"""SshClient against a real SSH server on this machine."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import socket
import struct
import threading
import time
from types import SimpleNamespace

import pytest

from framework.common.errors import GuestCrash, GuestError
from framework.guests import ssh, ssh_talk
from framework.guests.ssh import SshClient
from testcases.unit.guests.loopback import LoopbackServer, new_key

pytestmark = pytest.mark.usefixtures("brisk")


@pytest.fixture
def server(tmp_path):
    server = LoopbackServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server):
    client = SshClient("127.0.0.1", server.port, server.client_key_file, host_key=server.host_line, name="vm")
    yield client
    client.close()


def test_a_command_gives_its_streams_apart_and_its_exit_code(client):
    done = client.run("echo out; echo err >&2; exit 7")
    assert (done.rc, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_check_names_the_command_its_exit_code_and_what_it_said(client):
    with pytest.raises(GuestError) as caught:
        client.run("echo 'no such thing' >&2; exit 3").check()
    for part in ("vm", "exit 3", "exit code 3", "no such thing"):
        assert part in str(caught.value)


def test_both_streams_larger_than_every_window_do_not_block_each_other(client):
    size = 5 << 20
    done = client.run(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2; head -c {size} /dev/zero")
    assert (len(done.stdout), len(done.stderr), done.rc) == (2 * size, size, 0)


def test_output_without_end_is_cut_off(client, monkeypatch):
    monkeypatch.setattr(ssh, "MOST_OUTPUT", 100_000)
    with pytest.raises(GuestError, match="prints more than 100000 bytes"):
        client.run("yes")


def test_input_larger_than_every_window_comes_back_whole(client):
    data = bytes(range(256)) * 20_000
    assert client.run("cat", stdin=data).stdout == data


def test_a_command_that_closes_its_input_early_still_tells_its_exit_code(client):
    assert client.run("exec <&-; exit 4", stdin=b"x" * (6 << 20)).rc == 4


def test_a_command_that_a_signal_ends_has_exit_code_minus_one(client):
    assert client.run("kill -9 $$").rc == -1


def test_silence_ends_the_wait_and_names_the_command(client):
    with pytest.raises(GuestError, match=r"sleep 30.*no byte for"):
        client.run("sleep 30", idle_timeout=0.5)


class Watcher:
    """Sees a board that hangs; from its third look on, one that sleeps for ever."""

    def __init__(self, answer="hung: nothing moves"):
        self.answer = answer
        self.looks = 0
        self.explained = []

    def sample(self):
        self.looks += 1
        return self.looks

    def hopeless(self):
        return self.looks >= 3

    def idle(self):
        return 0.0

    def explain(self, before):
        self.explained.append(before)
        return self.answer


@pytest.fixture
def _own_time(monkeypatch, brisk):  # noqa: ARG001 - after it
    """A wait for output sees 0.3 s pass with each look at its channel, however busy this host is."""
    clock = itertools.count(1000.0, 0.3)
    monkeypatch.setattr(ssh_talk, "TICK", 0.01)
    monkeypatch.setattr(ssh_talk, "time", SimpleNamespace(monotonic=lambda: next(clock)))


@pytest.mark.usefixtures("_own_time")
def test_silence_is_explained_by_who_watches_the_board(client):
    client.on_silence = Watcher()
    with pytest.raises(GuestError, match=r"sleep 30`: no byte for \d+ s\n    hung: nothing moves\n  -> "):
        client.run("sleep 30", idle_timeout=2.0)
    assert client.on_silence.explained == [1]
    with pytest.raises(GuestError, match=r"no byte for \d+ s\n  -> "):
        client.run("sleep 30", idle_timeout=1.9)
    assert client.on_silence.looks == 1


@pytest.mark.usefixtures("_own_time")
def test_a_board_that_sleeps_for_ever_is_not_waited_for(client):
    client.on_silence = Watcher()
    with pytest.raises(GuestError, match=r"no byte for 1\d s\n    hung: nothing moves"):
        list(client.stream("sleep 60", idle_timeout=50))
    assert client.on_silence.explained == [2]


@pytest.mark.usefixtures("_own_time")
def test_a_board_that_is_gone_is_not_asked_twice(client):
    class GoneError(Exception):
        """What the board says of its end."""

    client.on_silence = Watcher(None)

    def alive():
        if client.on_silence.explained:
            raise GoneError

    with pytest.raises(GoneError):
        client.run("sleep 30", idle_timeout=2.0, alive=alive)


def test_a_slow_command_that_prints_is_not_hung(client):
    done = client.run("for i in 1 2 3 4; do echo $i; sleep 0.3; done", idle_timeout=1.0)
    assert done.stdout.split() == [b"1", b"2", b"3", b"4"]


def test_a_death_seen_elsewhere_ends_the_wait_at_once(client):
    client.connect()
    dead = threading.Event()

    def alive():
        if dead.is_set():
            raise GuestCrash("linux-panic")

    threading.Timer(0.3, dead.set).start()
    begin = time.monotonic()
    with pytest.raises(GuestCrash, match="linux-panic"):
        client.run("sleep 30", alive=alive)
    assert time.monotonic() - begin < 5


def test_a_connection_that_breaks_is_an_error_not_an_exit_code(server, client):
    client.connect()
    threading.Timer(0.3, server.drop).start()
    with pytest.raises(GuestError, match="connection broke"):
        client.run("sleep 30")


def test_the_client_connects_again_after_a_break(server, client):
    client.connect()
    server.drop()
    client.close()
    assert client.run("echo again").text == "again"


def test_lines_come_while_the_command_runs(client, tmp_path):
    gate = shlex.quote(str(tmp_path / "gate"))
    stream = client.stream(f"echo first; while [ ! -e {gate} ]; do sleep 0.05; done; echo err >&2; exit 5")
    lines = iter(stream)
    assert next(lines) == b"first\n"
    assert stream.rc is None
    (tmp_path / "gate").touch()
    assert list(lines) == [b"err\n"]
    assert stream.rc == 5


def test_a_line_without_end_comes_in_pieces(client):
    pieces = list(client.stream("head -c 3000000 /dev/zero; printf 'end\\rof\\nrest'"))
    assert max(map(len, pieces)) <= 1 << 20
    assert b"".join(pieces) == b"\0" * 3_000_000 + b"end\rof\nrest"
    assert pieces[-1] == b"rest"


def test_files_travel_whole_whatever_their_names(client, tmp_path):
    data, path = bytes(range(256)) * 1000, str(tmp_path / 'it\'s a "file" $x')
    client.put(data, path, mode=0o600)
    assert client.get(path) == data
    assert (tmp_path / 'it\'s a "file" $x').stat().st_mode & 0o777 == 0o600
    with pytest.raises(GuestError, match="larger than 1000"):
        client.get(path, limit=1000)


def test_another_host_key_is_refused(server, tmp_path):
    other = new_key(tmp_path / "other")
    client = SshClient("127.0.0.1", server.port, server.client_key_file, host_key=f"ssh-ed25519 {other.get_base64()}")
    with pytest.raises(GuestError, match="host key"):
        client.connect()
    assert not client.connected


def test_a_key_that_the_guest_does_not_know_is_named_at_once(server, tmp_path):
    new_key(tmp_path / "stranger")
    client = SshClient("127.0.0.1", server.port, tmp_path / "stranger", host_key=server.host_line)
    begin = time.monotonic()
    with pytest.raises(GuestError, match="refuses our SSH key"):
        client.connect()
    assert time.monotonic() - begin < 10


def test_connect_waits_until_the_server_comes_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listen:
        port = listen.getsockname()[1]
    late: list[LoopbackServer] = []
    tries = []
    client = SshClient("127.0.0.1", port, tmp_path / "client")

    def alive():
        tries.append(1)
        if len(tries) == 3:
            late.append(LoopbackServer(tmp_path, port=port))

    client.connect(alive)
    assert len(tries) >= 3
    assert client.run("echo up").text == "up"
    client.close()
    late[0].close()


def test_a_swallowed_connection_is_followed_by_another(server, client, monkeypatch):
    monkeypatch.setattr(ssh, "_GREETING_SECONDS", 20.0)
    monkeypatch.setattr(ssh, "_ATTEMPTS", 20)
    server.swallow = 1
    assert client.run("echo answered").text == "answered"
    assert len(server.swallowed) == 1


def test_the_error_at_the_end_says_how_each_attempt_ended(server, client, monkeypatch):
    monkeypatch.setattr(ssh, "_GREETING_SECONDS", 1.0)
    server.swallow = 1 << 30
    with pytest.raises(GuestError, match="no SSH server answers: ") as error:
        client.connect()
    tried, ends = re.match(r"no SSH server answers: tried ([0-9]+) times: (.*)", error.value.what).groups()
    assert int(tried) == len(server.swallowed) > 1
    assert all(re.fullmatch(r"\w+\(.*\) \((once|[0-9]+ times)\)", end) for end in ends.split("; "))


def test_connect_gives_up_when_the_guest_is_dead(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listen:
        port = listen.getsockname()[1]
    new_key(tmp_path / "client")
    client = SshClient("127.0.0.1", port, tmp_path / "client")

    def alive():
        raise GuestCrash("panicked")

    with pytest.raises(GuestCrash, match="panicked"):
        client.connect(alive)


def test_a_guest_is_reached_through_another_one(server, client, tmp_path):
    (tmp_path / "inner").mkdir()
    inner = LoopbackServer(tmp_path / "inner")
    guest = SshClient("127.0.0.1", inner.port, inner.client_key_file, via=client, host_key=inner.host_line, name="vm1")
    assert guest.run("echo inside").text == "inside"
    assert ("127.0.0.1", inner.port) in server.jumps.values()
    guest.close()
    inner.close()


def test_several_threads_share_one_connection(client):
    results: dict[int, bytes] = {}

    def work(number):
        results[number] = client.run(f"sleep 0.2; echo {number}").stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: b"%d\n" % number for number in range(5)}


@pytest.mark.parametrize("many", [False, True])
def test_a_command_that_prints_for_ever_is_given_up_at_its_deadline(client, many):
    command = "while sleep 0.05; do echo .; done"
    begin = time.monotonic()
    with pytest.raises(GuestError, match=r"not done after \d s, which is all it was given"):
        list(client.stream(command, deadline=0.5)) if many else client.run(command, deadline=0.5)
    assert time.monotonic() - begin < 10


def test_a_stream_has_a_limit_in_bytes(client):
    lines = client.stream("yes", limit=100_000)
    seen = 0
    with pytest.raises(GuestError, match="prints more than 100000 bytes"):
        for line in lines:
            seen += len(line)
    assert 0 < seen <= 100_000


def packet(payload: bytes) -> bytes:
    """An SSH packet without encryption (RFC 4253, section 6)."""
    padding = 8 - (len(payload) + 5) % 8 + 4
    padding += (-(len(payload) + 5 + padding)) % 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def names(*lists: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(item)) + item for item in lists)


KEXINIT = bytes([20]) + bytes(16)
GOOD_LISTS = names(b"curve25519-sha256@libssh.org", b"ssh-ed25519", *([b"aes128-ctr"] * 2), *([b"hmac-sha2-256"] * 2),
                   b"none", b"none", b"", b"")  # fmt: skip
KEX_REPLY = bytes([31])
DISCONNECT = bytes([1]) + struct.pack(">I", 2)
HELLO = packet(KEXINIT + GOOD_LISTS + bytes(5))
MALFORMED = {
    "lists that are no text": packet(KEXINIT + names(*[b"\xff\xfe"] * 10) + bytes(5)),
    "an empty packet": packet(b""),
    "lists that end early": packet(KEXINIT + struct.pack(">I", 1 << 31)),
    "a host key of 31 bytes": HELLO + packet(KEX_REPLY + names(names(b"ssh-ed25519", bytes(31)), bytes(32), bytes(83))),
    "a point of low order": HELLO + packet(KEX_REPLY + names(names(b"ssh-ed25519", bytes(32)), bytes(32), bytes(83))),
    "a reason that is no text": packet(DISCONNECT + names(b"\xff\xfe", b"\xff")),
    "a message that is not known": packet(bytes([200]) + b"x"),
    "no packets at all": b"\xff" * 4096,
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_a_server_that_breaks_the_protocol_is_a_guest_error(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(ssh, "_GREETING_SECONDS", 1.0)
    new_key(tmp_path / "client")
    listen = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listen.accept()
                with contextlib.suppress(OSError), near:
                    near.sendall(b"SSH-2.0-evil\r\n" + sent)
                    while near.recv(65536):
                        pass

    threading.Thread(target=serve, daemon=True).start()
    client = SshClient("127.0.0.1", listen.getsockname()[1], tmp_path / "client")
    try:
        with pytest.raises(GuestError):
            client.run("true")
    finally:
        # Closing alone would leave accept() blocked.
        with contextlib.suppress(OSError):
            listen.shutdown(socket.SHUT_RDWR)
        listen.close()

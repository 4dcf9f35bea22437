# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0 and Linux guests as their consoles tell of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import pytest

from framework.common.errors import BoardError, GuestCrash, GuestError
from framework.common.paths import IMAGES
from framework.guests.dom0 import Dom0
from framework.guests.linux import LinuxGuest, address_of, create_linux_guest
from framework.guests.ssh import Completed
from framework.guests.xl import DomainInfo
from testcases.unit.guests.loopback import new_key


class _Console:
    """Prints what a test put into it; silent afterwards. ``answer`` turns typed lines into output."""

    def __init__(self, name, folder, text=b""):
        self.name, self.text, self.before = name, text, b""
        self.typed: list[str] = []
        self.answer = lambda _line: b""
        self.log = folder / f"{name}.log"
        self.log.write_bytes(text)

    def expect(self, patterns, idle_timeout):
        found = [match for pattern in patterns if (match := re.search(pattern, self.text))]
        if not found:
            raise BoardError(f"no byte for {idle_timeout} s", where=f"console {self.name}")
        match = min(found, key=lambda match: match.start())
        self.before, self.text = self.text[: match.start()], self.text[match.end() :]
        return match

    def sendline(self, text):
        self.typed.append(text)
        self.text += self.answer(text)

    def tail(self, lines):
        return self.log.read_text().splitlines()[-lines:]


@dataclass
class _Board:
    consoles: dict
    problems: list = field(default_factory=list)
    alive: bool = True
    ssh_port: int = 1
    on_silence: None = None

    def death(self):
        return BoardError("the board died")


class _Xl:
    def __init__(self):
        self.domain = DomainInfo(5, "vm1", 256, 1, "-b----", 1.0)
        self.made = []

    def find(self, _domid):
        return self.domain

    def create_attached(self, config, port_name):
        self.made.append((config, port_name))
        return 5


@pytest.fixture
def parts(tmp_path):
    board = _Board({name: _Console(name, tmp_path) for name in ("xen", "optee", "dom0", "guest0")})
    new_key(tmp_path / "key")
    dom0 = Dom0(board, tmp_path / "key")
    dom0.xl = _Xl()
    return board, dom0


@pytest.mark.parametrize(("code", "words"), [("139", "killed by signal 11"), ("1", "exit code 1")])
def test_a_tool_of_xen_that_crashes_in_dom0_is_named(parts, code, words):
    board, dom0 = parts
    text = f"Segmentation fault\r\nmedcheck: Xen's tool xenstored ended with exit code {code}\r\n"
    board.consoles["dom0"].text = f"{text}medcheck: dom0 ready\r\n".encode()
    with pytest.raises(GuestError, match=f"xenstored did not start: {words}") as caught:
        dom0.wait_ready()
    assert "--xen-tools tree" in caught.value.hint


def guest_that_prints(parts, text: bytes, **more) -> LinuxGuest:
    board, dom0 = parts
    board.consoles["guest0"].text = text
    board.consoles["guest0"].log.write_bytes(text)
    guest = LinuxGuest(dom0, "vm1", 1, 5, board.consoles["guest0"], **more)
    guest.ssh.connect = lambda: None
    return guest


def test_a_guest_is_ready_when_it_says_so(parts):
    guest_that_prints(parts, b"booting\r\nmedcheck: domu ready\r\n").wait_ready()


def test_a_guest_without_op_tee_is_an_error_with_its_kernels_words(parts):
    text = b"[    1.0] optee: api uid mismatch\r\nmedcheck: no OP-TEE in this guest\r\nmedcheck: domu ready\r\n"
    with pytest.raises(GuestError) as caught:
        guest_that_prints(parts, text).wait_ready()
    assert "without OP-TEE" in caught.value.what
    assert "optee: api uid mismatch" in caught.value.what
    assert "CFG_NS_VIRTUALIZATION" in caught.value.hint
    guest_that_prints(parts, text, tee=False).wait_ready()


@pytest.mark.parametrize("probe", ["optee: probe of firmware:optee failed", "optee firmware:optee: probe failed"])
def test_the_first_complaint_of_the_driver_is_the_cause_of_the_others(parts, probe):
    lines = [
        "[    1.0] optee: probing for conduit method.",
        "[    1.0] optee: api uid mismatch",
        f"[    1.0] {probe} with error -22",
        "medcheck: no OP-TEE in this guest",
    ]
    with pytest.raises(GuestError, match="its kernel said: optee: api uid mismatch\n"):
        guest_that_prints(parts, "\r\n".join(lines).encode()).wait_ready()


def test_a_guest_that_says_the_same_for_ever_does_not_keep_the_wait_open(parts):
    guest = guest_that_prints(parts, b"medcheck: no OP-TEE in this guest\r\n" * 5, tee=False)
    waits = []
    expect = guest.console.expect
    guest.console.expect = lambda patterns, idle: (waits.append(patterns), expect(patterns, idle))[1]
    parts[1].xl.domain = DomainInfo(5, "vm1", 256, 1, "r-----", 1.0)
    with pytest.raises(GuestCrash, match="hangs"):
        guest.wait_ready()
    assert len(waits) == 2


def test_a_driver_that_only_probed_is_quoted_as_well(parts):
    text = b"[    1.0] optee: probing for conduit method.\r\nmedcheck: no OP-TEE in this guest\r\n"
    with pytest.raises(GuestError, match="its kernel said: optee: probing for conduit method"):
        guest_that_prints(parts, text).wait_ready()


def test_a_guest_whose_supplicant_fails_is_an_error(parts):
    with pytest.raises(GuestError, match="tee-supplicant did not start"):
        guest_that_prints(parts, b"medcheck: tee-supplicant did not start\r\n").wait_ready()


def test_a_guest_that_panics_at_boot_is_a_crash(parts):
    with pytest.raises(GuestCrash, match="not syncing: No working init"):
        guest_that_prints(parts, b"Kernel panic - not syncing: No working init found.\r\n").wait_ready()


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (None, GuestCrash, "domain 5 is gone"),
        ("---s--", GuestCrash, "shut down"),
        ("----c-", GuestCrash, "crashed"),
        ("--p---", GuestError, "is paused"),
        ("r-----", GuestCrash, "hangs: no byte"),
    ],
)
def test_a_silent_guest_is_told_by_what_the_toolstack_knows(parts, state, error, words):
    guest = guest_that_prints(parts, b"half way\r\n")
    parts[1].xl.domain = None if state is None else DomainInfo(5, "vm1", 256, 1, state, 1.0)
    with pytest.raises(error, match=words):
        guest.wait_ready()


def test_a_new_guest_gets_its_name_address_and_console(parts):
    board, dom0 = parts
    guest = create_linux_guest(
        dom0, "vm2", 2, port_name="guest1", console=board.consoles["guest0"], memory_mib=128, arguments="quiet"
    )
    ((config, port),) = dom0.xl.made
    words = config.cmdline.split()
    assert {"medcheck.ip=192.168.77.12", "medcheck.name=vm2", "console=hvc0", "panic=1", "quiet"} <= set(words)
    assert (config.name, config.memory_mib, config.tee, port) == ("vm2", 128, True, "guest1")
    assert (guest.domid, guest.address) == (5, "192.168.77.12")


@pytest.mark.parametrize("number", [0, -1, 201])
def test_guest_numbers_have_limits(number):
    with pytest.raises(ValueError, match="guest number"):
        address_of(number)


def test_dom0_is_driven_on_its_console_when_the_network_is_not_there(parts):
    board, dom0 = parts
    console = board.consoles["dom0"]

    def unreachable(*_):
        raise GuestError("no SSH server answers")

    dom0.ssh.connect = unreachable
    # The echo of the typed line comes first, as on a real terminal, with a kernel message in the output.
    console.answer = lambda line: (
        line.encode() + b"\r\nmedcheck-1-begin\r\nvm1\r\n[ 1.0] chatter\r\nmedcheck-1-end 3\r\n"
    )
    done = dom0.run("xl list")
    assert done == Completed("xl list", "dom0's console", 3, b"vm1\n[ 1.0] chatter\n", b"")
    assert "xl list" in console.typed[0]


def test_an_exit_code_that_is_no_number_is_not_believed(parts):
    board, dom0 = parts
    console = board.consoles["dom0"]
    nines = b"9" * 5000
    console.answer = lambda line: line.encode() + b"\r\nmedcheck-1-begin\r\nmedcheck-1-end " + nines + b"\r\n"
    with pytest.raises(BoardError):
        dom0.run_on_console("true")


def test_dom0_that_answers_nowhere_is_told_by_its_connection(parts):
    _, dom0 = parts

    def unreachable(*_):
        raise GuestError("no SSH server answers")

    dom0.ssh.connect = unreachable
    with pytest.raises(GuestError, match="no SSH server answers"):
        dom0.run("xl list")


def test_dom0_without_a_console_of_its_own_is_told_by_what_its_init_said_on_xens(parts, tmp_path):
    board, dom0 = parts
    said = b"medcheck: no console of its own for dom0: its kernel has neither virtio_console nor a module of it\n"
    board.consoles["xen"] = _Console("xen", tmp_path, said)
    with pytest.raises(GuestError, match=r"^dom0: no console of its own for dom0: its kernel.*virtio_console"):
        dom0.wait_ready()


def test_dom0_becomes_a_client_by_its_own_script(parts, monkeypatch):
    _, dom0 = parts
    asked = []
    answer = Completed("x", "dom0", 1, b"", b"medcheck: no OP-TEE in dom0")
    monkeypatch.setattr(dom0, "run", lambda command: asked.append(command) or answer)
    with pytest.raises(GuestError, match="no OP-TEE in dom0"):
        dom0.become_client()
    script = IMAGES / "rootfs/dom0" / asked[0].lstrip("/")
    assert os.access(script, os.X_OK)
    assert "/boot/domu/ramdisk" in script.read_text()


def test_dom0_panicking_at_boot_is_a_crash(parts):
    board, dom0 = parts
    board.consoles["dom0"].text = b"Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
    with pytest.raises(GuestCrash, match="Unable to mount root"):
        dom0.wait_ready()

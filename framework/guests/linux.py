# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux domU: created by xl, waited for on its console, reached over SSH through dom0."""

from __future__ import annotations

import re

from framework.common.errors import BoardError, GuestCrash, GuestError
from framework.diagnosis.crash import ConsoleLike, Watch
from framework.guests.dom0 import PANIC, Dom0
from framework.guests.ssh import SshClient
from framework.guests.xl import GuestConfig

READY = rb"medcheck: domu ready"
NO_TEE = rb"medcheck: no OP-TEE in this guest"
NO_SUPPLICANT = rb"medcheck: tee-supplicant did not start"
_PROBE = re.compile(r"optee:.*", re.IGNORECASE)
_PROBING = re.compile(
    "probing for conduit|revision|dynamic shared memory|asynchronous notif|initialized driver", re.IGNORECASE
)
"""The driver's message when all is well."""
MOST_GUESTS = 200
"""Guest numbers 1 to this give addresses 192.168.77.11 and up."""


class LinuxGuest:
    """One running Linux domU. ``number`` counts from 1 and gives its address."""

    def __init__(
        self, dom0: Dom0, name: str, number: int, domid: int, console: ConsoleLike, *, tee: bool = True
    ) -> None:
        self.dom0 = dom0
        self.name = name
        self.number = number
        self.domid = domid
        self.console = console
        self.tee = tee
        self.address = address_of(number)
        self.watch = Watch(dom0.board, name, console.name, domid)
        self.ssh = SshClient(
            self.address, 22, dom0.key, via=dom0.ssh, host_key=dom0.host_key, name=name
        )  # fmt: skip
        self.ssh.alive = self.check_alive
        self.ssh.on_silence = dom0.board.on_silence

    def wait_ready(self, idle_timeout: float = 60.0) -> None:
        """Wait until the guest's userland is up, OP-TEE and its supplicant with it, and SSH answers.

        Raises GuestCrash when the guest panics or disappears, GuestError when it comes up without OP-TEE
        though it should have it, BoardError when its console stays silent.
        """
        awaited = [READY, NO_TEE, NO_SUPPLICANT, PANIC]
        while True:
            try:
                match = self.console.expect(awaited, idle_timeout)
            except BoardError as silence:
                raise self.diagnose(silence.what) from silence
            if match[0] == READY:
                break
            if match[0] == NO_SUPPLICANT:
                raise GuestError("tee-supplicant did not start", where=self.name, hint=f"see {self.console.log}")
            if match[0] != NO_TEE:
                raise self.watch.crash(match[0].decode(errors="replace"))
            if self.tee:
                raise self._without_tee()
            # Said again, it must not begin another wait.
            awaited.remove(NO_TEE)
        self.ssh.connect()

    def check_alive(self) -> None:
        """Raise GuestCrash or BoardError when the guest, or something it needs, died; costs nothing."""
        self.watch.check()

    def check_domain(self) -> None:
        """Ask the toolstack whether the domain still lives (up to half a second of dom0's time).

        Raises GuestCrash when it is gone or crashed.
        """
        info = self.dom0.xl.find(self.domid)
        # What the console tells is more than that the domain is gone.
        self.watch.check()
        if info is None:
            raise self.watch.crash(f"domain {self.domid} is gone")
        if "c" in info.state or "s" in info.state or "d" in info.state:
            word = "crashed" if "c" in info.state else "shut down"
            raise self.watch.crash(f"domain {self.domid} has {word} (state {info.state})")
        if "p" in info.state:
            raise GuestError(f"domain {self.domid} is paused", where=self.name, hint="`xl unpause` it")

    def diagnose(self, what: str) -> GuestCrash:
        """Find out why this guest does not answer: raises if it died or is gone, else returns the error that names a
        hang, with the stall that its kernel reported, if any."""
        self.watch.check()
        self.check_domain()
        return self.watch.hang(what)

    def logs(self) -> list[bytes]:
        """The beginnings (1 MiB) of its own console's log and of OP-TEE's."""
        return self.watch.logs()

    def pause(self) -> None:
        """Stop its virtual CPUs."""
        self.dom0.xl.pause(self.domid)

    def unpause(self) -> None:
        """Let its virtual CPUs run."""
        self.dom0.xl.unpause(self.domid)

    def destroy(self) -> None:
        """End the domain at once, as if its power were cut; the guest is of no use afterwards."""
        self.ssh.close()
        self.dom0.xl.destroy(self.domid)

    def close(self) -> None:
        """End the connection, not the guest; may be called twice."""
        self.ssh.close()

    def _without_tee(self) -> GuestError:
        # The kernel's own words say whether the mediator or OP-TEE said no; of several, the first is the cause.
        said = [match[0].strip() for match in map(_PROBE.search, self.console.tail(200)) if match]
        complaints = [line for line in said if not _PROBING.search(line)] or said[-1:]
        kernel = f"; its kernel said: {complaints[0][:400]}" if complaints else ""
        return GuestError(
            f"came up without OP-TEE{kernel}",
            where=self.name,
            hint='the domain needs `tee = "optee"`, Xen a mediator (CONFIG_TEE, CONFIG_OPTEE), OP-TEE'
            " CFG_NS_VIRTUALIZATION=y and a partition for each guest (CFG_VIRT_GUEST_COUNT, dom0 included)",
        )


def address_of(number: int) -> str:
    """The address of Linux guest ``number`` (from 1) on the guests' bridge."""
    if not 1 <= number <= MOST_GUESTS:
        raise ValueError(f"guest number {number} is not 1 to {MOST_GUESTS}")
    return f"192.168.77.{10 + number}"


def create_linux_guest(
    dom0: Dom0,
    name: str,
    number: int,
    *,
    port_name: str,
    console: ConsoleLike,
    memory_mib: int,
    vcpus: int = 1,
    tee: bool = True,
    kernel: str = "/boot/domu/Image",
    ramdisk: str = "/boot/domu/ramdisk",
    arguments: str = "",
) -> LinuxGuest:
    """Create a Linux domU, join its console with ``port_name`` and let it run; does not wait for it.

    ``arguments`` are added to its kernel's command line. Raises GuestError when xl refuses.
    """
    # panic=1: a kernel that panics ends its domain instead of spinning, and gives its OP-TEE partition back.
    # Its tests of its own ciphers take a second or two.
    words = ["console=hvc0", "rdinit=/init", "panic=1", "cryptomgr.notests"]
    words += [f"medcheck.ip={address_of(number)}", f"medcheck.name={name}"]
    config = GuestConfig(
        name, kernel, ramdisk, " ".join([*words, *arguments.split()]), memory_mib, vcpus, tee
    )  # fmt: skip
    domid = dom0.xl.create_attached(config, port_name)
    return LinuxGuest(dom0, name, number, domid, console, tee=tee)

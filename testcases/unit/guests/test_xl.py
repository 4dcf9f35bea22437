# SPDX-License-Identifier: GPL-2.0-or-later
"""xl's configuration, its tables and its errors."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.common.errors import GuestError, UsageError
from framework.guests.ssh import Completed
from framework.guests.xl import DomainInfo, GuestConfig, Xl, parse_list


class _Dom0:
    """Answers commands from a list and keeps what was asked."""

    def __init__(self, *answers: tuple[int, bytes, bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, bytes]] = []

    def __call__(self, command: str, stdin: bytes) -> Completed:
        self.asked.append((command, stdin))
        return Completed(command, "dom0", *self.answers.pop(0))


def test_a_configuration_reads_as_xl_wants_it():
    text = GuestConfig("vm1", "/boot/Image", "/boot/ramdisk", "console=hvc0", 256, 2).render()
    assert text.splitlines() == [
        'name = "vm1"',
        'kernel = "/boot/Image"',
        'ramdisk = "/boot/ramdisk"',
        'extra = "console=hvc0"',
        "memory = 256",
        "vcpus = 2",
        'tee = "optee"',
        'vif = [ "bridge=xenbr0" ]',
        'on_poweroff = "destroy"',
        'on_reboot = "destroy"',
        'on_crash = "destroy"',
    ]


def test_what_a_guest_shall_not_have_is_not_mentioned():
    text = GuestConfig("probe", "/k", tee=False, network=False).render()
    assert all(word not in text for word in ("tee", "vif", "ramdisk", "extra"))


def test_further_keys_win_over_the_usual_ones():
    extra = {"on_crash": "preserve", "cpus": ["0", "1"], "nomigrate": 1}
    text = GuestConfig("vm", "/k", extra=extra).render()
    assert 'on_crash = "preserve"' in text
    assert 'on_crash = "destroy"' not in text
    assert 'cpus = [ "0", "1" ]' in text
    assert "nomigrate = 1" in text


def test_quotes_and_backslashes_cannot_end_a_value():
    text = GuestConfig("vm", "/k", cmdline='a="b\\c" # d').render()
    assert 'extra = "a=\\"b\\\\c\\" # d"' in text.splitlines()


@pytest.mark.parametrize("cmdline", ["a\nname = 1", "a\0b", "a\x1bb"])
def test_a_value_with_control_characters_is_refused(cmdline):
    with pytest.raises(UsageError, match="cannot stand"):
        GuestConfig("vm", "/k", cmdline=cmdline).render()


@pytest.mark.parametrize("name", ["", "a b", "-x", "a;reboot", "x" * 64, "a/b"])
def test_a_name_that_a_shell_or_xl_could_misread_is_refused(name):
    with pytest.raises(UsageError, match="no name"):
        GuestConfig(name, "/k")


def test_a_key_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no key"):
        GuestConfig("vm", "/k", extra={"a = 1\nb": 2})


LIST = """\
Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0   512     1     r-----      43.8
domu1                                        1   256     1     -b----      16.2
a name with spaces                          12  1024     2     --p---   12345.0
(null)                                      13     0     1     ---s-d       0.1
"""


def test_the_table_of_domains_is_read_row_by_row():
    assert parse_list(LIST) == [
        DomainInfo(0, "Domain-0", 512, 1, "r-----", 43.8),
        DomainInfo(1, "domu1", 256, 1, "-b----", 16.2),
        DomainInfo(12, "a name with spaces", 1024, 2, "--p---", 12345.0),
        DomainInfo(13, "(null)", 0, 1, "---s-d", 0.1),
    ]


def test_lines_that_are_no_domain_are_passed_over():
    assert parse_list("libxl: warning: something 1 2 3\n\nName ID\n") == []


def test_a_domain_is_created_with_its_console_in_one_command():
    dom0 = _Dom0((0, b"domid 7\n", b""))
    assert Xl(dom0).create_attached(GuestConfig("vm1", "/k"), "guest0") == 7
    ((command, config),) = dom0.asked
    order = ["virtio-ports", "xl create -q -p", "xl domid vm1", "attach-console $id guest0", "xl unpause $id"]
    assert [command.index(part) for part in order] == sorted(command.index(part) for part in order)
    assert config == GuestConfig("vm1", "/k").render().encode()


def test_a_domain_stays_paused_unless_told_otherwise():
    dom0 = _Dom0((0, b"domid 3\n", b""), (0, b"domid 4\n", b""))
    xl = Xl(dom0)
    assert xl.create(GuestConfig("a", "/k")) == 3
    assert xl.create(GuestConfig("b", "/k"), paused=False) == 4
    assert ["unpause" in command for command, _ in dom0.asked] == [False, True]


NO_PRIVCMD = b"xencall: error: Could not obtain handle on privileged command interface: No such file or directory"
NAME_TAKEN = b"""\
libxl: error: libxl_domain.c:1:libxl__domain_rename: Domain 5:Domain with name "vm" already exists.
libxl: error: libxl_create.c:1:initiate_domain_create: cannot make domain: -6"""
NO_QEMU = b"libxl: info: libxl_x86.c:1: qemu-xen is unavailable: No such file or directory"
NO_MEMORY = b"""\
xc: error: panic: xg_dom_boot.c:122: xc_dom_boot_mem_init: can't allocate low memory for domain: Out of memory
libxl: error: libxl_dom.c:585:libxl__build_dom: xc_dom_boot_mem_init failed: Operation not permitted
libxl: error: libxl_create.c:1709:domcreate_rebuild_done: Domain 3:cannot (re-)build domain: -3
libxl: error: libxl_domain.c:1182:libxl__destroy_domid: Domain 3:Non-existant domain"""


@pytest.mark.parametrize(
    ("said", "tee", "hint"),
    [
        (b"libxl: error: domain creation fail: No such device", True, "CFG_VIRT_GUEST_COUNT"),
        (b"libxl: error: domain creation fail: Invalid argument", True, "no mediator"),
        (b'Domain with name "vm" already exists.', True, "destroy the other"),
        (b"panic: failed to open file '/nope': No such file or directory", True, "paths in dom0"),
        (b"libxl: failed to free memory for the domain", True, "less memory"),
        (b"libxl: error: domain creation fail: Invalid argument", False, None),
        (b"libxl: error: x: domain creation fail: Permission denied", True, "different versions"),
        (b"libxl: error: libxl.c:1:libxl_get_physinfo: getting physinfo: Permission denied", True, "different version"),
        (NO_PRIVCMD, True, "xen-privcmd"),
        (NO_PRIVCMD + b"\nlibxl: error: cannot open libxc handle: No such file or directory", True, "xen-privcmd"),
        (NO_QEMU + b"\nlibxl: error: libxl_create.c:1: domain creation fail: No such device", True, "GUEST_COUNT"),
        (NO_QEMU, True, None),
        (NO_MEMORY, True, "less memory"),
        (b"libxl: error: domain creation fail: Device or resource busy", True, None),
        (b"libxl: error: x: something else: No such file or directory", True, None),
        (b"libxl: error: x: something else: Permission denied", True, None),
        (b"libxl: error: x: getting physinfo: Permission denied\nlibxl: error: y: unheard of", True, None),
        (NAME_TAKEN, True, "destroy the other"),
    ],
)
def test_a_creation_that_fails_says_why_in_our_words_and_xls(said, tee, hint):
    dom0 = _Dom0((3, b"", said))
    with pytest.raises(GuestError) as caught:
        Xl(dom0).create(GuestConfig("vm", "/k", tee=tee))
    assert all(line in caught.value.what for line in said.decode().splitlines())
    assert (hint in caught.value.hint) if hint else caught.value.hint is None


def test_a_creation_without_domid_is_no_success():
    with pytest.raises(GuestError):
        Xl(_Dom0((0, b"", b""))).create(GuestConfig("vm", "/k"))


def test_a_domain_that_is_gone_is_none_and_another_failure_is_an_error():
    gone = (1, b"", b"Error: Domain '9' does not exist.\n")
    dom0 = _Dom0(gone, (0, LIST.encode(), b""), (1, b"", b"broken"))
    xl = Xl(dom0)
    assert xl.find(9) is None
    assert xl.find(12) == DomainInfo(12, "a name with spaces", 1024, 2, "--p---", 12345.0)
    with pytest.raises(GuestError, match="broken"):
        xl.find(1)


def test_a_console_port_with_an_odd_name_never_reaches_the_shell():
    with pytest.raises(UsageError):
        Xl(_Dom0()).attach_console(1, "guest0; reboot")


def test_numbers_of_any_length_do_no_harm():
    nines = "9" * 5000
    (found,) = parse_list(f"vm {nines[:100]} {nines[:50]} 1 -b---- 1.0\n")
    assert (found.domid, found.memory_mib) == (10**18 - 1, 10**18 - 1)
    assert parse_list(f"vm 1 256 1 -b---- {nines}\nvm 1 256 1 -b---- 1.2.3\nvm \u0663 256 1 -b---- 1.0\n") == []
    assert Xl(_Dom0((0, f"domid {nines}\n".encode(), b""))).create(GuestConfig("vm", "/k")) == 10**18 - 1
    for said in (nines, "", "-1", "x", "\u0663"):
        with nullcontext() if said == nines else pytest.raises(GuestError, match="said no number"):
            assert Xl(_Dom0((0, f"{said}\n".encode(), b""))).domid("vm") == 10**18 - 1


def test_a_table_without_end_is_read_to_a_limit():
    begin = time.thread_time()
    assert len(parse_list("vm 1 256 1 -b---- 1.0\n" * 100_000)) == 4096
    assert parse_list(" " * 10_000_000 + "1 " * 10_000_000) == []
    assert time.thread_time() - begin < 2.0


_WORDS = st.sampled_from(
    ["vm", " ", "\t", "1", "9" * 30, "-b----", "1.0", "1.2.3", "\u0663", "(null)", "\r", "error: ", "libxl: ",
     "already exists", ": No such file or directory", "domain creation fail"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(_WORDS | st.text(max_size=5), max_size=8).map("".join), max_size=5).map("\n".join))
def test_nothing_that_xl_says_breaks_the_reader(text):
    for info in parse_list(text):
        assert 0 <= info.domid < 10**18
    with pytest.raises(GuestError, match="was not created"):
        Xl(_Dom0((1, b"", text.encode()))).create(GuestConfig("vm", "/k"))


def test_info_gives_pairs():
    dom0 = _Dom0((0, b"host   : dom0\nxen_caps : xen-3.0-aarch64 hvm\nnonsense\n", b""))
    assert Xl(dom0).info() == {"host": "dom0", "xen_caps": "xen-3.0-aarch64 hvm"}


def test_an_xl_that_crashes_points_at_the_tools():
    with pytest.raises(GuestError, match="killed by signal 11") as caught:
        Xl(_Dom0((139, b"", b"Segmentation fault\n"))).create(GuestConfig("vm", "/k"))
    assert "--xen-tools tree" in caught.value.hint

"""xl's configuration, its tables and its errors."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    ("said", "tee", "hint"),
    [
        (b"libxl: error: domain creation fail: No such device", True, "CFG_VIRT_GUEST_COUNT"),
        (b"libxl: error: domain creation fail: Invalid argument", True, "no mediator"),
        (b'Domain with name "vm" already exists.', True, "destroy the other"),
        (b"panic: failed to open file '/nope': No such file or directory", True, "paths in dom0"),
        (b"libxl: failed to free memory for the domain", True, "less memory"),
        (b"libxl: error: domain creation fail: Invalid argument", False, None),
    ],
)
def test_a_creation_that_fails_says_why_in_our_words_and_xls(said, tee, hint):
    dom0 = _Dom0((3, b"", said))
    with pytest.raises(GuestError) as caught:
        Xl(dom0).create(GuestConfig("vm", "/k", tee=tee))
    assert said.decode() in caught.value.what
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


def test_info_gives_pairs():
    dom0 = _Dom0((0, b"host   : dom0\nxen_caps : xen-3.0-aarch64 hvm\nnonsense\n", b""))
    assert Xl(dom0).info() == {"host": "dom0", "xen_caps": "xen-3.0-aarch64 hvm"}

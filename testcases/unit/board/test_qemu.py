# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line and identity, and the host's speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.board import qemu
from framework.board.spec import BoardSpec
from framework.common import host_speed as hostspeed
from framework.common.errors import UsageError

SPEC = BoardSpec.load("default")


def after(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_every_console_has_its_own_channel() -> None:
    fds = {name: 10 + number for number, name in enumerate([*qemu.console_names(SPEC), "qmp"])}
    argv = qemu.device_argv(SPEC, fds)
    assert after(argv, "-serial") == ["chardev:xen", "chardev:optee"]
    assert after(argv, "-chardev") == [f"socket,id={name},fd={fd}" for name, fd in fds.items()]
    ports = [word for word in after(argv, "-device") if word.startswith("virtserialport")]
    assert len(ports) == SPEC.guest_slots


def test_ram_is_anonymous_or_a_shared_file_or_a_private_view() -> None:
    def memory(ram: qemu.Ram | None) -> str:
        return after(qemu.machine_argv(SPEC, ram), "-object")[0]

    assert memory(None) == "memory-backend-memfd,id=m,size=3072M,share=on"
    assert memory(qemu.Ram(Path("/a,b"))).endswith("mem-path=/a,,b,share=on")
    assert memory(qemu.Ram(Path("/a"), share=False)).endswith("mem-path=/a,share=off,readonly=on,rom=off")


def test_plugin_and_its_arguments() -> None:
    assert qemu.plugin_argv(None, []) == []
    assert qemu.plugin_argv(Path("/p.so"), ["out=/x,y", "codec=none"]) == [
        "-plugin",
        "file=/p.so,out=/x,,y,codec=none",
    ]
    with pytest.raises(UsageError, match="without a plugin"):
        qemu.plugin_argv(None, ["out=x"])


def test_guests_have_no_network_but_what_comes_in() -> None:
    fds = dict.fromkeys([*qemu.console_names(SPEC), "qmp"], 3)
    (network,) = after(qemu.device_argv(SPEC, fds), "-netdev")
    assert {"restrict=on", "hostfwd=tcp:127.0.0.1:0-:22"} <= set(network.split(","))


def test_files_of_a_bundle_are_its_own_and_those_of_another_program_are_the_systems() -> None:
    bundle = ["/b/ld.so", "--inhibit-cache", "--library-path", "/b/lib", "--argv0", "qemu", "/b/bin/qemu"]
    own = [Path("/b/ld.so"), Path("/b/lib"), Path("/b/bin/qemu")]
    assert qemu.program_files(bundle) == own
    assert {Path("/usr/bin/qemu"), Path("/usr"), Path("/lib64")} <= set(qemu.program_files(["/usr/bin/qemu"]))


@pytest.fixture
def fresh_factor() -> None:
    hostspeed.host_factor.cache_clear()


@pytest.mark.usefixtures("fresh_factor")
def test_slow_host_waits_longer_and_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDCHECK_HOST_FACTOR", raising=False)
    seconds = iter([4 * hostspeed._REFERENCE_SECONDS])
    monkeypatch.setattr(hostspeed, "_measure", lambda: next(seconds))
    assert hostspeed.host_factor() == pytest.approx(4)
    assert hostspeed.host_factor() == pytest.approx(4)
    hostspeed.host_factor.cache_clear()


@pytest.mark.usefixtures("fresh_factor")
def test_a_sample_that_was_interrupted_does_not_make_all_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDCHECK_HOST_FACTOR", raising=False)
    usual = hostspeed._REFERENCE_SECONDS
    samples = iter([20 * usual, *[1.5 * usual] * (hostspeed._SAMPLES - 3), 9 * usual, 1.5 * usual])
    monkeypatch.setattr(hostspeed, "_sample", lambda: next(samples))
    assert hostspeed.host_factor() == pytest.approx(1.5)
    hostspeed.host_factor.cache_clear()


@pytest.mark.usefixtures("fresh_factor")
@pytest.mark.parametrize(("measured", "factor"), [(0.1, 1.0), (1000.0, 20.0)])
def test_factor_has_bounds(monkeypatch: pytest.MonkeyPatch, measured: float, factor: float) -> None:
    monkeypatch.delenv("MEDCHECK_HOST_FACTOR", raising=False)
    monkeypatch.setattr(hostspeed, "_measure", lambda: measured * hostspeed._REFERENCE_SECONDS)
    assert hostspeed.host_factor() == factor
    hostspeed.host_factor.cache_clear()


@pytest.mark.usefixtures("fresh_factor")
def test_factor_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCHECK_HOST_FACTOR", "2.5")
    assert hostspeed.host_factor() == 2.5
    hostspeed.host_factor.cache_clear()
    monkeypatch.setenv("MEDCHECK_HOST_FACTOR", "fast")
    with pytest.raises(UsageError, match="MEDCHECK_HOST_FACTOR is 'fast'"):
        hostspeed.host_factor()

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


def test_root_gives_up_its_uid_only_when_nobody_can_reach_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("framework.board.qemu._open_to_all", lambda path: path != tmp_path / "private")
    assert qemu.choose_uid("auto", [tmp_path / "public"], []) == 65534
    assert qemu.choose_uid("auto", [tmp_path / "public", tmp_path / "private"], []) is None
    assert qemu.choose_uid("keep", [tmp_path / "public"], []) is None
    assert qemu.choose_uid(1234, [tmp_path / "private"], []) == 1234
    with pytest.raises(UsageError, match="run_as is 'me'"):
        qemu.choose_uid("me", [], [])


def test_unprivileged_user_stays_who_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert qemu.choose_uid("auto", [Path("/")], []) is None


def test_file_below_a_private_folder_is_not_open_to_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    (folder / "file").touch(mode=0o644)
    assert not qemu._open_to_all(folder / "file")
    assert qemu._open_to_all(Path("/etc/passwd"))


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

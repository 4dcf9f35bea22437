# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong on a real board is named, at once, with its console, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware import Builder
from framework.artifacts.lock import Lock
from framework.artifacts.stack import Overrides
from framework.board.janitor import Janitor
from framework.board.spec import BoardSpec
from framework.common.errors import BoardError, GuestCrash, InfrastructureError, UsageError
from framework.common.paths import ROOT, cache_root
from framework.common.progress import Silent
from framework.guests.xtest import run_xtest_in_all
from framework.target.stack import MEDIATOR_TRACE, open_store, prepare_stack
from framework.target.target import Target


def _image(path: Path, code: bytes, trailer: bytes = b"") -> Path:
    """An arm64 Image (Linux Documentation/arch/arm64/booting.rst): header, then ``code`` at offset 64."""
    header = bytearray(64)
    header[0:4] = (0x1400_0010).to_bytes(4, "little")  # b .+64
    header[16:24] = (4096).to_bytes(8, "little")
    header[0x38:0x3C] = b"ARMd"
    path.write_bytes((bytes(header) + code + trailer).ljust(4096, b"\0"))
    return path


@pytest.fixture
def store():
    return open_store(offline=True)


@pytest.mark.artifacts
def test_a_xen_without_mediator_is_refused_before_anything_boots(tmp_path, store):
    xen = _image(tmp_path / "xen", b"\0\0\0\0")
    with pytest.raises(InfrastructureError, match="without a TEE mediator") as caught:
        prepare_stack(Overrides(xen=xen), store, Silent())
    assert "CONFIG_OPTEE" in (caught.value.hint or "")


@pytest.mark.artifacts
@pytest.mark.parametrize(
    ("name", "message"),
    [("xen", "not an arm64 Image"), ("kernel", "not an arm64 Image"), ("optee", "does not exist")],
)
def test_files_that_cannot_be_what_they_should_be_are_usage_errors(tmp_path, store, name, message):
    path = tmp_path / "file"
    if name != "optee":
        path.write_bytes(bytes(100))
    with pytest.raises(UsageError, match=message):
        prepare_stack(Overrides(**{name: path}), store, Silent())


@pytest.mark.artifacts
def test_a_xen_that_does_not_boot_is_named_with_its_console(tmp_path, store):
    # `b .`: it runs, and says nothing for ever.
    xen = _image(tmp_path / "xen", (0x1400_0000).to_bytes(4, "little"), MEDIATOR_TRACE)
    stack = replace(prepare_stack(Overrides(), store, Silent()), xen=xen)
    target = Target(BoardSpec.load("default"), stack, tmp_path / "run")
    target.idle_timeout = 4
    with target, pytest.raises(BoardError) as caught:
        target.boot(Silent())
    assert "xen" in f"{caught.value.where} {caught.value.what}"
    assert b"Booting Trusted Firmware" in (tmp_path / "run/consoles/xen.log").read_bytes()
    assert not target.board.alive


@pytest.mark.artifacts
@pytest.mark.slow
def test_an_op_tee_without_virtualization_is_named(tmp_path, store):
    builder = Builder(store, Lock.load(), BuildCache(cache_root()), Silent())
    folder = builder.optee(CFG_NS_VIRTUALIZATION="n", CFG_VIRT_GUEST_COUNT=1)
    stack = prepare_stack(Overrides(optee=folder), store, Silent())
    target = Target(BoardSpec.load("default"), stack, tmp_path / "run")
    with target, pytest.raises(InfrastructureError, match="no OP-TEE that it can mediate") as caught:
        target.boot(Silent())
    assert "CFG_NS_VIRTUALIZATION=y" in (caught.value.hint or "")


def test_trusted_applications_of_another_release_are_named(target, domu):
    """A TA whose signature does not fit is refused by OP-TEE as one of another release is."""
    crypt = "/usr/lib/optee_armtz/cb3e5ba0-adf1-11e0-998b-0002a5d5c51b.ta"
    domu.ssh.run(f"printf '\\377\\377\\377\\377' | dd of={crypt} bs=1 seek=64 conv=notrunc").check()
    result = run_xtest_in_all([domu], ["1004"], alive=target.check_alive)[domu.name]
    assert not result.good
    assert result.reason is not None
    assert "refuses xtest's trusted applications" in result.reason
    assert "0xffff000" in result.reason


@pytest.mark.slow
def test_a_domu_that_panics_is_named_and_the_other_one_goes_on(target, domus):
    first, second = list(domus.values())[:2]
    begun = threading.Event()
    second.ssh.run("echo 1 >/proc/sys/kernel/sysrq").check()

    def panic() -> None:
        begun.wait()
        second.dom0.run(f"xl sysrq {second.domid} c")

    killer = threading.Thread(target=panic)
    killer.start()
    results = run_xtest_in_all(
        [first, second], ["1001", "1004", "6001"], on_case=lambda _g, _c: begun.set(), alive=target.check_alive
    )
    begun.set()
    killer.join()
    assert results[first.name].good
    crash = results[second.name].crash
    assert isinstance(crash, GuestCrash)
    assert second.console.name in (crash.where or "")
    assert "panic" in crash.what.lower()


def _medcheck(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "framework.cli", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "MEDCHECK_OFFLINE": "1"},
        # A shell that puts pytest into the background makes it, and all that it starts, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _wait_for(file: Path, text: bytes, process: subprocess.Popen[bytes]) -> None:
    while not (file.exists() and text in file.read_bytes()):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.1)  # a poll of a file that another process writes; its end is watched above


@pytest.mark.slow
@pytest.mark.artifacts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_qemu_outlives_a_run_that_is_interrupted_hung_up_or_killed(tmp_path, number):
    report = tmp_path / "report"
    process = _medcheck("run", "--offline", "--profile", "smoke", "--report", str(report))
    _wait_for(report / "consoles/xen.log", b"Booting Trusted Firmware", process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("qemu-system-aarch64" in " ".join(child.cmdline()) for child in children)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, alive
    if number == signal.SIGKILL:
        Janitor().sweep()
    else:
        assert process.returncode == 130, errors.decode()
        assert (report / "report.json").exists()
        assert b"Traceback" not in errors
    assert (report / "consoles/xen.log").stat().st_size > 0
    Janitor().assert_clean()

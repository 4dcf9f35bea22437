# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU from its own bundle: it runs, and nothing of the host's libraries gets into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from framework.artifacts.cache import BuildCache
from framework.artifacts.elf import Elf
from framework.artifacts.lock import Lock
from framework.artifacts.qemu_bundle import QemuBundle, qemu_bundle
from framework.artifacts.store import Store
from framework.artifacts.unpack import unpack_deb
from framework.common.errors import ArtifactError
from framework.common.paths import cache_root

_X86_64 = 62

pytestmark = pytest.mark.artifacts


@pytest.fixture(scope="module")
def bundle() -> QemuBundle:
    store = Store(cache_root(), offline=os.environ.get("MEDCHECK_OFFLINE") == "1")
    return qemu_bundle(store, Lock.load(), BuildCache(cache_root()))


def run(bundle: QemuBundle, *arguments: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*bundle.argv(), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment or bundle.environment(),
    )
    return done.stdout


def test_it_runs_and_is_the_pinned_version(bundle: QemuBundle) -> None:
    pinned = Lock.load().pins["qemu-system-arm"].version
    assert bundle.version in pinned
    assert f"QEMU emulator version {bundle.version} " in run(bundle, "--version")


def test_every_library_is_the_bundles_own(bundle: QemuBundle) -> None:
    loader, *options, program = bundle.argv()
    done = subprocess.run([loader, *options, "--list", program], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "linux-vdso" not in line]
    assert len(lines) > 40
    assert not [line for line in lines if str(bundle.root) not in line]


def test_it_knows_the_boards_machine_and_devices(bundle: QemuBundle) -> None:
    assert "virt " in run(bundle, "-machine", "help")
    devices = run(bundle, "-machine", "virt", "-device", "help")
    assert all(device in devices for device in ("virtio-net-device", "virtio-serial-device", "loader"))


def test_no_package_is_pinned_that_nothing_needs(bundle: QemuBundle, tmp_path: Path) -> None:
    libraries = bundle.root / "usr/lib/x86_64-linux-gnu"
    todo = list(Elf((bundle.root / "usr/bin/qemu-system-aarch64").read_bytes(), _X86_64).needed())
    reached: set[str] = set()
    while todo:
        name = todo.pop().split("/")[-1]
        if name not in reached and (libraries / name).exists():
            reached.add(name)
            todo += Elf((libraries / name).read_bytes(), _X86_64).needed()
    pins = [pin for pin in Lock.load().group("qemu") if pin.name != "qemu-system-arm"]
    for name, path in Store(cache_root(), offline=True).fetch(pins).items():
        members: list[str] = []
        unpack_deb(path, tmp_path, lambda member, seen=members: seen.append(member))  # type: ignore[misc]
        assert reached & {member.split("/")[-1] for member in members}, f"nothing needs {name}"


def test_the_hosts_loader_variables_are_kept_out(bundle: QemuBundle) -> None:
    spoiled = {**os.environ, "LD_PRELOAD": "/nowhere/evil.so", "LD_LIBRARY_PATH": "/nowhere"}
    kept = bundle.environment(spoiled)
    assert not [name for name in kept if name.startswith("LD_")]
    assert "QEMU emulator" in run(bundle, "--version", environment=kept)


def test_a_program_that_is_not_there_is_said(bundle: QemuBundle) -> None:
    with pytest.raises(ArtifactError, match="no qemu-system-vax"):
        bundle.argv("qemu-system-vax")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware builds: what they see of the user's environment, what they show, and a configuration that is wrong."""

from __future__ import annotations

import os
import select
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import firmware
from framework.artifacts.cache import BuildCache
from framework.artifacts.firmware_config import FirmwareConfig
from framework.artifacts.lock import Lock
from framework.artifacts.make import run_logged
from framework.common.errors import BuildError, ConfigError
from framework.common.paths import IMAGES
from framework.common.progress import Silent, SilentTask

FAKE_MAKE = """#!/bin/sh
# As Xen's build leaves it; the environment is what the test asks for.
echo "$@" >>xen-syms
env >xen
"""


class _Listed(Silent):
    def __init__(self) -> None:
        self.titles: list[str] = []

    def task(self, title: str, total: int | None = None, unit: str = "") -> AbstractContextManager[SilentTask]:
        self.titles.append(title)
        return super().task(title, total, unit)  # type: ignore[return-value]


class _Store:
    def fetch(self, pins: Any) -> dict[str, Path]:
        return {pin.name: Path(pin.path) for pin in pins}


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> firmware.Builder:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("make", FAKE_MAKE), ("aarch64-linux-gnu-gcc", "#!/bin/sh\necho gcc 1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(
        firmware, "unpack_source", lambda _orig, _debian, out: (out / "xen/arch/arm/configs").mkdir(parents=True)
    )
    return firmware.Builder(_Store(), Lock.load(), BuildCache(tmp_path / "cache"), _Listed())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["CFLAGS", "LDFLAGS", "MAKEFLAGS", "CROSS_COMPILE", "CPATH", "PYTHONPATH", "V"])
def test_a_build_sees_nothing_of_the_users_environment(
    builder: firmware.Builder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "mine")
    seen = dict(line.split("=", 1) for line in (builder.xen("debug") / "xen").read_text().splitlines())
    assert set(seen) - {"PWD", "OLDPWD", "SHLVL", "_", "TMPDIR"} == {"PATH", "LC_ALL", "SOURCE_DATE_EPOCH"}
    assert seen["SOURCE_DATE_EPOCH"] == str(FirmwareConfig.load().epoch)


def test_xen_is_configured_and_built_in_one_task(builder: firmware.Builder) -> None:
    steps = (builder.xen("release") / "xen-syms").read_text().splitlines()
    assert [line.split()[-1] for line in steps] == ["medcheck_defconfig", "xen"]
    assert builder.progress.titles == ["building Xen (release)"]  # type: ignore[attr-defined]


def test_the_patches_are_in_the_source_that_is_built(builder: firmware.Builder, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    (tools / "patch").write_text('#!/bin/sh\necho "$4" >>patched\n')
    (tools / "patch").chmod(0o755)
    # The files that TF-A's build leaves; what was patched stands where the FIP does.
    (tools / "make").write_text(
        """#!/bin/sh
for word; do case $word in BUILD_BASE=*) base=${word#*=}/qemu/release; esac; done
mkdir -p "$base"
echo bl1 >"$base/bl1.bin"
cp patched "$base/fip.bin"
"""
    )
    optee = tmp_path / "optee"
    optee.mkdir()
    for name in firmware.OPTEE_FILES:
        (optee / name).touch()
    flash = (builder.flash(optee) / "flash.bin").read_bytes()
    found = flash[256 << 10 :].rstrip(b"\0").decode().splitlines()
    assert found == [str(IMAGES / name) for name in FirmwareConfig.load().tfa.patches]
    assert found


def test_a_failed_step_ends_the_build(builder: firmware.Builder, tmp_path: Path) -> None:
    (tmp_path / "tools/make").write_text("#!/bin/sh\necho no such board\nexit 2\n")
    with pytest.raises(BuildError, match=r"exited with 2.*\n +no such board"):
        builder.xen("debug")


def test_what_a_build_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "held")
    held: list[int] = []
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not held:
            # There is a reader as soon as the child has it open.
            held.append(os.open(tmp_path / "held", os.O_RDONLY))
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_logged("x", ["sh", "-c", f"sleep 1000 >{tmp_path / 'held'} & wait"], tmp_path, tmp_path / "log")
    # Its end is seen when the last holder is gone.
    assert select.select(held, [], [], 30)[0] and os.read(held[0], 1) == b""
    os.close(held[0])


GOOD = (IMAGES / "firmware.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("source_date_epoch: 1700000000", "source_date_epoch: soon", 4, "a number of seconds"),
        ("  group: optee-source\n", "", 7, "optee: group is missing"),
        ("  group: xen-source", "  group: xen-source\n  flavour: x", None, "xen: unknown key flavour"),
        ("    PLATFORM: vexpress-qemu_armv8a", "    PLATFORM: [a]", 9, "optee: PLATFORM: expected a text"),
        ("patches: [patches/tfa/0001-secure-dram-for-several-guests.patch]", "patches: x", None, "expected a list"),
        ("    release:", "    fast:", None, "unknown key fast; known are debug, release"),
        ("xen:\n", "xen\n", None, "not valid YAML"),
        (GOOD, "", 1, "the file is empty"),
        (GOOD, "- 1", 1, "expected a mapping"),
    ],
)
def test_a_wrong_configuration_names_its_line(tmp_path: Path, old: str, new: str, line: int | None, what: str) -> None:
    assert old in GOOD
    path = tmp_path / "firmware.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=what) as caught:
        FirmwareConfig.load(path)
    where = str(caught.value.where)
    assert where.startswith(f"{path}:")
    assert line is None or where == f"{path}:{line}"

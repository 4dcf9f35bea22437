# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace plugin and its payload, built once for all tests of the plugin."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from framework.artifacts.cache import BuildCache
from framework.artifacts.lock import Lock
from framework.artifacts.qemu_bundle import qemu_bundle
from framework.artifacts.store import Store
from framework.common.errors import MedcheckError
from framework.common.paths import cache_root
from framework.trace.build import PluginOptions, compile_plugin
from testcases.integration.trace_payload import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """``MEDCHECK_TEST_QEMU`` (a command line) replaces the pinned QEMU."""
    folder = tmp_path_factory.mktemp("plugin")
    given = os.environ.get("MEDCHECK_TEST_QEMU")
    try:
        qemu = shlex.split(given) if given else _pinned_qemu()
    except MedcheckError as error:
        pytest.skip(f"no QEMU: {error}")
    return Bench(qemu, compile_plugin(folder), folder)


def _pinned_qemu() -> list[str]:
    root = cache_root()
    return qemu_bundle(Store(root, offline=True), Lock.load(), BuildCache(root)).argv()


@pytest.fixture(scope="session")
def recorded(bench: Bench) -> Path:
    """A trace of the payload with everything in it, beside QEMU's own log of exceptions."""
    path = bench.folder / "all.mct"
    log = ("-d", "int", "-D", str(bench.folder / "int.log"))
    done = bench.run(PluginOptions(out=path, others=True), extra=log)
    assert done.returncode == 0, done.stderr
    return path

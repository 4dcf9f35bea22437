# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of this machine: what is missing or broken, and how to fix it (``medcheck doctor``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from framework.artifacts.cache import BuildCache
from framework.artifacts.download import Downloader
from framework.artifacts.lock import Lock, Pin
from framework.artifacts.mirror import MIRROR_VARIABLE, Mirrors
from framework.artifacts.qemu_bundle import GROUP, qemu_bundle
from framework.artifacts.stack import all_pins
from framework.artifacts.store import Store
from framework.board.janitor import Janitor
from framework.board.walls import landlock_version
from framework.common.errors import ArtifactError, ExitCode, MedcheckError, redacted
from framework.common.paths import IMAGES, cache_root
from framework.common.terminal import Output

_DISK_MIB = 3000
_MEMORY_MIB = 3500


@dataclass(frozen=True)
class Finding:
    """Result of one check. ``state`` is good, note (works, but) or bad; ``cure`` is what to do."""

    subject: str
    state: str
    text: str
    cure: str = ""


def examine(offline: bool, mirrors: str | None, output: Output) -> int:
    """Run all checks; exit code 0 if nothing is bad, else 3. Raises UsageError for ``mirrors`` that are none."""
    if mirrors is not None:
        # An option that makes no sense is not this machine's fault.
        Mirrors.discover(option=mirrors, environ={})
    findings: list[Finding] = []
    archive = (lambda: _mirrors(mirrors, offline), _downloads)
    checks = (_host_packages, _disk, _memory, _shm, *archive, _qemu, _walls, _orphans)
    for check in checks:
        findings += list(_guarded(check))
    # What keeps the whole cache from being used is found by each that looks into it.
    findings = list(dict.fromkeys(findings))
    signs = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines = [f"{signs[f.state]} {f.subject}: {f.text}" + (f"\n     -> {f.cure}" if f.cure else "") for f in findings]
    output.finish([finding.__dict__ for finding in findings], "\n".join(lines))
    return ExitCode.INFRASTRUCTURE if any(f.state == "bad" for f in findings) else ExitCode.GOOD


def host_packages() -> Iterator[tuple[str, str, bool]]:
    """(proof, package, present) for each line of ``images/host-packages.txt``."""
    for line in (IMAGES / "host-packages.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            proof, package = line.split()
            present = Path(proof).exists() if proof.startswith("/") else shutil.which(proof) is not None
            yield proof, package, present


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except MedcheckError as error:
        yield Finding(error.where or "medcheck", "bad", error.what, error.hint or "")


def _host_packages() -> Iterator[Finding]:
    missing = [package for _proof, package, present in host_packages() if not present]
    if missing:
        yield Finding(
            "host packages", "bad", f"missing: {', '.join(missing)}", f"sudo apt-get install {' '.join(missing)}"
        )
    else:
        yield Finding("host packages", "good", "all present")


def _disk() -> Iterator[Finding]:
    root = cache_root()
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free >> 20
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        yield Finding("cache", "bad", f"{root} cannot be written", "set MEDCHECK_CACHE to a folder of yours")
    elif free < _DISK_MIB:
        yield Finding("cache", "bad", f"{free} MiB free below {root}; about {_DISK_MIB} are needed", "./medcheck clean")
    else:
        yield Finding("cache", "good", f"{root}, {free} MiB free")


def _memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available >> 20
    state = "good" if available >= _MEMORY_MIB else "note"
    yield Finding("memory", state, f"{available} MiB available; a board takes up to {_MEMORY_MIB}")
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", "good" if cores >= 2 else "note", f"{cores}; a board keeps two busy while it boots")


def _shm() -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK):
        yield Finding("/dev/shm", "good", f"{shutil.disk_usage(shm).free >> 20} MiB free")
    else:
        yield Finding("/dev/shm", "note", "not writable: snapshots need more time", "mount a tmpfs")


def _mirrors(option: str | None, offline: bool) -> Iterator[Finding]:
    if offline:
        yield Finding("mirrors", "note", "not checked: --offline")
        return
    lock = Lock.load()
    # With everything here, no mirror is needed before the next `lock --update`.
    silent = "bad" if _missing(all_pins(lock)) else "note"
    try:
        mirrors = Mirrors.discover(option=option)
    except ArtifactError as error:
        yield Finding("mirrors", silent, error.what, error.hint or "")
        return
    answers = Downloader(mirrors).ask(lock.group(GROUP)[0])
    if None in answers.values():
        silent = "note"
    for base, reason in answers.items():
        if reason is None:
            yield Finding(redacted(f"mirror {base}"), "good", f"answers (named by {mirrors.origin})")
        else:
            cure = f"check network and proxy, or name others in {MIRROR_VARIABLE}"
            yield Finding(redacted(f"mirror {base}"), silent, redacted(reason), cure)


def _downloads() -> Iterator[Finding]:
    missing = _missing(all_pins(Lock.load()))
    if missing:
        size = sum(pin.size for pin in missing) / 1e6
        text = f"{len(missing)} files ({size:.0f} MB) are not in the cache"
        yield Finding("downloads", "note", text, "./medcheck fetch")
    else:
        yield Finding("downloads", "good", "all in the cache and verified")


def _missing(pins: Sequence[Pin]) -> list[Pin]:
    store = Store(cache_root(), offline=True)
    missing = []
    for pin in pins:
        try:
            store.path(pin)
        except MedcheckError:
            missing.append(pin)
    return missing


def _qemu() -> Iterator[Finding]:
    root, lock = cache_root(), Lock.load()
    if _missing(lock.group("qemu")):
        yield Finding("QEMU", "note", "not downloaded yet, so it could not be tried", "./medcheck fetch")
        return
    bundle = qemu_bundle(Store(root, offline=True), lock, BuildCache(root))
    yield Finding("QEMU", "good", f"{bundle.version} runs from its own bundle")


def _walls() -> Iterator[Finding]:
    version = landlock_version()
    if version:
        yield Finding("walls", "good", f"Landlock {version} keeps QEMU from all files but a board's own")
    else:
        text = "this kernel has no Landlock: a guest that broke out of QEMU would have this user's files"
        yield Finding("walls", "note", text, "boot with lsm=landlock,..., or run as root: QEMU gets a user of its own")


def _orphans() -> Iterator[Finding]:
    orphans = list(Janitor().orphans())
    if orphans:
        yield Finding("orphans", "bad", f"{len(orphans)} processes of dead runs", "./medcheck clean")
    else:
        yield Finding("orphans", "good", "none")

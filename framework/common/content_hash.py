# SPDX-License-Identifier: GPL-2.0-or-later
"""Content hashes of files, and a record of the files that were hashed and have not been touched since.

A stamp (device, inode, size, times) proves a file unchanged during one boot of the machine, because the kernel
itself sets the change time on every write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.common.digest import sha256_file as sha256
from framework.common.digest import short_key
from framework.common.paths import atomic_write_text, cache_root


def key_of(label: str, inputs: Mapping[str, object], form: int) -> str:
    """Return the cache key of the product of these inputs; a path stands for its content.

    ``form`` is the version of the files' layout.
    """
    return short_key([form, label, plain(inputs)])


def plain(value: object) -> Any:
    """Turn inputs into equivalent JSON; a path becomes the hash of the file's content."""
    if isinstance(value, Path):
        return content_hash(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a snapshot cannot depend on a {type(value).__name__}")


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file; remembered per user and boot of the machine while its stamp stays."""
    memory = cache_root() / "hashes" / hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    stamp = [_boot_id(), *_stamp(path)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    value = sha256(path)
    with contextlib.suppress(OSError):
        atomic_write_text(memory, json.dumps({"stamp": stamp, "sha256": value}), mode=0o600)
    return value


def _stamp(path: Path) -> list[int]:
    seen = path.stat()
    # Not the blocks: a clone that reads a hole of a file on tmpfs gives it a page of zeros.
    return [seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def mark_verified(path: Path, digest: str) -> None:
    """Remember that a file was seen to have this digest."""
    note = json.dumps({"boot": _boot_id(), "stamp": _stamp(path), "digest": digest})
    atomic_write_text(path.with_name(".verified"), note)


def is_verified(path: Path, digest: str) -> bool:
    """Whether the file was verified since the machine booted and not touched since."""
    try:
        note = json.loads(path.with_name(".verified").read_text())
        return bool(note == {"boot": _boot_id(), "stamp": _stamp(path), "digest": digest})
    except (OSError, ValueError):
        return False

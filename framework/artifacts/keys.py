# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH keys of one machine's boards: made once in the cache, never committed, put into the guests' images."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from framework.common.locks import flock
from framework.common.paths import atomic_write
from framework.common.qemu_ids import READERS


def guard(path: Path) -> None:
    """Keep a file with a guest's private key from all but this user and its QEMUs.

    QEMU reads it as a member of the group :data:`READERS` when medcheck is root, and else as this user.
    """
    # A cache that cannot be written is good to read from; where nothing can be given away QEMU stays who we are.
    with contextlib.suppress(OSError):
        found = path.stat()
        if os.geteuid() == 0 and (found.st_gid, found.st_mode & 0o777) != (READERS, 0o640):
            path.chmod(0o600)
            os.chown(path, 0, READERS)
            path.chmod(0o640)
        elif os.geteuid() != 0 and found.st_mode & 0o077:
            path.chmod(0o600)


@dataclass(frozen=True)
class GuestKeys:
    """Paths of the client's key (OpenSSH format), its public line, and the guests' host key (dropbear format)."""

    client: Path
    client_public: Path
    host: Path
    host_public: Path


def guest_keys(folder: Path) -> GuestKeys:
    """The keys in ``folder``; made there at the first call."""
    keys = GuestKeys(
        folder / "id_ed25519", folder / "id_ed25519.pub", folder / "host_dropbear", folder / "host_ed25519.pub"
    )

    def complete() -> bool:
        return all(path.exists() for path in (keys.client, keys.client_public, keys.host, keys.host_public))

    if complete():
        return keys  # no lock needed: a cache that cannot be written is good to read from
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with flock(folder / ".lock"):
        if not complete():
            _make_pair(keys.client, keys.client_public, _openssh)
            _make_pair(keys.host, keys.host_public, _dropbear)
    return keys


def _make_pair(private: Path, public: Path, encode: Callable[[Ed25519PrivateKey], bytes]) -> None:
    key = Ed25519PrivateKey.generate()
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )  # fmt: skip
    with atomic_write(private, 0o600) as stream:
        stream.write(encode(key))
    with atomic_write(public) as stream:
        stream.write(line + b" medcheck\n")


def _openssh(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    """Dropbear's own format: the key type, then seed and public key in one string (src/ed25519.c)."""
    raw = serialization.Encoding.Raw
    seed = key.private_bytes(raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    point = key.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
    kind = b"ssh-ed25519"
    return struct.pack(">I", len(kind)) + kind + struct.pack(">I", 64) + seed + point

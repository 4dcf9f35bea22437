# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources of files: an option, the environment, or the archives that this machine's apt already uses.

No host name stands in the repository. Sources, in this order: ``--mirror``, ``MEDCHECK_MIRROR``, apt's own
source lists; ``MEDCHECK_SNAPSHOT`` is asked last, for files that have left the mirrors. Each is a comma
separated list of base URLs or folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from framework.common.errors import ArtifactError, UsageError

MIRROR_VARIABLE = "MEDCHECK_MIRROR"
SNAPSHOT_VARIABLE = "MEDCHECK_SNAPSHOT"

_ONE_LINE = re.compile(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+\S+")
_PROXY = re.compile(r'Acquire::(https?)::Proxy\s+"([^"]+)"\s*;', re.IGNORECASE)


@dataclass(frozen=True)
class Mirrors:
    """Base URLs or folders that carry a Debian archive, best first; ``origin`` says who named them."""

    bases: tuple[str, ...]
    snapshots: tuple[str, ...] = ()
    origin: str = "the caller"
    proxies: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def discover(
        cls, *, option: str | None = None, environ: Mapping[str, str] = os.environ, apt_root: Path = Path("/")
    ) -> Mirrors:
        """Find the mirrors of this machine.

        :raises UsageError: an entry of the option or a variable is neither URL nor existing folder.
        :raises ArtifactError: no mirror is named anywhere.
        """
        snapshots = _listed(environ.get(SNAPSHOT_VARIABLE, ""), SNAPSHOT_VARIABLE)
        proxies = _apt_proxies(apt_root)
        for value, origin in ((option, "--mirror"), (environ.get(MIRROR_VARIABLE), MIRROR_VARIABLE)):
            if value is None or (not value and origin == MIRROR_VARIABLE):
                continue
            bases = _listed(value, origin)
            if not bases:
                raise UsageError(f"{origin} names no mirror", hint="give a URL or an existing folder, or leave it out")
            return cls(bases, snapshots, origin, proxies)
        uris = _apt_uris(apt_root)
        debian = [uri for uri in uris if urlsplit(uri).path.rstrip("/").endswith("/debian")]
        others = [uri for uri in uris if "security" not in uri and "ubuntu" not in uri]
        if found := tuple(dict.fromkeys(debian or others)):
            return cls(found, snapshots, "apt's sources", proxies)
        if snapshots:
            return cls((), snapshots, SNAPSHOT_VARIABLE, proxies)
        raise ArtifactError(
            "no Debian mirror is known: this machine's apt sources name none",
            where=str(apt_root / "etc/apt"),
            hint=f"give --mirror URL or set {MIRROR_VARIABLE} to a Debian mirror's base URL "
            "(below which pool/ and dists/ lie) or to a local folder; several are separated by commas",
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Mirrors, then snapshot archives."""
        return self.bases + self.snapshots


def local_folder(base: str) -> Path | None:
    """The folder that ``base`` names, as plain path or ``file:`` URL; None if it is on the network."""
    if base.startswith("file:"):
        return Path(unquote(urlsplit(base).path))
    return None if "://" in base else Path(base)


def _listed(value: str, origin: str) -> tuple[str, ...]:
    """The entries of an option or variable."""
    result = []
    for entry in (part.strip() for part in value.split(",")):
        if not entry:
            continue
        folder = local_folder(entry)
        if folder is None and not _is_http(entry):
            raise UsageError(f"{origin}: {entry} is not an http, https or file URL", hint="or name an existing folder")
        if folder is not None and not folder.expanduser().is_dir():
            raise UsageError(f"{origin}: {folder} is not a folder", hint="give a URL or an existing folder")
        result.append(entry.rstrip("/") if folder is None else str(folder.expanduser().absolute()))
    return tuple(result)


def _is_http(entry: str) -> bool:
    try:
        parts = urlsplit(entry)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _apt_uris(root: Path) -> list[str]:
    """The URIs of all enabled binary entries, one-line and deb822 style, in apt's order."""
    folder = root / "etc/apt"
    files = [folder / "sources.list"]
    if (folder / "sources.list.d").is_dir():
        files += sorted((folder / "sources.list.d").iterdir())
    uris: list[str] = []
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found = _one_line(text) if path.suffix == ".list" else _deb822(text)
        for uri in found:
            uris += _usable(uri, root)
    return uris


def _one_line(text: str) -> Iterable[str]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match:
            yield match[1]


def _deb822(text: str) -> Iterable[str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            match[1].lower(): match[2].split() for match in re.finditer(r"^(\S+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"]) != ["no"]:
            yield from fields.get("uris", ())


def _usable(uri: str, root: Path) -> list[str]:
    """``uri`` without trailing slash if its kind is usable; a mirror list in a file gives its entries."""
    if uri.startswith("mirror+file:"):
        listing = root / urlsplit(uri.removeprefix("mirror+")).path.lstrip("/")
        if not listing.is_file():
            return []
        entries = [line.split()[0] for line in listing.read_text().splitlines() if line.split("#")[0].strip()]
        return [found for entry in entries for found in _usable(entry, root)]
    return [uri.rstrip("/")] if uri.startswith(("http://", "https://", "file:")) else []


def _apt_proxies(root: Path) -> dict[str, str]:
    """Proxies in apt's configuration; those in the environment are honoured by requests itself."""
    folder = root / "etc/apt"
    files = [folder / "apt.conf"]
    if (folder / "apt.conf.d").is_dir():
        files += sorted((folder / "apt.conf.d").iterdir())
    found: dict[str, str] = {}
    for path in files:
        if path.is_file():
            for scheme, proxy in _PROXY.findall(path.read_text(encoding="utf-8", errors="replace")):
                if proxy.upper() != "DIRECT":
                    found[scheme.lower()] = proxy
    return found

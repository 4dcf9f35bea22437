# SPDX-License-Identifier: GPL-2.0-or-later
"""Download of one file from the first source that has it: resumed, retried, and accepted only with the pinned hash."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from urllib.request import getproxies

import requests
import urllib3

from framework.artifacts.lock import Pin
from framework.artifacts.mirror import MIRROR_VARIABLE, SNAPSHOT_VARIABLE, Mirrors, local_folder
from framework.common.digest import NO_ROOM, NO_ROOM_HINT, READ_ONLY, sha256_file
from framework.common.errors import ArtifactError

_CHUNK = 1 << 17
_TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and seconds without a single byte; there is no limit on the whole."""
_TEXT_LIMIT = 16 << 20
"""Bytes of an unpinned text, many times what a release file has."""
_ASK_TIMEOUT = (3.0, 3.0)
_ATTEMPTS = 4
"""Tries in a row without progress after which a source is given up."""


class Cancelled(Exception):  # noqa: N818 - an order, not an error
    """Another download failed in a way that ends all of them."""


class _Absent(Exception):  # noqa: N818 - an answer
    """The source does not have this file."""


class _Unusable(Exception):  # noqa: N818 - an answer
    """The source has something else, or refuses."""


class _Stale(_Unusable):
    """The partial file of an earlier try does not match the source's."""


class _Interrupted(Exception):  # noqa: N818 - an event
    """The transfer broke; trying again may help."""


@dataclass
class _Meter:
    """Reports how much of one file is there, also when that becomes less."""

    advance: Callable[[int], None]
    shown: int = 0

    def set(self, size: int) -> None:
        self.advance(size - self.shown)
        self.shown = size


class Downloader:
    """Fetches pinned files from mirrors; one object serves several threads and prefers what answered."""

    def __init__(self, mirrors: Mirrors, cancel: threading.Event | None = None, *, backoff: float = 0.5) -> None:
        """``cancel`` ends all transfers; ``backoff`` is the seconds before a second try, then doubled."""
        self._mirrors = mirrors
        self._cancel = cancel or threading.Event()
        self._backoff = backoff
        self._local = threading.local()
        self._answered: str | None = None
        self._silent: set[str] = set()

    def fetch(self, pin: Pin, part: Path, advance: Callable[[int], None]) -> None:
        """Leave the whole verified content of ``pin`` in ``part``, going on with what already lies there.

        :raises ArtifactError: no source has it, or the disk refuses.
        :raises Cancelled: the ``cancel`` event was set.
        """
        reasons: list[tuple[str, Exception]] = []
        meter = _Meter(advance)
        for base, location in self._locations(pin):
            try:
                if isinstance(location, Path):
                    self._copy(location, pin, part, meter)
                else:
                    self._transfer(base, location, pin, part, meter)
            except (_Absent, _Unusable) as error:
                meter.set(0)
                reasons.append((str(location), error))
            except OSError as error:
                meter.set(0)
                raise disk_error(error, part, pin.size) from error
            else:
                self._answered = base
                return
        raise _failure(pin, reasons)

    def text(self, path: str) -> str:
        """Return a small unpinned text file below a base URL, such as a suite's release file.

        :raises ArtifactError: no mirror has it.
        """
        reasons: list[str] = []
        for base in self._mirrors.all:
            folder = local_folder(base)
            try:
                if folder is None:
                    data = self._bounded(f"{base}/{quote(path)}")
                elif (folder / path).is_file():
                    with (folder / path).open("rb") as stream:
                        data = stream.read(_TEXT_LIMIT + 1)
                else:
                    raise _Absent("no such file")
                if len(data) > _TEXT_LIMIT:
                    raise _Unusable(f"sends more than {_TEXT_LIMIT >> 20} MiB")
            except (OSError, requests.RequestException, urllib3.exceptions.HTTPError, _Absent, _Unusable) as error:
                reasons.append(f"{base}: {_brief(error)}")
            else:
                return data.decode("utf-8", errors="replace")
        raise ArtifactError(
            f"no mirror has {path}", where="; ".join(reasons) or None, hint="check --mirror and the network"
        )

    def ask(self, pin: Pin) -> dict[str, str | None]:
        """Ask each mirror for ``pin``, within seconds; by mirror, None if it has it, else the reason."""
        bases = self._mirrors.all
        with ThreadPoolExecutor(max(1, len(bases))) as pool:
            return dict(zip(bases, pool.map(lambda base: self._asked(base, pin), bases), strict=True))

    def _asked(self, base: str, pin: Pin) -> str | None:
        folder = local_folder(base)
        if folder is not None:
            return None if any(path.is_file() for path in _inside(folder, pin)) else f"has no {pin.filename}"
        try:
            with self._session().get(_url(base, pin), stream=True, timeout=_ASK_TIMEOUT) as reply:
                return None if reply.ok else f"{reply.status_code} {reply.reason} for {pin.filename}"
        except requests.RequestException as error:
            return _brief(error)

    def _bounded(self, url: str) -> bytes:
        """Return the body of ``url``'s answer, cut a little above the limit."""
        data = b""
        headers = {"Accept-Encoding": "identity"}
        with self._session().get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
            reply.raise_for_status()
            for chunk in reply.raw.stream(_CHUNK, decode_content=False):
                data += chunk
                if len(data) > _TEXT_LIMIT:
                    break
        return data

    def _locations(self, pin: Pin) -> Iterator[tuple[str, str | Path]]:
        """Yield the locations to try: the pin's own sources, the mirror that answered last, the others, snapshots."""
        for source in pin.sources:
            folder = local_folder(source)
            if folder is None:
                yield source, source
            else:
                yield from ((source, path) for path in _inside(folder, pin))
        for base in sorted(self._mirrors.bases, key=lambda base: base != self._answered) + list(
            self._mirrors.snapshots
        ):
            folder = local_folder(base)
            if folder is None:
                yield base, _url(base, pin)
            else:
                yield from ((base, path) for path in _inside(folder, pin))

    def _copy(self, source: Path, pin: Pin, part: Path, meter: _Meter) -> None:
        if not source.is_file():
            raise _Absent("no such file")
        if (size := source.stat().st_size) != pin.size:
            raise _Unusable(f"has {size} bytes instead of the pinned {pin.size}")
        part.unlink(missing_ok=True)
        shutil.copyfile(source, part)
        self._verify(pin, part, meter)

    def _transfer(self, base: str, url: str, pin: Pin, part: Path, meter: _Meter) -> None:
        failures, furthest, delay = 0, 0, self._backoff
        while True:
            start = _usable_size(part, pin)
            try:
                if start < pin.size:
                    self._receive(url, pin, part, start, meter)
                self._verify(pin, part, meter)
            except _Stale:
                part.unlink(missing_ok=True)
                meter.set(0)
                if start == 0:
                    raise
            except _Interrupted as error:
                reached = _usable_size(part, pin)
                failures = 0 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= (1 if base in self._silent else _ATTEMPTS):
                    self._silent.add(base)
                    raise _Unusable(f"{error} (tried {failures} times in a row)") from error
                if self._cancel.wait(delay if failures else 0):
                    raise Cancelled from error
                delay = delay * 2 if failures else self._backoff
            else:
                self._silent.discard(base)
                return

    def _receive(self, url: str, pin: Pin, part: Path, start: int, meter: _Meter) -> None:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with self._session().get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
                offset = _accepted_offset(reply, start, pin.size)
                with part.open("r+b" if offset else "wb") as stream:
                    stream.seek(offset)
                    for chunk in reply.raw.stream(_CHUNK, decode_content=False):
                        if self._cancel.is_set():
                            raise Cancelled
                        offset += len(chunk)
                        if offset > pin.size:
                            raise _Stale(f"sends more than the pinned {pin.size} bytes")
                        stream.write(chunk)
                        meter.set(offset)
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            raise _Interrupted(_brief(error)) from error
        except requests.RequestException as error:
            raise _Unusable(_brief(error)) from error
        if offset < pin.size:
            raise _Interrupted(f"the body ended after {offset} of {pin.size} bytes")

    def _verify(self, pin: Pin, part: Path, meter: _Meter) -> None:
        meter.set(pin.size)
        found = sha256_file(part)
        if found != pin.sha256:
            part.unlink()
            raise _Stale(f"has other content than pinned (SHA-256 {found[:16]}… instead of {pin.sha256[:16]}…)")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            if self._mirrors.proxies and not getproxies():
                session.proxies.update(self._mirrors.proxies)
        return session


def disk_error(error: OSError, path: Path, size: int) -> ArtifactError:
    """Turn an operating system error while writing below the cache into one for the user."""
    where = str(error.filename or path)
    if error.errno in NO_ROOM:
        return ArtifactError(
            f"no room for {size / 1e6:.1f} MB more: {error.strerror}",
            where=where,
            hint=NO_ROOM_HINT,
        )
    if error.errno in READ_ONLY:
        return ArtifactError(
            f"the cache cannot be written: {error.strerror}",
            where=where,
            hint="make the folder writable for you, or set MEDCHECK_CACHE to one that is",
        )
    return ArtifactError(f"the cache cannot be used: {error.strerror or error}", where=where, hint="check this disk")


def _url(base: str, pin: Pin) -> str:
    # Some archives behind object stores read a bare + as a space, so it is escaped as apt does.
    return f"{base}/{quote(pin.path, safe='/~:')}"


def _inside(folder: Path, pin: Pin) -> tuple[Path, ...]:
    """Return the paths at which a local folder may hold the file: laid out as an archive, or flat."""
    return folder / pin.path, folder / pin.filename


def _usable_size(part: Path, pin: Pin) -> int:
    """Return how many bytes of an earlier try can be used."""
    try:
        size = part.stat().st_size
    except FileNotFoundError:
        return 0
    if size > pin.size:
        part.unlink()
        return 0
    return size


def _accepted_offset(reply: requests.Response, start: int, size: int) -> int:
    """Return the offset in the file at which the body of ``reply`` begins."""
    status = reply.status_code
    if status in (404, 410):
        raise _Absent(f"{status} {reply.reason}")
    if status == 416:
        raise _Stale(f"{status} {reply.reason}")
    if status == 429 or status >= 500:
        raise _Interrupted(f"{status} {reply.reason}")
    if status not in (200, 206):
        raise _Unusable(f"{status} {reply.reason}")
    offset = 0
    if status == 206:
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Stale(f"answers with the wrong range {reply.headers.get('Content-Range')}")
        offset = start
    length = reply.headers.get("Content-Length")
    if length is not None and length.isdecimal() and int(length) != size - offset:
        text = f"has {offset + int(length)} bytes instead of the pinned {size}"
        raise _Stale(text) if offset else _Unusable(text)
    return offset


def _brief(error: BaseException) -> str:
    """The innermost reason of a network error, without the layers of wrapping around it."""
    text = str(error)
    for inner in (error.__cause__, error.__context__, *error.args):
        if isinstance(inner, BaseException):
            return _brief(getattr(inner, "reason", None) or inner)
    return text.rsplit(": ", 1)[-1] if "object at 0x" in text else text or type(error).__name__


def _failure(pin: Pin, reasons: list[tuple[str, Exception]]) -> ArtifactError:
    """Return the error that lists the sources tried, what each answered, and what to do."""
    if reasons and all(isinstance(error, _Absent) for _, error in reasons):
        what = f"{pin.name} {pin.version}: no source has {pin.filename} any more (404)"
        hint = (
            "the archive has moved on: pin anew with `medcheck lock --update`, or keep this version by "
            f"setting {SNAPSHOT_VARIABLE} to a snapshot archive's base URL (the one below which pool/ lies), "
            f"or {MIRROR_VARIABLE} to a folder that has the file"
        )
    elif not reasons:
        what = f"{pin.name}: no source is known for {pin.filename}"
        hint = f"give --mirror or set {MIRROR_VARIABLE}"
    else:
        what = f"{pin.name} {pin.version}: {pin.filename} cannot be had"
        hint = f"check the network and proxy, or name other sources with --mirror or {MIRROR_VARIABLE}"
    listed = "".join(f"\n    {place}: {error}" for place, error in reasons)
    return ArtifactError(what + listed, hint=hint)

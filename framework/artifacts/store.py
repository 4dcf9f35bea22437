# SPDX-License-Identifier: GPL-2.0-or-later
"""The download cache: files by hash, fetched once, verified at every use.

Layout below the root: ``blobs/<sha256>`` (read-only), ``partial/<sha256>`` (unfinished, gone on with later)
and ``locks/<sha256>.lock``, so that several runs at once download a file once.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from framework.artifacts.download import Cancelled, Downloader, disk_error
from framework.artifacts.lock import Pin
from framework.artifacts.mirror import Mirrors
from framework.common.digest import NO_ROOM, NO_ROOM_HINT, Checker, make_writable_parent
from framework.common.errors import ArtifactError
from framework.common.locks import announced
from framework.common.progress import Progress, Silent

_WORKERS = 6
_SPARE = 16 << 20
"""Bytes that stay free on the disk: a full disk breaks more than this download."""


class Store:
    """Pinned files on this machine."""

    def __init__(
        self,
        root: Path,
        mirrors: Mirrors | None = None,
        offline: bool = False,
        progress: Progress | None = None,
        *,
        backoff: float = 0.5,
    ) -> None:
        """Nothing is touched until a file is asked for.

        ``mirrors`` None looks for them when the first download is needed. ``offline`` forbids every download.
        ``backoff`` is the wait before a broken transfer's first retry, in seconds.
        """
        self.root = root
        self._mirrors = mirrors
        self._offline = offline
        self._progress = progress or Silent()
        self._backoff = backoff
        self._checker = Checker()

    def path(self, pin: Pin) -> Path:
        """The verified file of one pin; see :meth:`fetch`."""
        return self.fetch([pin])[pin.name]

    def blob(self, pin: Pin) -> Path:
        """Return the path of ``pin``'s file, whether or not it is there and good."""
        return self.root / "blobs" / pin.sha256

    def fetch(self, pins: Iterable[Pin]) -> dict[str, Path]:
        """Verified files by pin name; what is missing or damaged is downloaded, several at once.

        :raises ArtifactError: a file cannot be had; when several cannot, all of them are named.
        """
        wanted = list(pins)
        lacking: dict[str, Pin] = {}
        for pin in wanted:
            if pin.sha256 not in lacking and not self._good(pin):
                lacking[pin.sha256] = pin
        if lacking:
            self._download(list(lacking.values()))
        return {pin.name: self.blob(pin) for pin in wanted}

    def _good(self, pin: Pin) -> bool:
        try:
            return self._checker.matches(self.blob(pin), pin.size, pin.sha256)
        except OSError as error:
            raise disk_error(error, self.blob(pin), pin.size) from error

    def _download(self, pins: list[Pin]) -> None:
        damaged = [pin for pin in pins if self.blob(pin).exists()]
        total = sum(pin.size for pin in pins)
        if self._offline:
            state = "damaged in" if damaged else "not in"
            named = ", ".join(pin.name for pin in pins[:5]) + (", …" if len(pins) > 5 else "")
            raise ArtifactError(
                f"{len(pins)} files ({total / 1e6:.1f} MB) are {state} the cache, "
                f"and --offline forbids to fetch them: {named}",
                where=str(self.root),
                hint="run `medcheck fetch` once with a network",
            )
        for pin in damaged:
            self._progress.say(f"{pin.name}: the cached file is damaged and is fetched again")
        self._check_room(total)
        cancel = threading.Event()
        downloader = Downloader(self._known_mirrors(pins), cancel, backoff=self._backoff)
        failures: list[ArtifactError] = []
        with self._progress.task(f"downloading {len(pins)} files", total=total, unit="B") as task:
            guard = threading.Lock()

            def advance(amount: int) -> None:
                with guard:
                    task.advance(amount)

            with ThreadPoolExecutor(min(_WORKERS, len(pins)), thread_name_prefix="download") as pool:
                try:
                    futures = [pool.submit(self._one, downloader, pin, advance, cancel) for pin in pins]
                    for future in as_completed(futures):
                        try:
                            future.result()
                        except ArtifactError as error:
                            failures.append(error)
                        except Cancelled:
                            continue
                except BaseException:
                    cancel.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        # What the disk refuses is refused to every file alike, and said once.
        reasons = dict.fromkeys(
            error.what if error.where is None else f"{error.where}: {error.what}" for error in failures
        )
        if len(reasons) == 1:
            raise failures[0]
        if failures:
            listed = "\n".join(f"  {reason}" for reason in reasons)
            raise ArtifactError(
                f"{len(failures)} of {len(pins)} files cannot be had:\n{listed}", hint=failures[0].hint
            ) from failures[0]

    def _one(self, downloader: Downloader, pin: Pin, advance: Callable[[int], None], cancel: threading.Event) -> None:
        """Fetch one file under its lock; a disk that refuses ends the other downloads too."""
        part, blob = self.root / "partial" / pin.sha256, self.blob(pin)
        if cancel.is_set():
            raise Cancelled
        try:
            for folder in (part.parent, blob.parent, self.root / "locks"):
                make_writable_parent(folder)
            waiting = f"{pin.name}: another run downloads it; waiting for that"
            lock = self.root / "locks" / f"{pin.sha256}.lock"
            with announced(lock, lambda: self._progress.say(waiting), cancel) as held:
                if not held:
                    raise Cancelled
                if self._checker.matches(blob, pin.size, pin.sha256):
                    advance(pin.size)
                    return
                downloader.fetch(pin, part, advance)
                part.chmod(0o444)
                part.replace(blob)
        except OSError as error:
            cancel.set()
            raise disk_error(error, part, pin.size) from error
        except ArtifactError as error:
            if isinstance(error.__cause__, OSError):
                cancel.set()
                if error.__cause__.errno in NO_ROOM:
                    # The unfinished file is worth nothing on a disk that has no room for it.
                    part.unlink(missing_ok=True)
            raise

    def _known_mirrors(self, pins: list[Pin]) -> Mirrors:
        if self._mirrors is None:
            try:
                self._mirrors = Mirrors.discover()
            except ArtifactError:
                if not all(pin.sources for pin in pins):
                    raise
                return Mirrors(())
        return self._mirrors

    def _check_room(self, size: int) -> None:
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        disk = shutil.disk_usage(existing)
        if disk.total and disk.free < size + _SPARE:
            raise ArtifactError(
                f"no room: {size / 1e6:.1f} MB are to be downloaded and {disk.free / 1e6:.1f} MB are free",
                where=str(self.root),
                hint=NO_ROOM_HINT,
            )

"""Locations of bundled images and the cache, and atomic file writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from framework.common.errors import UsageError

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the package ``framework``."""

ROOT = PACKAGE.parent
"""The checkout, or the folder that the wheel was installed into."""

INSTALLED = (PACKAGE / "images").is_dir()
"""Whether this is an installed wheel, which has images and suite inside its package, and no tests of the project's own.

In a checkout (and an editable installation of it) they lie beside the package.
"""

IMAGES = (PACKAGE if INSTALLED else ROOT) / "images"
"""The project's own inputs: lock file, board descriptions, recipes, configuration, patches."""

SUITE = PACKAGE / "suite" if INSTALLED else ROOT / "testcases" / "suite"
"""The conformance suite: pytest files, run with the configuration ``suite.ini`` beside them."""


def cache_root() -> Path:
    """The folder that holds downloads, builds, images and snapshots.

    ``MEDCHECK_CACHE`` wins, then ``XDG_CACHE_HOME/medcheck``, then ``~/.cache/medcheck``.

    :raises UsageError: there is no such home.
    """
    explicit = os.environ.get("MEDCHECK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if explicit:
            return Path(explicit).expanduser().absolute()
        return (Path(base).absolute() if base else Path.home() / ".cache") / "medcheck"
    except RuntimeError as error:
        raise UsageError(
            f"the cache's folder cannot be found: {error}", where=explicit, hint="set MEDCHECK_CACHE to a folder"
        ) from error


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` for writing bytes; rename it to ``path`` only if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write ``text`` as UTF-8 to ``path``, all of it or nothing."""
    with atomic_write(path, mode) as stream:
        stream.write(text.encode())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages and source packages, unpacked without root and without trusting what is inside them.

Nothing is written outside the destination, no device is made, no owner is changed, no script is run. Whatever is wrong
with an archive is an ArtifactError, and what a small one unpacks to is bounded.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import zstandard

from framework.artifacts.guest_path import climbs_out
from framework.common.errors import ArtifactError, BuildError, InfrastructureError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_BROKEN = (
    tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile,
    # What tarfile and the calls of the system raise over numbers and names that cannot be, and links in a circle.
    ValueError, OverflowError, RecursionError, RuntimeError, MemoryError,
)  # fmt: skip
_CONFLICTS = (FileExistsError, IsADirectoryError, NotADirectoryError)
_IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
_MOST = 4 << 30
"""Bytes that one archive may unpack to."""
_MOST_AT_ONCE = 4 << 20
_MAGICS = {
    b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x5d\0\0": "xz", b"\x28\xb5\x2f\xfd": "zst",
}  # fmt: skip
_LONGEST_MAGIC = 6

Select = Callable[[str], bool]


def unpack_deb(deb: Path, dest: Path, select: Select | None = None) -> None:
    """Unpack the files of a binary package into ``dest`` (made if missing; other packages may be there).

    ``select`` is asked for each member's path without leading ``./`` and says whether it is wanted. Modes and
    times are kept; set-user-ID bits are not. A symbolic link to an absolute path is kept as it is, for it is
    meant for the tree's later root; nothing is ever written through it.

    :raises ArtifactError: not a package, damaged, or a member would land outside ``dest`` or is a device.
    """
    with _reading(deb), _data_tar(deb) as tar:
        _extract(tar, dest, deb.name, select or (lambda _: True), reopen=lambda: _data_tar(deb))


def unpack_source(orig: Path, debian: Path, dest: Path) -> None:
    """Unpack a 3.0 (quilt) source package into ``dest``: upstream, ``debian``, and its patches applied.

    :raises ArtifactError: an archive is damaged or unsafe.
    :raises BuildError: a patch does not apply.
    :raises InfrastructureError: the host has no ``patch``.
    """
    if dest.exists() and any(dest.iterdir()):
        raise InfrastructureError("the destination is not empty", where=str(dest), hint="unpack into a new folder")
    with _reading(orig):
        with _tar(orig) as tar:
            top = {_clean(member.name, orig.name).split("/")[0] for member in tar if _clean(member.name, orig.name)}
        if len(top) != 1:
            raise ArtifactError(f"expected one folder at the top, found {len(top)}", where=orig.name)
        prefix = f"{top.pop()}/"
        with _tar(orig) as tar:
            _extract(tar, dest, orig.name, lambda _: True, strip=prefix, reopen=lambda: _tar(orig))
    shutil.rmtree(dest / "debian", ignore_errors=True)
    with _reading(debian), _tar(debian) as tar:
        _extract(tar, dest, debian.name, lambda name: name == "debian" or name.startswith("debian/"))
    _apply_series(dest)


def _apply_series(tree: Path) -> None:
    series = tree / "debian/patches/series"
    if not series.is_file():
        return
    program = shutil.which("patch")
    if program is None:
        raise InfrastructureError("the program `patch` is missing", hint="install your distribution's package `patch`")
    for line in series.read_text(encoding="utf-8").splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        strip = words[1] if len(words) > 1 else "-p1"
        file = tree / "debian/patches" / words[0]
        if not file.is_file():
            raise BuildError("listed in the series, but not there", where=f"debian/patches/{words[0]}")
        command = [
            program,
            strip,
            "--batch",
            "--forward",
            "--no-backup-if-mismatch",
            "--silent",
            "-i",
            str(file),
        ]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(
                f"does not apply:\n{done.stdout.strip()}\n{done.stderr.strip()}",
                where=f"debian/patches/{words[0]}",
            )


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn what the readers of damaged archives raise into one error that names the archive."""
    try:
        yield
    except _BROKEN as error:
        raise ArtifactError(
            f"the archive is damaged: {error}",
            where=archive.name,
            hint="remove the file; it is fetched again",
        ) from error
    except _CONFLICTS as error:
        raise ArtifactError(
            f"refused: {error.filename} is a folder for one member and a file for another", where=archive.name
        ) from error
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        raise ArtifactError(f"refused: a member cannot be written: {error}", where=archive.name) from error


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, read as a stream; what it is compressed with is seen from its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_MAGIC)
        stream.seek(0)
        kind = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), "")
        with _stream(stream, kind) as tar:
            yield tar


@contextmanager
def _stream(packed: IO[bytes], kind: str) -> Iterator[tarfile.TarFile]:
    body: IO[bytes]
    if kind == "xz":
        body = cast("IO[bytes]", lzma.LZMAFile(packed))  # noqa: SIM115 - the caller closes the file
    elif kind == "gz":
        body = cast("IO[bytes]", gzip.GzipFile(fileobj=packed))
    elif kind == "bz2":
        body = cast("IO[bytes]", bz2.BZ2File(packed))
    elif kind == "zst":
        body = cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(packed))
    else:
        body = packed
    with tarfile.TarFile(fileobj=cast("IO[bytes]", _Bounded(body))) as tar:
        yield tar


@contextmanager
def _data_tar(deb: Path) -> Iterator[tarfile.TarFile]:
    """The ``data.tar`` member of a package, read as a stream."""
    with deb.open("rb") as stream:
        if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise ArtifactError("not a Debian package (no ar archive)", where=deb.name)
        for name, size in _ar_members(stream, deb.name):
            if name.startswith("data.tar"):
                body = cast("IO[bytes]", _Window(stream, size))
                kind = name.removeprefix("data.tar").lstrip(".")
                if kind not in ("", "xz", "gz", "bz2", "zst"):
                    raise ArtifactError(f"cannot read {name}", where=deb.name)
                with _stream(body, kind) as tar:
                    yield tar
                return
    raise ArtifactError("not a Debian package (no data.tar in it)", where=deb.name)


def _ar_members(stream: IO[bytes], where: str) -> Iterator[tuple[str, int]]:
    """Names and sizes; the stream stands at the member's first byte when it is yielded."""
    while header := stream.read(_AR_HEADER):
        size = header[48:58].strip()
        if len(header) != _AR_HEADER or header[58:] != b"`\n" or not size.isdigit():
            raise ArtifactError("the ar archive is damaged", where=where, hint="remove the file; it is fetched again")
        start = stream.tell()
        yield header[:16].decode("ascii", errors="replace").strip().rstrip("/"), int(size)
        stream.seek(start + int(size) + int(size) % 2)


class _Window:
    """The next ``size`` bytes of a stream as a stream of their own."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, amount: int = -1) -> bytes:
        data = self._stream.read(self._left if amount < 0 else min(amount, self._left))
        self._left -= len(data)
        return data


class _Bounded:
    """Unpacked content of ``stream``, forwards only, with a bound on the whole and on each read: tarfile reads
    a header of any size into memory, and a few kilobytes can unpack to any number of zeros."""

    mode = "rb"

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0

    def tell(self) -> int:
        return self._at

    def read(self, amount: int = -1) -> bytes:
        if not 0 <= amount <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {amount} bytes")
        pieces = []
        while amount and (piece := self._stream.read(amount)):
            pieces.append(piece)
            amount -= len(piece)
            self._at += len(piece)
            if self._at > _MOST:
                raise tarfile.ReadError(f"it unpacks to more than {_MOST >> 30} GiB")
        return b"".join(pieces)

    def seek(self, offset: int) -> None:
        if offset < self._at:
            raise tarfile.StreamError("seeking backwards")
        while self._at < offset and self.read(min(offset - self._at, _MOST_AT_ONCE)):
            pass


def _clean(name: str, where: str) -> str:
    """A member's path without ``./``; empty for the root itself."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ArtifactError(f"refused: the member {name!r} points outside the archive", where=where)
    path = posixpath.normpath(name)
    return "" if path == "." else path


def _extract(
    tar: tarfile.TarFile,
    dest: Path,
    where: str,
    select: Select,
    *,
    strip: str = "",
    reopen: Callable[[], object] | None = None,
) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    folders: list[tuple[Path, int, float]] = []
    late: list[tuple[str, Path]] = []
    linked, written = False, 0
    for member in tar:
        cleaned = _clean(member.name, where)
        name = cleaned.removeprefix(strip) if f"{cleaned}/" != strip else ""
        if not name or not select(name):
            continue
        target = _inside(dest, name, where)
        if member.isdir():
            if not target.is_dir():
                _vacate(target)
                target.mkdir(parents=True)
                folders.append((target, member.mode, member.mtime))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isreg():
            # A sparse member says it is large without being it.
            written += member.size
            if written > _MOST:
                raise ArtifactError(f"refused: more than {_MOST >> 30} GiB with {name}", where=where)
            _vacate(target)
            content = tar.extractfile(member)
            assert content is not None, "a regular member has content"
            with target.open("xb") as stream:
                shutil.copyfileobj(content, stream, 1 << 20)
            target.chmod(member.mode & 0o777)
            os.utime(target, (member.mtime, member.mtime))
        elif member.issym():
            _check_link(name, member.linkname, where)
            _vacate(target)
            target.symlink_to(member.linkname)
            linked = True
        elif member.islnk():
            other = _clean(member.linkname, where).removeprefix(strip)
            source = _inside(dest, other, where)
            if source.is_file() and not source.is_symlink():
                _vacate(target)
                os.link(source, target)
            elif reopen is not None:
                late.append((_clean(member.linkname, where), target))
            else:
                raise ArtifactError(f"refused: {name} is a hard link to {other}, which is not there", where=where)
        else:
            raise ArtifactError(f"refused: {name} is a device or another special file", where=where)
    for original, target in late:
        _copy_member(reopen, original, target, where)
    if linked:
        _check_links(dest, where)
    for folder, mode, mtime in reversed(folders):
        # The owner must be able to write into and remove what was unpacked.
        folder.chmod(mode & 0o777 | 0o700)
        os.utime(folder, (mtime, mtime))


def _copy_member(reopen: Callable[[], object] | None, original: str, target: Path, where: str) -> None:
    """A wanted hard link to a member that was not selected: take the content from a second reading."""
    assert reopen is not None
    with reopen() as tar:  # type: ignore[attr-defined]
        for member in tar:
            if member.isreg() and _clean(member.name, where) == original:
                _vacate(target)
                with target.open("xb") as stream:
                    shutil.copyfileobj(tar.extractfile(member), stream)
                target.chmod(member.mode & 0o777)
                return
    raise ArtifactError(f"refused: a hard link to {original}, which is not there", where=where)


def _inside(dest: Path, name: str, where: str) -> Path:
    """Return the path of a member; a link planted by an earlier member must not lead it out of ``dest``."""
    target = dest / name
    root = dest.resolve()
    if not target.parent.resolve().is_relative_to(root):
        raise ArtifactError(f"refused: {name} would be written through a link that leaves the tree", where=where)
    if target.is_symlink() and target.is_dir() and not target.resolve().is_relative_to(root):
        raise ArtifactError(f"refused: {name} is a link that leaves the tree", where=where)
    return target


def _check_link(name: str, link: str, where: str) -> None:
    """A relative link may not climb above the tree; an absolute one may not contain ``..``."""
    if link.startswith("/"):
        escapes = ".." in link.split("/")
    else:
        escapes = posixpath.normpath(posixpath.join(posixpath.dirname(name), link)).split("/")[0] == ".."
    if escapes:
        raise ArtifactError(f"refused: the link {name} -> {link} leaves the tree", where=where)


def _check_links(dest: Path, where: str) -> None:
    """No relative link may climb above the tree on its way through others, wherever those come from.

    Which way a link goes is known only when all of them are there: ``d/../x`` is ``x`` unless ``d`` is a link.
    """
    for parent, folders, files in os.walk(dest):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and climbs_out(dest, path.relative_to(dest).as_posix()):
                link = path.readlink()
                path.unlink()
                raise ArtifactError(
                    f"refused: the link {path.relative_to(dest)} -> {link} leaves the tree", where=where
                )


def _vacate(target: Path) -> None:
    """Remove a file or link in the way, so that nothing is written through it."""
    if target.is_symlink() or target.is_file():
        target.unlink()

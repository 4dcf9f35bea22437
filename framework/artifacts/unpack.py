"""Debian packages and source packages, unpacked without root and without trusting what is inside them.

Nothing is written outside the destination, no device is made, no owner is changed, no script is run.
"""

from __future__ import annotations

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

from framework.common.errors import ArtifactError, BuildError, InfrastructureError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_BROKEN = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)

Select = Callable[[str], bool]


def unpack_deb(deb: Path, dest: Path, select: Select | None = None) -> None:
    """Unpack the files of a binary package into ``dest`` (made if missing; other packages may be there).

    ``select`` is asked for each member's path without leading ``./`` and says whether it is wanted. Modes and
    times are kept; set-user-ID bits are not. A symbolic link to an absolute path is kept as it is, for it is
    meant for the root the tree will have; nothing is ever written through it.

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
        raise InfrastructureError(
            "the destination is not empty", where=str(dest), hint="unpack into a new folder"
        )
    with _reading(orig), tarfile.open(orig, "r:*") as tar:
        top = {
            _clean(member.name, orig.name).split("/")[0] for member in tar if _clean(member.name, orig.name)
        }
        if len(top) != 1:
            raise ArtifactError(f"expected one folder at the top, found {len(top)}", where=orig.name)
        prefix = f"{top.pop()}/"
        _extract(tar, dest, orig.name, lambda _: True, strip=prefix)
    shutil.rmtree(dest / "debian", ignore_errors=True)
    with _reading(debian), tarfile.open(debian, "r:*") as tar:
        _extract(tar, dest, debian.name, lambda name: name == "debian" or name.startswith("debian/"))
    _apply_series(dest)


def _apply_series(tree: Path) -> None:
    series = tree / "debian/patches/series"
    if not series.is_file():
        return
    program = shutil.which("patch")
    if program is None:
        raise InfrastructureError(
            "the program `patch` is missing", hint="install your distribution's package `patch`"
        )
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
                if kind == "zst":
                    body = cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(body))
                elif kind not in ("", "xz", "gz", "bz2"):
                    raise ArtifactError(f"cannot read {name}", where=deb.name)
                mode = "r|" if kind in ("", "zst") else f"r|{kind}"
                with tarfile.open(fileobj=body, mode=mode) as tar:  # type: ignore[call-overload]
                    yield tar
                return
    raise ArtifactError("not a Debian package (no data.tar in it)", where=deb.name)


def _ar_members(stream: IO[bytes], where: str) -> Iterator[tuple[str, int]]:
    """Names and sizes; the stream stands at the member's first byte when it is yielded."""
    while header := stream.read(_AR_HEADER):
        size = header[48:58].strip()
        if len(header) != _AR_HEADER or header[58:] != b"`\n" or not size.isdigit():
            raise ArtifactError(
                "the ar archive is damaged", where=where, hint="remove the file; it is fetched again"
            )
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


def _clean(name: str, where: str) -> str:
    """A member's path without ``./``; empty for the root itself."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ArtifactError(f"refused: the member {name!r} points outside the archive", where=where)
    return posixpath.normpath(name).removeprefix("./").removeprefix(".")


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
        elif member.islnk():
            other = _clean(member.linkname, where).removeprefix(strip)
            source = _inside(dest, other, where)
            if source.is_file() and not source.is_symlink():
                _vacate(target)
                os.link(source, target)
            elif reopen is not None:
                late.append((_clean(member.linkname, where), target))
            else:
                raise ArtifactError(
                    f"refused: {name} is a hard link to {other}, which is not there", where=where
                )
        else:
            raise ArtifactError(f"refused: {name} is a device or another special file", where=where)
    for original, target in late:
        _copy_member(reopen, original, target, where)
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
    """Where a member goes; a link planted by an earlier member must not lead it out of ``dest``."""
    target = dest / name
    root = dest.resolve()
    if not target.parent.resolve().is_relative_to(root):
        raise ArtifactError(
            f"refused: {name} would be written through a link that leaves the tree", where=where
        )
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


def _vacate(target: Path) -> None:
    """Remove a file or link in the way, so that nothing is written through it."""
    if target.is_symlink() or target.is_file():
        target.unlink()

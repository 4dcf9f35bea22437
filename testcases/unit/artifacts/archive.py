# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Debian archive on the loopback interface, with real packages in it and faults on demand."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from framework.artifacts.lock import Pin


def pin_of(name: str, content: bytes, path: str | None = None, **extra: Any) -> Pin:
    """A pin of ``content`` that lies at ``path`` (by default below ``pool/``)."""
    where = path or f"pool/main/{name}/{name}_1.0_all.deb"
    return Pin(name, where, extra.pop("version", "1.0"), len(content), hashlib.sha256(content).hexdigest(), **extra)


@dataclass
class Fault:
    """What goes wrong with one request; each is used once, in the order given."""

    status: int = 0
    cut: int | None = None
    body: bytes | None = None
    no_range: bool = False
    hold: threading.Event | None = None


@dataclass
class Request:
    """One request as the server saw it."""

    path: str
    range: str | None
    encoding: str | None


def open_to_all(folder: Path) -> None:
    """Let every user of this machine reach a temporary folder: pytest closes those above it, as many as there are."""
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()):
            return
        path.chmod(0o755)


@dataclass
class Archive:
    """The server's content by path, its planned faults, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Archive:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/debian"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port: from now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, content: bytes, **extra: Any) -> Pin:
        """Put a file into the pool and return its pin."""
        pin = pin_of(name, content, **extra)
        self.files[pin.path] = content
        return pin

    def asked(self, pin: Pin) -> list[Request]:
        """The requests for one pin."""
        return [request for request in self.requests if request.path == pin.path]


def _handler(archive: Archive) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print no access log."""

        def do_GET(self) -> None:
            path = unquote(self.path).removeprefix("/debian/")
            wanted = self.headers.get("Range")
            archive.requests.append(Request(path, wanted, self.headers.get("Accept-Encoding")))
            fault = archive.faults[path].pop(0) if archive.faults.get(path) else Fault()
            if fault.hold:
                fault.hold.wait(30)
            body = fault.body if fault.body is not None else archive.files.get(path)
            if body is None or fault.status:
                self.send_error(fault.status or 404)
                return
            start = 0
            if wanted and not fault.no_range:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : None if fault.cut is None else fault.cut])
            if fault.cut is not None:
                self.close_connection = True

    return Handler


def tar(entries: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of regular files (bytes) and whatever else (a TarInfo without its name)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, entry in entries.items():
            if isinstance(entry, bytes):
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = (
                    len(entry),
                    0o755 if "/bin/" in name else 0o644,
                    1_700_000_000,
                )
                archive.addfile(info, io.BytesIO(entry))
            else:
                entry.name = name
                archive.addfile(entry)
    return stream.getvalue()


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A link, folder or device for :func:`tar`."""
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, link
    info.mode, info.mtime = 0o755, 1_700_000_000
    return info


def deb(entries: Mapping[str, bytes | tarfile.TarInfo], compression: str = "xz") -> bytes:
    """A binary package with these entries in its ``data.tar``."""
    import zstandard

    pack: dict[str, Callable[[bytes], bytes]] = {
        "xz": lzma.compress,
        "gz": gzip.compress,
        "zst": zstandard.ZstdCompressor().compress,
    }
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(tar({"./control": b"Package: x\n"})),
        f"data.tar.{compression}": pack[compression](tar(entries)),
    }
    result = b"!<arch>\n"
    for name, content in members.items():
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        result += content + b"\n" * (len(content) % 2)
    return result

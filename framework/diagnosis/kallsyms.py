# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own symbols, read from the kernel image that runs (an arm64 ``Image`` with CONFIG_KALLSYMS).

Where a kernel lies is not known beforehand: it may have moved itself to a random address (KASLR). But its code is
the image's code, so a few bytes around an address say which part of the image lies there. Code that is not found
(a module's, or patched too densely) has no name.

The tables are those of Linux's scripts/kallsyms.c as of 6.5 and later: number of symbols, names, markers, token
table, token index, offsets, each aligned to 8 bytes. In another kernel they are not found.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from bisect import bisect_right
from pathlib import Path

from framework.common.errors import BoardError

_DIGITS = b"\0".join(b"%d" % digit for digit in range(10)) + b"\0"
"""In the token table, characters that names use stand for themselves."""
_MOST_TABLES = 16
_MOST_NAMES = 256 * 512
_PIECE = 32
_ENOUGH = 2
"""Number of agreeing pieces that decide; single ones differ where the kernel has patched itself."""


class LinuxNames:
    """Names addresses in a kernel wherever it is loaded, or in several copies of it: dom0's and the guests'."""

    def __init__(self, image: Path) -> None:
        self._path = image
        self._image: KernelImage | None = None
        self._bases: set[int] = set()
        self.trouble = ""
        """Why it can name nothing, if so."""

    def learn(self, address: int, code: bytes) -> None:
        """Learn where the kernel is loaded from the memory at an address that Linux executes."""
        try:
            if self._image is None and not self.trouble:
                self._image = KernelImage(self._path)
        except BoardError as error:
            self.trouble = str(error)
        base = None if self._image is None else self._image.base(address, code)
        if base is not None:
            self._bases.add(base)

    def name(self, address: int) -> str | None:
        """Name the function of an address; None if no kernel is known to lie there."""
        image = self._image
        names = [] if image is None else [image.name(address - base) for base in sorted(self._bases)]
        return next((name for name in names if name is not None), None)


class KernelImage:
    """The names in one kernel image. Raises BoardError for a file that is unreadable or has no tables."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._find_tables()
        except (OSError, ValueError) as error:
            raise BoardError(f"its symbols cannot be read: {error}", where=str(path)) from error

    def base(self, address: int, code: bytes) -> int | None:
        """The address at which this image begins if ``code`` is what memory holds at ``address``; None if the
        image has no such code, or has it more than once."""
        votes: dict[int, int] = {}
        for start in range(0, len(code) - _PIECE + 1, _PIECE):
            piece = code[start : start + _PIECE]
            offset = self._data.find(piece)
            if offset >= 0 and self._data.find(piece, offset + 1) < 0:
                found = address + start - offset
                votes[found] = votes.get(found, 0) + 1
                if votes[found] == _ENOUGH:
                    break
        return max(votes, key=lambda found: votes[found]) if votes else None

    def name(self, offset: int) -> str | None:
        """Name the function ``offset`` bytes into the image: ``schedule+0x1c``."""
        index = bisect_right(self._offsets, offset) - 1
        if index < 0 or offset >= len(self._data):
            return None
        # Of several names of one address, the first.
        while index and self._offsets[index - 1] == self._offsets[index]:
            index -= 1
        kind, name = self._symbol(index)
        return f"{name}+{offset - self._offsets[index]:#x}" if kind in "tTwW" else None

    def _symbol(self, index: int) -> tuple[str, str]:
        at = self._names + self._markers[index >> 8]
        for _ in range(index & 255):
            length, at = self._length(at)
            at += length
        length, at = self._length(at)
        text = b"".join(self._token(token) for token in self._data[at : at + length]).decode(errors="replace")
        return text[0], text[1:]

    def _length(self, at: int) -> tuple[int, int]:
        """The number of tokens of the name at ``at``, and where they begin."""
        first = self._data[at]
        return (first, at + 1) if first < 128 else (first & 127 | self._data[at + 1] << 7, at + 2)

    def _token(self, number: int) -> bytes:
        begin = self._tokens + self._token_index[number]
        return self._data[begin : self._zero(begin)]

    # Finding the tables: the token table by its digits, and everything else from there

    def _find_tables(self) -> None:
        at = -1
        for _ in range(_MOST_TABLES):
            at = self._data.find(_DIGITS, at + 1)
            if at < 0:
                break
            try:
                if self._try_tokens(at) and self._try_names() and self._try_offsets():
                    return
            except (ValueError, IndexError, struct.error):
                continue  # Other tables hold digits in a row too.
        raise ValueError("no table of symbols is found in it")

    def _try_tokens(self, digits: int) -> bool:
        end = digits
        for _ in range(ord("0"), 256):
            end = self._zero(end) + 1
        self._index_at = _align(end)
        self._token_index = struct.unpack_from("<256H", self._data, self._index_at)
        self._tokens = digits - self._token_index[ord("0")]
        first, zero, nine = (self._token_index[number] for number in (0, ord("0"), ord("9")))
        return bool(first == 0 and nine == zero + 18)

    def _try_names(self) -> bool:
        # The markers end where the tokens begin; the first is 0, and they grow.
        at = self._tokens - 4
        if self._word(at) == 0:
            at -= 4  # padding
        markers = [self._word(at)]
        while markers[-1] and len(markers) < _MOST_NAMES >> 8:
            at -= 4
            markers.append(self._word(at))
            if markers[-1] >= markers[-2]:
                return False
        self._markers = markers[::-1]
        # Before the names stands their number, and they reach up to the markers.
        latest = (at - self._markers[-1]) & ~7
        for names in range(latest, latest - _MOST_NAMES, -8):
            number = self._word(names - 8)
            if (number + 255) >> 8 == len(markers) and self._follows_markers(names):
                self._names, self._number = names, number
                return True
        return False

    def _follows_markers(self, names: int) -> bool:
        at = names
        for _ in range(256 if len(self._markers) > 1 else 0):
            length, at = self._length(at)
            at += length
        return len(self._markers) < 2 or at - names == self._markers[1]

    def _try_offsets(self) -> bool:
        begin = _align(self._index_at + 512)
        self._offsets = array("I", self._data[begin : begin + 4 * self._number])
        return all(a <= b for a, b in zip(self._offsets, self._offsets[1:], strict=False))

    def _zero(self, begin: int) -> int:
        """Return where the string at ``begin`` ends."""
        end = self._data.find(b"\0", begin)
        if end < 0:
            raise ValueError("a string in it has no end")
        return end

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._data, at)[0])


def _align(offset: int) -> int:
    return (offset + 7) & ~7

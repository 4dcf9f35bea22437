# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes text of unknown origin harmless: what a guest prints is data, never a command to the terminal."""

from __future__ import annotations

import re

# C0 and C1 controls except tab and newline; what reorders or hides text (bidirectional controls, zero-width
# and other invisible characters, line separators, the byte order mark); lone surrogates.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
# What XML 1.0 cannot hold (production Char), after `visible` has done its part.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _show(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20 or code == 0x7F:
        # Caret notation, as `cat -v` and terminals write it: every font has it.
        return "^" + chr(code ^ 0x40)
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"<U+{code:04X}>"


def visible(text: str) -> str:
    """``text`` with each control, invisible or reordering character shown; keeps tab and newline."""
    return _INVISIBLE.sub(_show, text)


def one_line(text: str) -> str:
    """``visible`` in which newlines are shown as well."""
    return visible(text).replace("\n", " \u21b5 ")


def xml_text(text: str) -> str:
    """``visible`` without any character that XML 1.0 forbids."""
    return _NOT_XML.sub("\ufffd", visible(text))


def decode(data: bytes) -> str:
    """Bytes of a console as text: invalid UTF-8 becomes U+FFFD, everything else is as in :func:`visible`."""
    return visible(data.decode("utf-8", "replace"))


_DIGITS = 18


def number(digits: str | bytes) -> int:
    """A number that a guest wrote, in decimal; 10^18 - 1 for anything larger: Python refuses to convert very long ones,
    and no count, domain id or exit code comes near. Raises ValueError for what is no number."""
    if not digits.isdigit() or not digits.isascii():
        raise ValueError(f"no number: {digits[:40]!r}")
    text = digits.decode("ascii") if isinstance(digits, bytes) else digits
    short = text.lstrip("0")
    return int(short or "0") if len(short) <= _DIGITS else 10**_DIGITS - 1


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 case``, ``2 cases``, ``12,000 cases``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def count(number: int | None) -> str:
    """``12,000``; a dash for None."""
    return "–" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds for a reader: ``0.3 s``, ``42 s``, ``3 min 05 s``, ``2 h 01 min``; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.0995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage-2 walk in Python, for a consumer that has the tables and for checking the plugin's own walk.

4 KiB granule, as Xen on arm64 uses it (Arm ARM, D8.2; Xen's ``lpae.h``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_ADDRESS = 0x0000_FFFF_FFFF_F000
_VALID, _TABLE = 1, 2
_TYPE = 0xF << 55  # Xen's p2m type; 0 is p2m_invalid


@dataclass(frozen=True, slots=True)
class Walked:
    """The end of a walk: ``ma`` is None when nothing is mapped; ``pte`` is the last entry read, at
    ``level``."""

    ma: int | None
    pte: int
    level: int


def stage2(read: Callable[[int], int], vttbr: int, vtcr: int, ipa: int) -> Walked:
    """Translate ``ipa``. ``read`` gives the 64-bit word at a machine address. Raises ValueError for another
    granule."""
    if vtcr >> 14 & 3:
        raise ValueError(f"VTCR_EL2 {vtcr:#x} selects a granule other than 4 KiB")
    bits, level = 64 - (vtcr & 0x3F), 2 - (vtcr >> 6 & 3)
    if ipa >> bits:
        return Walked(None, 0, level)
    table = vttbr & _ADDRESS
    index_bits = bits - _shift(level)  # concatenated tables make the first one longer
    while True:
        shift = _shift(level)
        pte = read(table + 8 * (ipa >> shift & (1 << index_bits) - 1))
        leaf = level == 3 or not pte & _TABLE
        # Xen clears the valid bit of entries that it will resolve at the next fault (p2m_invalidate_root).
        if not pte & (_VALID | _TYPE) or (level == 3 and not pte & _TABLE):
            return Walked(None, pte, level)
        if leaf:
            offset = (1 << shift) - 1
            return Walked(pte & _ADDRESS & ~offset | ipa & offset, pte, level)
        table, level, index_bits = pte & _ADDRESS, level + 1, 9


def _shift(level: int) -> int:
    return 12 + 9 * (3 - level)

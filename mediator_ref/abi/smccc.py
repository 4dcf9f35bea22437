# SPDX-License-Identifier: GPL-2.0-or-later
"""The SMC Calling Convention (Arm DEN 0028): function ids, owners, and 64-bit values in register pairs."""

from __future__ import annotations

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1

SMCCC_UNKNOWN_FUNCTION = U64
"""x0 for a function that is not implemented: -1, sign-extended to 64 bits."""

TRUSTED_OWNERS = range(48, 64)
"""SMCCC owners Xen passes to the active mediator: 48..49 trusted applications, 50..63 trusted OS."""


def is_ffa(fid: int) -> bool:
    """True for a function of the Arm Firmware Framework: owner 4, numbers 0x60 to 0xFF (DEN 0077)."""
    return fid & 0xBFFFFF00 == 0x84000000 and fid & 0xFF >= 0x60


def fid_of(x0: int) -> int:
    """Function id in ``x0``: the low 32 bits, whatever stands above them (SMCCC 2.4)."""
    return x0 & U32


def owner_of(fid: int) -> int:
    """SMCCC owning entity of a function id (bits 29:24)."""
    return (fid >> 24) & 0x3F


def is_smc64(fid: int) -> bool:
    """True for a function of the SMC64 convention (bit 30)."""
    return bool(fid & (1 << 30))


def pair(high: int, low: int) -> int:
    """64-bit value of a register pair, upper half first; of the lower register only 32 bits count."""
    return (high << 32 | low & U32) & U64


def split(value: int) -> tuple[int, int]:
    """Register pair of a 64-bit value."""
    return value >> 32, value & U32

# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace format in Python: the numbers and layouts of ``plugin/record.h``; see
``docs/trace-format.md``."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAJOR = 1
MINOR = 3
SEGMENT_MAGIC = b"MEDTRACE"
CHUNK_MAGIC = b"MTCK"

SEGMENT = struct.Struct("<8sHHIQII")
"""magic, major, minor, length, started (ns since 1970), text_length, crc."""
CHUNK = struct.Struct("<4sB3xIIIIQII")
"""magic, codec, stored, raw, records, crc, first_seq, reserved, header_crc."""
RECORD = struct.Struct("<IBBBBQQHHHHQQQII")
"""length, kind, flags, cpu, el, seq, time_ns, domain, vmid, guest_vcpu, nregs, parent, pc, esr, nblocks,
imm."""
BLOCK = struct.Struct("<BBBxHHIIQQQQ")
"""kind, flags, level, index, size, length, count, ipa, ma, pte, cookie."""
TRANSLATION = struct.Struct("<QQQ")
"""ipa, ma | level, pte."""

ACCESS = struct.Struct("<QQII")
"""ma, pc, length, store: one run of neighbouring loads or stores in an ACCESSES block."""

PAGE = 4096
UNKNOWN = 0xFFFF
"""A domain or vCPU id that the plugin could not find out."""
RECORD_LIMIT = 1 << 23
"""No record, and no chunk of them, is longer (the plugin's are 2 MiB at most); a length above it is damage."""


class Codec(IntEnum):
    """Compression of a chunk."""

    NONE = 0
    ZSTD = 1
    ZLIB = 2


class Kind(IntEnum):
    """Kind of a record."""

    GUEST_CALL = 1
    EL3_CALL = 2
    EL3_RETURN = 3
    GUEST_RETURN = 4
    DOMAIN_CREATE = 5
    DOMAIN_KILL = 6
    DOMAIN_DESTROY = 7
    DOORBELL = 8
    COUNTERS = 9


class Flag(IntFlag):
    """Flags of a record."""

    NOT_TEE = 1
    HVC = 2
    AARCH32 = 4
    SECURE = 8
    TRUNCATED = 16


class BlockKind(IntEnum):
    """Kind of a block of memory."""

    GUEST_ARG = 1
    GUEST_LIST = 2
    GUEST_RPC = 3
    SHADOW_ARG = 4
    SHADOW_LIST = 5
    SHADOW_RPC = 6
    TRANSLATIONS = 7
    GUEST_ALLOC = 8
    TEXT = 9
    ACCESSES = 16
    INSTRUCTIONS = 17
    BOOKS = 20
    FRAMES = 21
    HEAP = 22
    PARTITION = 23


class BlockFlag(IntFlag):
    """Flags of a block."""

    UNMAPPED = 1
    UNREADABLE = 2
    NOT_RAM = 4
    MISALIGNED = 8
    LIMIT = 16


COUNTERS = (
    "records",
    *(f"kind_{n}" for n in range(10)),
    "guest_smc",
    "guest_hvc",
    "psci",
    "arch",
    "hypercall",
    "guest_other",
    "el2_smc",
    "el2_other",
    "el3_eret",
    "el2_eret",
    "lost",
    "table_full",
    "aarch32",
)
"""Names of a COUNTERS record's registers, in order; a newer minor version may add more at the end."""


class P2mType(IntEnum):
    """Xen 4.17's ``p2m_type_t``, bits 58:55 of a stage-2 entry (``xen/arch/arm/include/asm/p2m.h``)."""

    INVALID = 0
    RAM_RW = 1
    RAM_RO = 2
    MMIO_DIRECT_DEV = 3
    MMIO_DIRECT_NC = 4
    MMIO_DIRECT_C = 5
    MAP_FOREIGN_RW = 6
    MAP_FOREIGN_RO = 7
    GRANT_MAP_RW = 8
    GRANT_MAP_RO = 9
    IOMMU_MAP_RW = 10
    IOMMU_MAP_RO = 11


def p2m_type(pte: int) -> P2mType | None:
    """The p2m type in a leaf entry's software bits; None for a number that Xen 4.17 does not know."""
    number = pte >> 55 & 0xF
    return P2mType(number) if number <= P2mType.IOMMU_MAP_RO else None

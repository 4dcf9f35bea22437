/*
 * The record as it lies in a trace file and on the lock-step socket. docs/trace-format.md describes every field;
 * framework/trace/format.py is the other half. Little-endian; the plugin runs on little-endian hosts only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_RECORD_H
#define MEDCHECK_RECORD_H

#include <stdint.h>

#define FORMAT_MAJOR 1
#define FORMAT_MINOR 3
#define SEGMENT_MAGIC "MEDTRACE"
#define CHUNK_MAGIC 0x4b43544dU /* "MTCK" */

enum record_kind {
    REC_GUEST_CALL = 1,
    REC_EL3_CALL = 2,
    REC_EL3_RETURN = 3,
    REC_GUEST_RETURN = 4,
    REC_DOMAIN_CREATE = 5,
    REC_DOMAIN_KILL = 6,
    REC_DOMAIN_DESTROY = 7,
    REC_DOORBELL = 8,
    REC_COUNTERS = 9,
    REC_KINDS = 10,
};

enum record_flags {
    REC_F_NOT_TEE = 1,   /* PSCI, architecture, hypercall: recorded only when asked for */
    REC_F_HVC = 2,       /* conduit of a guest call or return; clear: SMC */
    REC_F_AARCH32 = 4,   /* the guest ran in AArch32 */
    REC_F_SECURE = 8,    /* SCR_EL3.NS was 0 */
    REC_F_TRUNCATED = 16 /* blocks were left out: the record, or its page lists, reached a limit */
};

struct record {
    uint32_t length; /* of the whole record, blocks included; a multiple of 8 */
    uint8_t kind;
    uint8_t flags;
    uint8_t cpu;     /* physical CPU of the board */
    uint8_t el;      /* exception level the event happened at */
    uint64_t seq;
    uint64_t time_ns;
    uint16_t domain; /* Xen domain id, 0xffff unknown */
    uint16_t vmid;
    uint16_t guest_vcpu; /* Xen vcpu id, 0xffff unknown */
    uint16_t nregs;
    uint64_t parent; /* seq of the guest call this belongs to; 0 none */
    uint64_t pc;
    uint64_t esr;
    uint32_t nblocks;
    uint32_t imm;
};

enum block_kind {
    BLK_GUEST_ARG = 1,
    BLK_GUEST_LIST = 2,
    BLK_GUEST_RPC = 3,
    BLK_SHADOW_ARG = 4,
    BLK_SHADOW_LIST = 5,
    BLK_SHADOW_RPC = 6,
    BLK_TRANSLATIONS = 7,
    BLK_GUEST_ALLOC = 8, /* the page a guest offers for RPC; translation only */
    BLK_TEXT = 9,
    BLK_ACCESSES = 16,     /* EL2's loads and stores on the guest's pages since the last border: struct access */
    BLK_INSTRUCTIONS = 17, /* EL2's instructions since the last border: one uint64_t */
    BLK_BOOKS = 20,  /* Xen's lists of a domain */
    BLK_FRAMES = 21, /* pages with their references */
    BLK_HEAP = 22,   /* Xen's memory */
    BLK_PARTITION = 23, /* OP-TEE's list of a guest's shared memory */
};

enum block_flags {
    BLK_F_UNMAPPED = 1,   /* no stage-2 translation */
    BLK_F_UNREADABLE = 2, /* QEMU answers no data there (secure or absent memory) */
    BLK_F_NOT_RAM = 4,    /* device memory: not read, reading has side effects */
    BLK_F_MISALIGNED = 8,
    BLK_F_LIMIT = 16,     /* the list goes on; limit reached */
};

struct block {
    uint8_t kind;
    uint8_t flags;
    uint8_t level;   /* level of the stage-2 leaf entry */
    uint8_t pad;
    uint16_t index;  /* parameter number */
    uint16_t size;   /* bytes read; data holds them without their trailing zeros */
    uint32_t length; /* bytes of data that follow, then padding to a multiple of 8 */
    uint32_t count;  /* translations: entries; list: ordinal of the list page */
    uint64_t ipa;
    uint64_t ma;
    uint64_t pte;
    uint64_t cookie;
};

struct translation {
    uint64_t ipa;
    uint64_t ma; /* low 12 bits: level 0-3, or 0xf no translation */
    uint64_t pte;
};

struct access { /* neighbouring loads, or stores, one after the other */
    uint64_t ma;
    uint64_t pc;     /* of the first */
    uint32_t length; /* bytes */
    uint32_t store;
};

struct segment_header {
    char magic[8];
    uint16_t major, minor;
    uint32_t length;   /* of this header, text included */
    uint64_t started;  /* host time, ns since 1970 */
    uint32_t text_length;
    uint32_t crc;      /* CRC-32 of the header with this field 0, text included */
};

struct chunk_header {
    uint32_t magic;
    uint8_t codec;     /* 0 none, 1 zstd, 2 zlib */
    uint8_t pad[3];
    uint32_t stored;   /* bytes that follow */
    uint32_t raw;      /* bytes after decompression */
    uint32_t records;
    uint32_t crc;      /* CRC-32 of the stored bytes */
    uint64_t first_seq;
    uint32_t pad2;
    uint32_t header_crc; /* CRC-32 of the bytes before this field */
};

#endif

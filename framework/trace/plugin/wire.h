/*
 * The lock-step socket's messages; docs/trace-format.md describes them, framework/trace/live.py is the other half.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_WIRE_H
#define MEDCHECK_WIRE_H

#include <stdint.h>

struct wire_header {
    uint32_t length; /* of what follows this header */
    uint16_t type;
    uint16_t flags;
};

enum wire_type {
    /* plugin -> consumer */
    WIRE_HELLO = 1, /* JSON text */
    WIRE_EVENT = 2, /* a record; flags: WIRE_F_* */
    WIRE_REPLY = 3, /* flags: 0 done, else WIRE_E_*; then data */
    WIRE_BYE = 4,   /* the board ends */
    WIRE_HELD = 5,  /* u64 point, u64 enum hold_said, u64s of a path: what became of WIRE_HOLD */
    /* consumer -> plugin */
    WIRE_SETUP = 0x80,     /* u32 kinds to send, to hold, to ask about before they are recorded: bit 1 << kind */
    WIRE_READ_REG = 0x81,  /* name -> u64 */
    WIRE_WRITE_REG = 0x82, /* u64, name */
    WIRE_READ_MEM = 0x83,  /* struct wire_memory -> bytes */
    WIRE_WRITE_MEM = 0x84, /* struct wire_memory, bytes */
    WIRE_CONTINUE = 0x85,  /* u32 delay in microseconds */
    WIRE_DETACH = 0x86,    /* the consumer leaves, the board goes on */
    WIRE_STOP = 0x87,      /* stop the board */
    WIRE_TRANSLATE = 0x88, /* u64 IPA -> struct wire_leaf */
    WIRE_COVERAGE = 0x89,  /* -> u64s: code that ran first since the last request, new ways of branches in bits 0, 1 */
    WIRE_HOLD = 0x8a,      /* struct wire_hold: no reply but WIRE_HELD, at once or later */
};

#define WIRE_SETUP_LENGTH 12

/* of WIRE_EVENT */
#define WIRE_F_WAITS 1  /* the vCPU waits */
#define WIRE_F_BEFORE 2 /* nothing is recorded yet: registers only, and the record follows with the same number */

enum wire_error { WIRE_E_NAME = 1, WIRE_E_UNMAPPED = 2, WIRE_E_ACCESS = 3, WIRE_E_REQUEST = 4 };

enum wire_space { SPACE_MA = 0, SPACE_IPA = 1, SPACE_VA = 2 };

struct wire_memory {
    uint64_t address;
    uint32_t length;
    uint32_t space;
};

struct wire_hold {
    uint64_t at; /* address, or kind of event */
    uint32_t pass; /* at which time that the vCPU comes there */
    uint32_t mode; /* enum hold_mode */
    uint16_t domain, vcpu;
    uint32_t unused;
};

struct wire_leaf {
    uint64_t ma, pte;
    uint32_t level, mapped;
};

#endif

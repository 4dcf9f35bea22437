/*
 * Which blocks of code only wait: loops that look at memory until another CPU changes it. How often such a loop turns
 * is the host's matter (whether it runs the other CPU), not work that a call makes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "waiting.h"

#define LOAD 1 /* of the register in bits 9:5, which must stay as it is */
#define RESULT 2 /* in the register in bits 4:0 */

/* Instructions of which each turn of a loop does the same, as long as memory stays as it is. */
static const struct {
    uint32_t mask, value;
    unsigned kind;
} same_each_turn[] = {
    {0x3f400000, 0x39400000, LOAD | RESULT}, /* LDR, LDRB, LDRH with an offset: no register moves on */
    {0x3f800000, 0x39800000, LOAD | RESULT}, /* LDRSW and its kin */
    {0x3ffffc00, 0x08dffc00, LOAD | RESULT}, /* LDAR */
    {0x3fff7c00, 0x085f7c00, LOAD | RESULT}, /* LDXR, LDAXR */
    {0x1f800000, 0x12000000, RESULT},        /* AND, TST, ORR with a constant */
    {0x1f800000, 0x13000000, RESULT},        /* UBFX, BFI, LSR */
    {0x1f000000, 0x0a000000, RESULT},        /* AND, TST, MOV with registers */
    {0x7f80001f, 0x7100001f, 0},             /* CMP with a constant */
    {0x7f20001f, 0x6b00001f, 0},             /* CMP with a register */
    {0xfffff01f, 0xd503201f, 0},             /* NOP, YIELD, WFE */
    {0xfffff01f, 0xd503301f, 0},             /* DMB, DSB, ISB */
};

/* How far a branch goes, in instructions; 0: not a branch that a loop ends with. */
static int64_t distance(uint32_t opcode)
{
    if ((opcode & 0xff000000U) == 0x54000000U || (opcode & 0x7e000000U) == 0x34000000U) /* B.cond; CBZ, CBNZ */
        return (int32_t)(opcode << 8) >> 13;
    if ((opcode & 0x7e000000U) == 0x36000000U) /* TBZ, TBNZ */
        return (int32_t)(opcode << 13) >> 18;
    if ((opcode & 0xfc000000U) == 0x14000000U) /* B */
        return (int32_t)(opcode << 6) >> 6;
    return 0;
}

bool is_waiting_loop(const uint32_t *opcodes, size_t count)
{
    const size_t kinds = sizeof same_each_turn / sizeof *same_each_turn;
    uint32_t bases = 0, results = 0; /* a bit for each register; XZR and SP count as one */
    if (count < 2 || distance(opcodes[count - 1]) != 1 - (int64_t)count)
        return false;
    for (size_t i = 0; i + 1 < count; i++) {
        size_t k = 0;
        while (k < kinds && (opcodes[i] & same_each_turn[k].mask) != same_each_turn[k].value)
            k++;
        if (k == kinds)
            return false;
        if (same_each_turn[k].kind & LOAD)
            bases |= 1U << (opcodes[i] >> 5 & 31);
        if (same_each_turn[k].kind & RESULT)
            results |= 1U << (opcodes[i] & 31);
    }
    return bases && !(bases & results & ~(1U << 31));
}

/*
 * The record under construction: header, registers, then blocks of memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdlib.h>
#include <string.h>

#include "senses.h"

#define RECORD_LIMIT (2U << 20)
/*
 * What the page lists of one record may take, translations included: more than all that a mediator may take at once
 * (Xen: 16384 pages for a domain, 540 KiB), and little enough for a guest that repeats its worst call for ever.
 */
#define LISTS_LIMIT (1U << 20)
#define ATTR_TYPE 0xff
#define ATTR_NONCONTIG 0x200
#define LIST_ENTRIES 511

struct builder rec;

static bool reserve(size_t extra)
{
    if (rec.used + extra <= rec.room)
        return true;
    if (rec.used + extra > RECORD_LIMIT)
        return false;
    size_t room = rec.room ? rec.room * 2 : RECORD_START;
    while (room < rec.used + extra)
        room *= 2;
    uint8_t *grown = realloc(rec.data, room);
    if (!grown)
        return false;
    rec.data = grown;
    rec.room = room;
    return true;
}

bool rec_init(void)
{
    return reserve(RECORD_START);
}

struct record *rec_begin(unsigned cpu, int kind, int el, unsigned nregs)
{
    MUST_BE_INSIDE();
    rec.used = rec.lists = 0;
    size_t length = sizeof(struct record) + nregs * 8; /* at most 64 registers: rec_init has made room */
    memset(rec.data, 0, length);
    struct record *r = (struct record *)rec.data;
    rec.used = length;
    r->length = (uint32_t)length;
    r->kind = (uint8_t)kind;
    r->cpu = (uint8_t)cpu;
    r->el = (uint8_t)el;
    r->nregs = (uint16_t)nregs;
    r->domain = r->guest_vcpu = UNKNOWN16;
    return r;
}

uint64_t *rec_regs(void)
{
    return (uint64_t *)(rec.data + sizeof(struct record));
}

static void truncated(void)
{
    ((struct record *)rec.data)->flags |= REC_F_TRUNCATED;
}

struct block *rec_block(int kind, size_t room)
{
    MUST_BE_INSIDE();
    if (!reserve(sizeof(struct block) + room + 8)) {
        truncated();
        return NULL;
    }
    struct block *b = (struct block *)(rec.data + rec.used);
    memset(b, 0, sizeof *b);
    b->kind = (uint8_t)kind;
    return b;
}

void rec_close_block(struct block *block, size_t length)
{
    size_t padded = (length + 7) & ~(size_t)7;
    memset((uint8_t *)(block + 1) + length, 0, padded - length);
    block->length = (uint32_t)length;
    rec.used += sizeof *block + padded;
    struct record *r = (struct record *)rec.data;
    r->nblocks++;
    r->length = (uint32_t)rec.used;
}

const uint8_t *block_data(const struct block *block)
{
    return (const uint8_t *)(block + 1);
}

static size_t without_zeros(const uint8_t *data, size_t length)
{
    const uint64_t *words = (const uint64_t *)data;
    size_t n = length / 8;
    while (n && !words[n - 1])
        n--;
    return n * 8;
}

static void fill(struct block *b, uint64_t ma)
{
    size_t length = 0;
    b->ma = ma;
    if (ma_read(ma, b + 1, PAGE)) {
        b->size = PAGE;
        length = without_zeros((uint8_t *)(b + 1), PAGE);
    } else {
        b->flags |= BLK_F_UNREADABLE;
    }
    rec_close_block(b, length);
}

struct block *capture_ma_page(int kind, uint64_t ma, unsigned index, uint64_t cookie)
{
    struct block *b = rec_block(kind, PAGE);
    if (!b)
        return NULL;
    b->index = (uint16_t)index;
    b->cookie = cookie;
    if (ma & PAGE_MASK)
        b->flags |= BLK_F_MISALIGNED;
    fill(b, ma & ~PAGE_MASK);
    return b;
}

struct block *capture_guest_page(unsigned cpu, int kind, uint64_t ipa, unsigned index, uint64_t cookie)
{
    struct block *b = rec_block(kind, PAGE);
    struct leaf leaf;
    if (!b)
        return NULL;
    b->index = (uint16_t)index;
    b->cookie = cookie;
    b->ipa = ipa;
    if (ipa & PAGE_MASK)
        b->flags |= BLK_F_MISALIGNED;
    bool mapped = stage2(cpu, ipa & ~PAGE_MASK, &leaf);
    b->pte = leaf.pte;
    b->level = leaf.level;
    b->ma = leaf.ma;
    if (mapped)
        accesses_watch(cpu, leaf.ma);
    if (mapped && leaf_is_ram(&leaf) && kind != BLK_GUEST_ALLOC) {
        fill(b, leaf.ma);
        return b;
    }
    if (!mapped)
        b->flags |= BLK_F_UNMAPPED;
    else if (!leaf_is_ram(&leaf))
        b->flags |= BLK_F_NOT_RAM;
    rec_close_block(b, 0);
    return b;
}

/* A page of a message, whole again: blocks come without their trailing zeros, and growing the record moves them. */
static bool message_copy(const struct block *b, uint64_t *message)
{
    if (!b || !b->size)
        return false;
    memset(message, 0, PAGE);
    memcpy(message, b + 1, b->length);
    return true;
}

static void translate_entries(unsigned cpu, const uint64_t *list, unsigned count, unsigned index, uint64_t cookie)
{
    struct block *b = rec_block(BLK_TRANSLATIONS, count * sizeof(struct translation));
    if (!b)
        return;
    struct translation *t = (struct translation *)(b + 1);
    for (unsigned i = 0; i < count; i++) {
        struct leaf leaf;
        t[i].ipa = list[i];
        bool mapped = stage2(cpu, list[i] & ~PAGE_MASK, &leaf);
        t[i].ma = (leaf.ma & ~PAGE_MASK) | (mapped ? leaf.level : 0xf);
        t[i].pte = leaf.pte;
        if (mapped)
            accesses_watch(cpu, leaf.ma);
    }
    b->index = (uint16_t)index;
    b->count = count;
    b->cookie = cookie;
    rec_close_block(b, count * sizeof *t);
}

static void capture_list(unsigned cpu, bool guest, const uint64_t *param, unsigned index)
{
    uint64_t next = param[1] & ~PAGE_MASK, offset = param[1] & PAGE_MASK, cookie = param[3];
    uint64_t pages = param[2] / PAGE + (param[2] % PAGE + offset + PAGE_MASK) / PAGE;
    static uint64_t list[PAGE / 8];
    for (unsigned ordinal = 0; pages; ordinal++) {
        size_t before = rec.used;
        struct block *b = guest ? capture_guest_page(cpu, BLK_GUEST_LIST, next, index, cookie)
                                : capture_ma_page(BLK_SHADOW_LIST, next, index, cookie);
        if (!b)
            return;
        b->count = ordinal;
        if (!message_copy(b, list))
            return;
        unsigned here = pages > LIST_ENTRIES ? LIST_ENTRIES : (unsigned)pages;
        bool more = (pages -= here) != 0;
        size_t entries = guest ? sizeof *b + here * sizeof(struct translation) : 0;
        rec.lists += rec.used - before + entries;
        if (more && (ordinal + 1 >= options.list_pages || rec.lists >= LISTS_LIMIT)) {
            b->flags |= BLK_F_LIMIT;
            truncated();
            pages = 0;
        }
        if (guest)
            translate_entries(cpu, list, here, index, cookie);
        next = list[LIST_ENTRIES];
    }
}

static void capture_lists(unsigned cpu, bool guest, const struct block *message)
{
    static uint64_t page[PAGE / 8];
    if (!message_copy(message, page))
        return;
    uint32_t count = (uint32_t)(page[3] >> 32); /* struct optee_msg_arg: num_params at byte 28, params from 32 */
    for (uint32_t i = 0; i < count && i < 127; i++) {
        const uint64_t *param = page + 4 + i * 4;
        uint64_t type = param[0] & ATTR_TYPE;
        if (type < 9 || type > 11 || !(param[0] & ATTR_NONCONTIG) || !param[1])
            continue;
        if (rec.lists >= LISTS_LIMIT) {
            truncated();
            return;
        }
        capture_list(cpu, guest, param, i);
    }
}

void capture_guest_lists(unsigned cpu, const struct block *message)
{
    capture_lists(cpu, true, message);
}

void capture_shadow_lists(const struct block *message)
{
    capture_lists(0, false, message);
}

/*
 * The references of guests' pages, from Xen's frame table: what a page is, how often it is referenced, and which pages
 * of a domain are worth looking at again, because a call has named them or a list of Xen's held them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdlib.h>

#include "books.h"

#define ADDRESS 0x0000fffffffff000ULL
#define DOMAINS 64

/* A page as the record shows it; docs/trace-format.md. */
#define FRAME_MASK ((1ULL << 40) - 1)
#define FRAME_COUNT_SHIFT 40
#define FRAME_COUNT_MOST 0xffffULL
#define FRAME_COUNTED (1ULL << 60)
#define FRAME_UNKNOWN (1ULL << 61)
#define FRAME_OWN (1ULL << 62)
#define FRAME_ALLOCATED (1ULL << 63) /* where Xen has it, too: PGC_allocated */
#define COUNT_MASK ((1ULL << 48) - 1) /* of count_info: the bits above are Xen's flags in every version */

static struct watch watches[DOMAINS];

static struct { /* hypercalls that may take memory or references, for all CPUs */
    uint64_t count;
    bool busy[MAX_CPUS];
} hypercalls;

static uint64_t frames_base; /* where struct page_info of frame 0 would lie; 0: not known */

/* Hypercalls: all but those that guests make all the time and that take neither memory nor references. */
static bool quiet(uint64_t number, uint64_t operation)
{
    return number == 17 || number == 18 || number == 29 ||       /* version, console, scheduling */
           (number == 32 && (operation == 4 || operation == 9)); /* event channels: send, unmask */
}

void books_hypercall(unsigned cpu, bool hypercall, uint64_t number, uint64_t operation)
{
    bool busy = hypercall && !quiet(number, operation);
    if (busy)
        __atomic_fetch_add(&hypercalls.count, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&hypercalls.busy[cpu], busy, __ATOMIC_RELAXED);
}

static uint64_t hypercall_state(unsigned cpu)
{
    uint64_t state = __atomic_load_n(&hypercalls.count, __ATOMIC_RELAXED) & ~(1ULL << 63);
    for (unsigned i = 0; i < MAX_CPUS; i++)
        if (i != cpu && __atomic_load_n(&hypercalls.busy[i], __ATOMIC_RELAXED))
            state |= 1ULL << 63;
    return state;
}

struct block *sense_block(unsigned cpu, int kind, size_t words, uint16_t id, uint64_t domain)
{
    struct block *b = rec_block(kind, words * 8);
    if (!b)
        return NULL;
    b->ipa = domain;
    b->pte = hypercall_state(cpu);
    b->cookie = id;
    return b;
}

/*
 * Where the frame table lies: Xen knows the root of a domain's stage-2 tables both as a page and as an address. With
 * page numbers compressed (PDX) this is not the whole truth, and frames stay unknown.
 */
void frames_begin(unsigned cpu, uint64_t domain)
{
    uint64_t root, vttbr;
    uint32_t hole = 0;
    frames_base = 0;
    if ((xen.books.pdx_hole && (!xen_copy(cpu, xen.books.pdx_hole, &hole, 4) || hole)) ||
        !xen_copy(cpu, domain + xen.books.p2m_root, &root, 8) ||
        !xen_copy(cpu, domain + xen.books.p2m_vttbr, &vttbr, 8))
        return;
    uint64_t offset = (vttbr & ADDRESS) / PAGE * xen.books.page_size;
    if (root > offset)
        frames_base = root - offset;
}

uint64_t frame_word(unsigned cpu, uint64_t domain, uint64_t page)
{
    uint8_t info[STRUCT_LIMIT];
    uint64_t found = FRAME_UNKNOWN;
    if (!page)
        return 0;
    if (frames_base && page >= frames_base && (page - frames_base) % xen.books.page_size == 0)
        found = (page - frames_base) / xen.books.page_size & FRAME_MASK;
    if (!options.frames || !xen_copy(cpu, page, info, xen.books.page_size))
        return found;
    uint64_t count_info = word_at(info, xen.books.page_count), count = count_info & COUNT_MASK;
    found |= FRAME_COUNTED | (count_info & FRAME_ALLOCATED);
    found |= (count < FRAME_COUNT_MOST ? count : FRAME_COUNT_MOST) << FRAME_COUNT_SHIFT;
    return found | (word_at(info, xen.books.page_owner) == domain ? FRAME_OWN : 0);
}

/* Watched pages */

struct watch *watch_of(uint16_t domain)
{
    struct watch *unused = NULL;
    for (unsigned i = 0; i < DOMAINS; i++) {
        if (watches[i].used && watches[i].domain == domain)
            return &watches[i];
        if (!watches[i].used)
            unused = &watches[i];
    }
    if (unused)
        *unused = (struct watch){.used = true, .domain = domain, .pages = unused->pages, .room = unused->room};
    return unused;
}

void watch_page(struct watch *watch, uint64_t page)
{
    if (!watch || !page || watch->count >= FRAMES_LIMIT)
        return;
    if (watch->count == watch->room) {
        unsigned room = watch->room ? watch->room * 2 : 64;
        uint64_t *grown = realloc(watch->pages, room * sizeof *grown);
        if (!grown)
            return;
        watch->pages = grown;
        watch->room = room;
    }
    watch->pages[watch->count++] = page;
}

static int by_address(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void watch_once(struct watch *watch, unsigned from)
{
    unsigned kept = from;
    if (watch->count - from > 1)
        qsort(watch->pages + from, watch->count - from, sizeof *watch->pages, by_address);
    for (unsigned i = from; i < watch->count; i++)
        if (i == from || watch->pages[i] != watch->pages[kept - 1])
            watch->pages[kept++] = watch->pages[i];
    watch->count = kept;
}

static void frames_block(unsigned cpu, uint64_t domain, const struct watch *watch, unsigned from)
{
    unsigned count = watch->count - from;
    struct block *b = count ? sense_block(cpu, BLK_FRAMES, count, watch->domain, domain) : NULL;
    if (!b)
        return;
    uint64_t *words = (uint64_t *)(b + 1);
    for (unsigned i = 0; i < count; i++)
        words[i] = frame_word(cpu, domain, watch->pages[from + i]);
    b->count = count;
    rec_close_block(b, count * 8);
}

/* The pages that a guest's call names, with the references they have before it. */
void frames_named(unsigned cpu, uint64_t domain, struct watch *watch)
{
    unsigned from = watch->count;
    size_t at = sizeof(struct record) + ((struct record *)rec.data)->nregs * 8U, end = rec.used;
    while (frames_base && at + sizeof(struct block) <= end) {
        const struct block *b = (const struct block *)(rec.data + at);
        const struct translation *t = (const struct translation *)(b + 1);
        if (b->kind == BLK_TRANSLATIONS) {
            for (uint32_t i = 0; i < b->count; i++)
                if ((t[i].ma & 0xf) != 0xf)
                    watch_page(watch, frames_base + t[i].ma / PAGE * xen.books.page_size);
        } else if (b->kind <= BLK_GUEST_RPC || b->kind == BLK_GUEST_ALLOC) {
            if (b->ma && !(b->flags & (BLK_F_UNMAPPED | BLK_F_NOT_RAM)))
                watch_page(watch, frames_base + b->ma / PAGE * xen.books.page_size);
        }
        at += sizeof *b + ((b->length + 7ULL) & ~7ULL);
    }
    watch_once(watch, from);
    frames_block(cpu, domain, watch, from);
}

/* The pages of `before` that are not in `now`, which is in order: what the domain's lists have let go of. */
void frames_left(unsigned cpu, uint64_t domain, struct watch *before, const struct watch *now)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < before->count; i++)
        if (!now->count || !bsearch(&before->pages[i], now->pages, now->count, sizeof(uint64_t), by_address))
            before->pages[kept++] = before->pages[i];
    before->count = kept;
    watch_once(before, 0);
    frames_block(cpu, domain, before, 0);
}

void watch_forget(uint16_t domain)
{
    for (unsigned i = 0; i < DOMAINS; i++)
        if (watches[i].used && watches[i].domain == domain) {
            watches[i].used = false;
            watches[i].count = 0;
        }
}

/*
 * What EL2 reads and writes of a guest's pages while it handles the guest's call: each load and store on a page that
 * the call names, in order, neighbouring ones put together. Pages are recognised by machine address, however Xen maps
 * them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "senses.h"

#define SLOTS 8192 /* of the table of pages; half of them are used at most */
#define RUNS 1024
#define MISSES 64
#define DIRECT_MAP (1ULL << 47) /* from here on Xen's addresses keep their meaning for good */

static struct accesses {
    uint64_t pages[SLOTS]; /* frame << 16 | generation */
    uint64_t misses[MISSES];
    struct access runs[RUNS];
    unsigned watched, used;
    uint16_t generation;
    bool incomplete; /* more pages, or more accesses, than there is room for */
} all[MAX_CPUS];

static bool find(struct accesses *a, uint64_t ma, unsigned *slot)
{
    uint64_t frame = ma >> 12, wanted = frame << 16 | a->generation;
    *slot = (unsigned)(frame * 0x9e3779b97f4a7c15ULL >> 51);
    while ((a->pages[*slot] & 0xffff) == a->generation) {
        if (a->pages[*slot] == wanted)
            return true;
        *slot = (*slot + 1) % SLOTS;
    }
    return false;
}

void accesses_begin(unsigned cpu, bool first)
{
    struct accesses *a = &all[cpu];
    a->used = 0;
    memset(a->misses, 0, sizeof a->misses);
    if (!first)
        return;
    a->incomplete = false;
    a->watched = 0;
    if (!++a->generation) { /* it comes round: old entries would be taken for new ones */
        memset(a->pages, 0, sizeof a->pages);
        a->generation = 1;
    }
}

void accesses_watch(unsigned cpu, uint64_t ma)
{
    MUST_BE_INSIDE();
    struct accesses *a = &all[cpu];
    unsigned slot;
    if (!options.reads || !stretch_is_open(cpu) || find(a, ma, &slot))
        return;
    if (a->watched == SLOTS / 2) {
        a->incomplete = true;
        return;
    }
    a->watched++;
    a->pages[slot] = ma >> 12 << 16 | a->generation;
}

void accesses_watch_ipa(unsigned cpu, uint64_t ipa)
{
    struct leaf leaf;
    if (options.reads && stage2(cpu, ipa & ~PAGE_MASK, &leaf))
        accesses_watch(cpu, leaf.ma);
}

static void note(struct accesses *a, uint64_t ma, uint64_t pc, uint32_t length, bool store)
{
    struct access *last = a->used ? &a->runs[a->used - 1] : NULL;
    if (last && last->store == store && last->ma + last->length == ma && ma & PAGE_MASK) {
        last->length += length;
        return;
    }
    if (last && last->store == store && ma + length == last->ma && last->ma & PAGE_MASK) { /* a copy that descends */
        last->ma = ma;
        last->length += length;
        return;
    }
    if (a->used == RUNS) {
        a->incomplete = true;
        return;
    }
    a->runs[a->used++] = (struct access){.ma = ma, .pc = pc, .length = length, .store = store};
}

/* After each load and store at EL2; no lock: a stretch is its CPU's own. */
void on_access(unsigned reported, qemu_plugin_meminfo_t info, uint64_t va, void *pc)
{
    unsigned cpu, slot;
    if (!stretch_is_any_open() || !stretch_is_open(cpu = cpu_running(reported)))
        return;
    struct accesses *a = &all[cpu];
    uint64_t page = va >> 12;
    if (a->misses[page % MISSES] == page)
        return;
    struct qemu_plugin_hwaddr *hardware = qemu_plugin_get_hwaddr(info, va);
    if (!hardware || qemu_plugin_hwaddr_is_io(hardware))
        return;
    uint64_t ma = qemu_plugin_hwaddr_phys_addr(hardware);
    if (find(a, ma, &slot))
        note(a, ma, (uint64_t)(uintptr_t)pc, 1U << qemu_plugin_mem_size_shift(info), qemu_plugin_mem_is_store(info));
    else if (va >= DIRECT_MAP)
        a->misses[page % MISSES] = page;
}

void accesses_add_block(unsigned cpu)
{
    struct accesses *a = &all[cpu];
    size_t length = a->used * sizeof *a->runs;
    struct block *b = rec_block(BLK_ACCESSES, length);
    if (!b)
        return;
    if (a->incomplete)
        b->flags |= BLK_F_LIMIT;
    b->count = a->used;
    memcpy(b + 1, a->runs, length);
    rec_close_block(b, length);
}

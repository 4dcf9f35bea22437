/*
 * A vCPU stands still at a point of Xen while the others go on: so the order of two calls is made, not awaited. A point
 * is an instruction, or a kind of event before it is recorded. One vCPU stands at a time.
 *
 * It does not block in its callback for long: other vCPUs that want the machine for themselves (QEMU's exclusive
 * sections: a TLB flush on all CPUs) would wait for it. It waits a little, and is sent back to the same instruction:
 * interrupts and such requests are served between. The stand ends when the consumer lets it go or is lost, when another
 * vCPU only waits (for a lock that this one has), or when nothing ended it in time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "hold.h"

#define WAITS 1ULL       /* in a site: a block that sleeps until there is news of a lock; addresses are multiples of four */
#define BLOCK 2ULL       /* in a site: the first instruction of a block */
#define KIND_SHIFT 56    /* in a site: the kind of event that the instruction is, 0 none; Xen's addresses are lower */
#define VA_MASK ((1ULL << KIND_SHIFT) - 4)
#define PAUSE_MS 2
#define WAITS_NS 20000000ULL /* a lock of Xen is held for microseconds */
#define LOOP 128ULL      /* bytes: how far the parts of a loop that waits lie from each other */
#define MOST_TURNS 5000  /* of blocks of a loop: one over a page's words has fewer */
#define PATH_LIMIT 4096

static struct {
    int mode;
    struct wire_hold wanted;
    uint32_t passed;
    unsigned cpu;
    uint64_t va, sp, until;
    struct { uint64_t va, since, turns; } loops[MAX_CPUS]; /* where each CPU is, since when, how many blocks long */
    uint64_t took; /* instructions of the stretch so far: those of coming back do not count */
    uint64_t path[PATH_LIMIT];
    size_t length;
} h;

static struct qemu_plugin_scoreboard *armed; /* a word for each vCPU, which translated code looks at */
static uint64_t limit_ns;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

bool hold_init(unsigned timeout_ms)
{
    limit_ns = (timeout_ms ? timeout_ms : 60000) * 1000000ULL;
    return !options.lockstep || (armed = qemu_plugin_scoreboard_new(8));
}

static void set_mode(int mode)
{
    h.mode = mode;
    for (unsigned cpu = 0; cpu < MAX_CPUS && cpu_exists(cpu); cpu++)
        __atomic_store_n((uint64_t *)qemu_plugin_scoreboard_find(armed, cpu), mode != HOLD_NONE, __ATOMIC_RELEASE);
}

static void tell(int what, const uint64_t *more, size_t count)
{
    lockstep_hold(what, h.wanted.at, more, count);
    lockstep_push();
}

static void end(int what)
{
    bool told = h.mode != HOLD_NONE;
    set_mode(HOLD_NONE);
    plugin_wake();
    if (told)
        tell(what, NULL, 0);
}

bool hold_request(const struct wire_hold *wanted)
{
    MUST_BE_INSIDE();
    if (!armed || clock_counts_instructions() || wanted->mode >= HOLD_STANDING)
        return false;
    if (h.mode == HOLD_PATH) {
        set_mode(HOLD_NONE);
        tell(HELD_PATH, h.path, h.length);
    }
    end(HELD_RELEASED);
    h.wanted = *wanted;
    h.passed = 0;
    h.length = 0;
    set_mode((int)wanted->mode);
    return true;
}

void hold_lost(void)
{
    if (armed) {
        set_mode(HOLD_NONE);
        plugin_wake();
    }
}

static bool is_wanted(unsigned cpu, unsigned kind)
{
    struct who who;
    memory_begin();
    if (kind && !event_is_due(cpu, (int)kind))
        return false;
    xen_who(cpu, &who);
    return who.domain == h.wanted.domain && who.id == h.wanted.vcpu;
}

static void note(unsigned cpu, uint64_t va)
{
    for (size_t i = 0; i < h.length; i++)
        if (h.path[i] == va)
            return;
    if (h.length < PATH_LIMIT && is_wanted(cpu, 0))
        h.path[h.length++] = va;
}

static void note_wait(unsigned cpu, uint64_t va, bool waits)
{
    if (va - h.loops[cpu].va + LOOP > 2 * LOOP) {
        h.loops[cpu].va = va;
        h.loops[cpu].since = now();
        h.loops[cpu].turns = 0;
    }
    h.loops[cpu].turns += waits ? MOST_TURNS : 1;
}

static bool other_waits(void)
{
    for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++)
        if (cpu != h.cpu && h.loops[cpu].turns >= MOST_TURNS && now() - h.loops[cpu].since > WAITS_NS)
            return true;
    return false;
}

static bool is_here(unsigned cpu, uint64_t va)
{
    return h.mode == HOLD_STANDING && h.cpu == cpu && h.va == va && h.sp == reg_read(cpu, R_SP);
}

static void look(unsigned cpu, uint64_t site)
{
    uint64_t va = site & VA_MASK, kind = site >> KIND_SHIFT;
    if (h.mode == HOLD_PATH && site & BLOCK && coverage_covers(va))
        note(cpu, va);
    if (h.mode == HOLD_STANDING && cpu != h.cpu && !kind)
        note_wait(cpu, va, site & WAITS);
    if (h.mode != HOLD_ARMED || (kind ? kind : va) != h.wanted.at || !is_wanted(cpu, (unsigned)kind) ||
        ++h.passed != h.wanted.pass)
        return;
    h.cpu = cpu;
    h.va = va;
    h.sp = reg_read(cpu, R_SP);
    h.until = now() + limit_ns;
    memset(h.loops, 0, sizeof h.loops);
    h.took = stretch_took(cpu);
    set_mode(HOLD_STANDING);
    tell(HELD_REACHED, NULL, 0);
}

/* Before an instruction at which a vCPU may stand, while anything is wanted. */
static void on_site(unsigned reported, void *udata)
{
    unsigned cpu = cpu_running(reported);
    uint64_t site = (uint64_t)(uintptr_t)udata;
    if (!plugin_enter())
        return;
    if (is_here(cpu, site & VA_MASK))
        stretch_set_took(cpu, h.took);
    else
        look(cpu, site);
    if (is_here(cpu, site & VA_MASK) && other_waits())
        end(HELD_OTHER_WAITS);
    if (is_here(cpu, site & VA_MASK) && now() > h.until)
        end(HELD_EXPIRED);
    if (is_here(cpu, site & VA_MASK))
        plugin_wait(PAUSE_MS);
    bool stands = is_here(cpu, site & VA_MASK);
    plugin_leave();
    if (stands)
        qemu_plugin_set_pc(site & VA_MASK);
}

void hold_instrument(struct qemu_plugin_insn *insn, uint64_t va, unsigned kind, bool block, bool waits)
{
    uint64_t site = (va & VA_MASK) | (uint64_t)kind << KIND_SHIFT | (block ? BLOCK : 0) | (waits ? WAITS : 0);
    qemu_plugin_u64 flag = {armed, 0};
    if (armed && !clock_counts_instructions())
        qemu_plugin_register_vcpu_insn_exec_cond_cb(insn, on_site, CB_WRITE_PC, COND_NE, flag, 0,
                                                    (void *)(uintptr_t)site);
}

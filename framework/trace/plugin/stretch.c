/*
 * How many instructions EL2 executes between two borders of a guest call, and the record's blocks for that.
 *
 * The counter grows by a whole translation block when the block begins, so a stretch is exact to a block, and the same
 * in every run of the same path. Neither an interrupt (or another exception of EL2 itself) that Xen takes on the way
 * counts, nor a loop in which it waits for another CPU, nor what it does on its way out to the guest (softirqs,
 * scheduling).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "senses.h"

static struct stretch {
    uint64_t key;
    uint64_t began, took; /* EL2 instructions of this CPU */
    uint64_t taken_at;    /* the same, when the outermost of `depth` exceptions was taken */
    unsigned depth;
    uint8_t state; /* written by this CPU's thread */
} stretches[MAX_CPUS];

static unsigned open_stretches; /* on all CPUs: nearly always none */
static struct qemu_plugin_scoreboard *instructions;

bool stretch_init(void)
{
    return !options.time || (instructions = qemu_plugin_scoreboard_new(8));
}

static bool counts(void)
{
    return options.time && !clock_counts_instructions();
}

void stretch_instrument(struct qemu_plugin_tb *tb, size_t count, bool only_waits)
{
    qemu_plugin_u64 counter = {instructions, 0};
    if (counts() && !only_waits)
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, INLINE_ADD_U64, counter, count);
}

static uint64_t executed(unsigned cpu)
{
    return counts() ? *(uint64_t *)qemu_plugin_scoreboard_find(instructions, cpu) : 0;
}

static uint8_t state_of(const struct stretch *s)
{
    return __atomic_load_n(&s->state, __ATOMIC_ACQUIRE);
}

static void set_state(struct stretch *s, uint8_t state)
{
    int more = (state == STRETCH_OPEN) - (state_of(s) == STRETCH_OPEN);
    __atomic_fetch_add(&open_stretches, (unsigned)more, __ATOMIC_RELAXED);
    __atomic_store_n(&s->state, state, __ATOMIC_RELEASE);
}

bool stretch_is_any_open(void)
{
    return __atomic_load_n(&open_stretches, __ATOMIC_RELAXED) != 0;
}

bool stretch_is_open(unsigned cpu)
{
    return state_of(&stretches[cpu]) == STRETCH_OPEN;
}

void stretch_begin(unsigned cpu, uint64_t key, bool first)
{
    MUST_BE_INSIDE();
    if (!key || (xen.known && !xen.leave) || (!options.time && !options.reads))
        return;
    stretches[cpu].key = key;
    stretches[cpu].began = executed(cpu);
    stretches[cpu].depth = 0;
    accesses_begin(cpu, first);
    set_state(&stretches[cpu], STRETCH_OPEN);
}

static void freeze(unsigned cpu)
{
    stretches[cpu].took = executed(cpu) - stretches[cpu].began;
    set_state(&stretches[cpu], STRETCH_FROZEN);
}

uint64_t stretch_took(unsigned cpu)
{
    return stretch_is_open(cpu) ? executed(cpu) - stretches[cpu].began : 0;
}

void stretch_set_took(unsigned cpu, uint64_t took)
{
    if (stretch_is_open(cpu))
        stretches[cpu].began = executed(cpu) - took;
}

/* First instruction of Xen's way out to a guest. */
void on_leaving(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    if (stretch_is_open(cpu))
        freeze(cpu);
}

/* First instruction of a vector for exceptions that EL2 takes from EL2. */
void on_own_exception(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    if (stretch_is_open(cpu) && !stretches[cpu].depth++)
        stretches[cpu].taken_at = executed(cpu);
}

void stretch_own_exception_ends(unsigned cpu)
{
    struct stretch *s = &stretches[cpu];
    if (stretch_is_open(cpu) && s->depth && !--s->depth)
        s->began += executed(cpu) - s->taken_at;
}

/* Where the call's latest stretch was seen: Xen may have moved the vCPU to another CPU on its way out. */
static struct stretch *find(unsigned cpu, uint64_t key)
{
    if (stretches[cpu].key == key && stretches[cpu].state != STRETCH_CLOSED)
        return &stretches[cpu];
    for (unsigned i = 0; i < MAX_CPUS; i++)
        if (i != cpu && state_of(&stretches[i]) == STRETCH_FROZEN && stretches[i].key == key)
            return &stretches[i];
    return NULL;
}

void stretch_end(unsigned cpu, uint64_t key)
{
    MUST_BE_INSIDE();
    struct stretch *s = key ? find(cpu, key) : NULL;
    if (!s)
        return;
    unsigned owner = (unsigned)(s - stretches);
    if (s->state == STRETCH_OPEN)
        freeze(owner);
    if (counts()) {
        struct block *b = rec_block(BLK_INSTRUCTIONS, 8);
        if (b) {
            *(uint64_t *)(b + 1) = s->took;
            rec_close_block(b, 8);
        }
    }
    if (options.reads)
        accesses_add_block(owner);
    set_state(s, STRETCH_CLOSED);
}

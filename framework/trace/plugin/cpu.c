/*
 * Which vCPU runs. QEMU tells every callback, but with one thread for all CPUs (-icount, thread=single) it tells the CPU
 * for which the code was translated first: it takes that mode for a machine with one CPU (accel/tcg/plugin-gen.c). Its
 * own current_cpu, which it exports to its modules and so to us, is right; what CPU that is, the callback at the CPU's
 * beginning knew, because it comes from no translated code.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "trace.h"

/* Written while vCPUs begin, which may be while others run already. */
static const void *states[MAX_CPUS];
static bool useless; /* a machine, or a QEMU, where this does not hold: what QEMU tells must do */

static const void *current_state(void)
{
    static __thread void **current_cpu;
    if (!current_cpu)
        current_cpu = dlsym(RTLD_DEFAULT, "current_cpu");
    return current_cpu ? *current_cpu : NULL;
}

static const void *state_of(unsigned cpu)
{
    return __atomic_load_n(&states[cpu], __ATOMIC_RELAXED);
}

static bool begun[MAX_CPUS];

bool cpu_exists(unsigned cpu)
{
    return __atomic_load_n(&begun[cpu], __ATOMIC_RELAXED);
}

void cpu_begins(unsigned cpu)
{
    const void *state = current_state();
    for (unsigned i = 0; i < MAX_CPUS; i++)
        if (!state || (i != cpu && state_of(i) == state))
            __atomic_store_n(&useless, true, __ATOMIC_RELAXED);
    if (cpu < MAX_CPUS) {
        __atomic_store_n(&states[cpu], state, __ATOMIC_RELAXED);
        __atomic_store_n(&begun[cpu], true, __ATOMIC_RELAXED);
    }
}

unsigned cpu_running(unsigned reported)
{
    const void *state = __atomic_load_n(&useless, __ATOMIC_RELAXED) ? NULL : current_state();
    if (!state || state_of(reported) == state)
        return reported;
    for (unsigned i = 0; i < MAX_CPUS; i++)
        if (state_of(i) == state)
            return i;
    return reported;
}

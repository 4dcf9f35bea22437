/*
 * The board's virtual time. The plugin API has no clock, but QEMU exports its own functions to its modules, and so to
 * us: found at run time, with the host's clock when they are not there.
 *
 * With -icount the clock counts instructions, and QEMU refuses to read it in the middle of a translation block, where we
 * are (it exits: "Bad icount read"), because the block has been counted whole. For a time stamp that is good enough:
 * it is at most a block ahead, the same in every run, and never runs backwards here. The check is made only while a
 * vCPU is current, so none is for the length of the call.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

#include "trace.h"

#define QEMU_CLOCK_VIRTUAL 1

static int64_t (*virtual_clock)(int);
static void (*icount_update)(void *cpu);
static const int *use_icount;
static __thread void **current_cpu;

const char *clock_choose(void)
{
    virtual_clock = (int64_t (*)(int))dlsym(RTLD_DEFAULT, "qemu_clock_get_ns");
    icount_update = (void (*)(void *))dlsym(RTLD_DEFAULT, "icount_update");
    use_icount = dlsym(RTLD_DEFAULT, "use_icount");
    return virtual_clock ? "virtual" : "host";
}

static uint64_t icount_clock(void)
{
    static uint64_t latest;
    MUST_BE_INSIDE();
    if (!current_cpu)
        current_cpu = dlsym(RTLD_DEFAULT, "current_cpu");
    if (!current_cpu || !icount_update)
        return latest;
    void *cpu = *current_cpu;
    if (cpu)
        icount_update(cpu);
    *current_cpu = NULL;
    uint64_t now = (uint64_t)virtual_clock(QEMU_CLOCK_VIRTUAL);
    *current_cpu = cpu;
    return latest = now > latest ? now : latest;
}

bool clock_counts_instructions(void)
{
    return use_icount && *use_icount;
}

uint64_t clock_now(void)
{
    if (virtual_clock)
        return clock_counts_instructions() ? icount_clock() : (uint64_t)virtual_clock(QEMU_CLOCK_VIRTUAL);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

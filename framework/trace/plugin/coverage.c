/*
 * Which instructions of the mediator ran, how often, and which way its conditional branches went: counters beside the
 * translated code of the unmodified binary. The counts are written once, when the board ends, as text:
 *
 *     medcheck-coverage 1
 *     range START END
 *     ADDRESS COUNT OUTCOMES       an instruction that ran; outcomes: 1 fell through, 2 branched
 *     end LINES                    how many lines of instructions there were: a file without it was cut
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "senses.h"

#define RANGES 64
#define MOST_WORDS (1U << 18) /* 1 MiB of code: far more than a mediator */
#define FELL_THROUGH 1
#define BRANCHED 2
#define RAN 4

struct site { /* one instruction */
    uint64_t calls; /* executions that a callback counted */
    uint32_t opcode;
    uint8_t outcomes;
    uint8_t told; /* of these, and that it ran at all: what coverage_news has handed out */
};

static struct { uint64_t start, end; size_t first; } ranges[RANGES];
static unsigned count;
static size_t words;
static struct site *sites;
static struct qemu_plugin_scoreboard *executions; /* a counter for each word of code, of each vCPU */
static int fd = -1;

bool coverage_range(const char *text)
{
    char *end;
    uint64_t start = strtoull(text, &end, 0), stop = *end == '-' ? strtoull(end + 1, &end, 0) : 0;
    if (*end || start & 3 || stop & 3 || start >= stop || (stop - start) / 4 > MOST_WORDS - words || count == RANGES)
        return false;
    ranges[count].start = start;
    ranges[count].end = stop;
    ranges[count++].first = words;
    words += (stop - start) / 4;
    return true;
}

const char *coverage_open(const char *path)
{
    if (!words)
        return "coverage needs the addresses of the mediator's code (cover=START-END)";
    sites = calloc(words, sizeof *sites);
    executions = qemu_plugin_scoreboard_new(words * 8);
    if (!sites || !executions)
        return "no memory to count what runs";
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd < 0 ? strerror(errno) : NULL;
}

static bool is_conditional(uint32_t opcode)
{
    return (opcode & 0xff000000U) == 0x54000000U /* b.cond, bc.cond */ ||
           (opcode & 0x7c000000U) == 0x34000000U /* cbz, cbnz, tbz, tbnz */;
}

static bool holds(unsigned condition, unsigned flags)
{
    bool n = flags & 8, z = flags & 4, c = flags & 2, v = flags & 1, result;
    switch (condition >> 1) {
    case 0: result = z; break;
    case 1: result = c; break;
    case 2: result = n; break;
    case 3: result = v; break;
    case 4: result = c && !z; break;
    case 5: result = n == v; break;
    case 6: result = !z && n == v; break;
    default: return true;
    }
    return result != (condition & 1);
}

static bool branches(unsigned cpu, uint32_t opcode)
{
    if ((opcode & 0xff000000U) == 0x54000000U)
        return holds(opcode & 15, reg_read(cpu, R_CPSR) >> 28 & 15);
    bool if_set = opcode >> 24 & 1;
    uint64_t x = (opcode & 31) == 31 ? 0 : reg_read(cpu, R_X0 + (int)(opcode & 31));
    if (opcode & 0x02000000U)
        return (x >> ((opcode >> 31) << 5 | (opcode >> 19 & 31)) & 1) == if_set;
    if (!(opcode >> 31))
        x &= 0xffffffffU;
    return (x != 0) == if_set;
}

static void on_branch(unsigned reported, void *udata)
{
    struct site *site = udata;
    if (__atomic_load_n(&site->outcomes, __ATOMIC_RELAXED) == (FELL_THROUGH | BRANCHED))
        return;
    uint32_t opcode = __atomic_load_n(&site->opcode, __ATOMIC_RELAXED);
    uint8_t outcome = branches(cpu_running(reported), opcode) ? BRANCHED : FELL_THROUGH;
    __atomic_fetch_or(&site->outcomes, outcome, __ATOMIC_RELAXED);
}

static void on_execution(unsigned reported, void *udata)
{
    struct site *site = udata;
    (void)reported;
    __atomic_fetch_add(&site->calls, 1, __ATOMIC_RELAXED);
}

bool coverage_covers(uint64_t va)
{
    for (unsigned i = 0; i < count; i++)
        if (va >= ranges[i].start && va < ranges[i].end)
            return true;
    return false;
}

void coverage_instrument(struct qemu_plugin_insn *insn, uint64_t va, uint32_t opcode)
{
    for (unsigned i = 0; sites && i < count; i++) {
        if (va < ranges[i].start || va >= ranges[i].end)
            continue;
        size_t slot = ranges[i].first + (va - ranges[i].start) / 4;
        qemu_plugin_u64 counter = {executions, slot * 8};
        if (clock_counts_instructions())
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_execution, CB_NO_REGS, &sites[slot]);
        else
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, INLINE_ADD_U64, counter, 1);
        if (is_conditional(opcode)) {
            __atomic_store_n(&sites[slot].opcode, opcode, __ATOMIC_RELAXED); /* by several threads, the same */
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_branch, CB_READ_REGS, &sites[slot]);
        }
        return;
    }
}

static uint64_t executed(size_t slot)
{
    uint64_t sum = __atomic_load_n(&sites[slot].calls, __ATOMIC_RELAXED);
    for (unsigned cpu = 0; cpu < MAX_CPUS && cpu_exists(cpu); cpu++)
        sum += __atomic_load_n((uint64_t *)qemu_plugin_scoreboard_find(executions, cpu) + slot, __ATOMIC_RELAXED);
    return sum;
}

size_t coverage_news(uint64_t *found, size_t room)
{
    size_t n = 0;
    for (unsigned i = 0; executions && i < count; i++)
        for (uint64_t va = ranges[i].start; va < ranges[i].end && n < room; va += 4) {
            size_t slot = ranges[i].first + (va - ranges[i].start) / 4;
            struct site *site = &sites[slot];
            if (site->told == (RAN | FELL_THROUGH | BRANCHED))
                continue;
            uint8_t ways = __atomic_load_n(&site->outcomes, __ATOMIC_RELAXED);
            uint8_t seen = site->told & RAN || executed(slot) ? RAN | ways : 0;
            if (seen & ~site->told)
                found[n++] = va | (ways & ~site->told);
            site->told |= seen;
        }
    return n;
}

void coverage_close(void)
{
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    unsigned long lines = 0;
    if (!file)
        return;
    fd = -1;
    fprintf(file, "medcheck-coverage 1\n");
    for (unsigned i = 0; i < count; i++)
        fprintf(file, "range %#" PRIx64 " %#" PRIx64 "\n", ranges[i].start, ranges[i].end);
    for (unsigned i = 0; i < count; i++)
        for (uint64_t va = ranges[i].start; va < ranges[i].end; va += 4) {
            size_t slot = ranges[i].first + (va - ranges[i].start) / 4;
            uint64_t times = executed(slot);
            if (times && ++lines)
                fprintf(file, "%#" PRIx64 " %" PRIu64 " %u\n", va, times,
                        __atomic_load_n(&sites[slot].outcomes, __ATOMIC_RELAXED));
        }
    fprintf(file, "end %lu\n", lines);
    if (fclose(file))
        fprintf(stderr, "medcheck_trace: the coverage could not be written: %s\n", strerror(errno));
}

/*
 * The probe guest: executes programs of SMCs, HVCs, hypercalls and memory accesses, and reports what came back.
 * docs/probe.md describes the instructions and the transports.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

#define PAGE 4096UL
#define CALL_REGS 18

enum op {
    OP_CALL = 1, OP_WRITE, OP_READ, OP_FILL, OP_HYPERCALL, OP_DRIVE, OP_RUN, OP_JOIN, OP_SET, OP_WAIT, OP_DELAY, OP_LOOP,
    OP_IF, OP_BREAK, OP_ADD, OP_COPY, OP_SCAN, OP_RPC_PAGE, OP_CODE,
};

enum flag { FLAG_SMC = 1, FLAG_QUIET = 2, FLAG_CATCH = 4, FLAG_NOT = 8, FLAG_ADD = 16, FLAG_STOP = 32, FLAG_U32 = 64,
            FLAG_ANSWER = 128 };

enum status { ST_OK, ST_FAULT, ST_TIMEOUT, ST_BAD_PROGRAM, ST_FULL, ST_BUSY };

struct cpu {
    u64 fault_sp; /* first: the exception vector reads it through TPIDR_EL1 */
    u64 context[13];
    bool armed;
    bool on;
    u32 id;
    volatile u32 running; /* other vCPUs: 1 from RUN until the section has ended */
    u32 port;             /* event channel that wakes this vCPU */
    const u64 *program;
    u64 *results;
    u64 used, room; /* of results, in words */
    u64 step;       /* word offset of the instruction being executed */
    u64 last[CALL_REGS];
    u32 stub[2] __attribute__((aligned(64)));
};

extern struct cpu cpus[VCPUS_MAX];
extern u64 flags[64];

/* start.S */
int save_context(u64 *context) __attribute__((returns_twice));
_Noreturn void restore_context(u64 *context);
void call_out(u64 *regs, const void *stub);
extern const char stub_hvc[], stub_smc[];
s64 hypercall(u64 op, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4);
void ring(u64 mailbox, u64 sequence, u64 words, u64 protocol);
void secondary_entry(void);

/* exec.c */
void run_section(struct cpu *cpu, const u64 *program, u64 words);
u64 *record(struct cpu *cpu, u32 op, u32 status, u64 words);
void guest_call(struct cpu *cpu, u64 *regs, u32 flags, u32 immediate);

/* rpc.c */
void drive(struct cpu *cpu, u64 *regs, u32 flags, u32 immediate, const u64 *policy);
bool rpc_page_set(u64 cookie, u64 ipa);

/* xen.c */
void xen_start(void);
void console_write(const char *data, size_t length);
size_t console_read(char *data, size_t room);
bool console_has_input(void);
void wait_for_work(struct cpu *cpu, u64 timeout_us);
u32 cpu_port(u32 vcpu);
void kick(u32 port);
void yield(void);
_Noreturn void crash(void);

/* main.c */
bool start_vcpu(u32 id);

static inline u64 now(void)
{
    u64 value;
    __asm__ volatile("isb; mrs %0, cntpct_el0" : "=r"(value)::"memory");
    return value;
}

static inline u64 frequency(void)
{
    u64 value;
    __asm__("mrs %0, cntfrq_el0" : "=r"(value));
    return value;
}

static inline u64 ticks(u64 us) { return us * (frequency() / 1000) / 1000; }
static inline void barrier(void) { __asm__ volatile("dsb sy" ::: "memory"); }

void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);

#endif

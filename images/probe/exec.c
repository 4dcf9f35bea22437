/*
 * The interpreter: one instruction after the other, each with a record of what happened unless it is quiet.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "probe.h"

struct cpu cpus[VCPUS_MAX];
u64 flags[64];

enum flow { GO_ON, LEAVE_LOOP, STOP };

static enum flow execute(struct cpu *cpu, const u64 *code, u64 words);

/* Room for one record, or NULL when the buffer is full. A record: op | status << 16 | words << 32, step, payload. */
u64 *record(struct cpu *cpu, u32 op, u32 status, u64 words)
{
    /* Two words stay free for the record that says the buffer is full. */
    if (cpu->used + words + 4 > cpu->room) {
        if (cpu->used + 2 <= cpu->room) {
            cpu->results[cpu->used++] = op | (u64)ST_FULL << 16;
            cpu->results[cpu->used++] = cpu->step;
            cpu->room = cpu->used;
        }
        return NULL;
    }
    u64 *at = cpu->results + cpu->used;
    at[0] = op | (u64)status << 16 | words << 32;
    at[1] = cpu->step;
    cpu->used += words + 2;
    return at + 2;
}

/* Called by the vector on the second stack. */
_Noreturn void on_exception(struct cpu *cpu, u64 esr, u64 elr, u64 far, u64 spsr, u64 kind)
{
    u64 fault[] = {esr, elr, far, spsr, kind};
    if (!cpu->armed)
        crash();
    cpu->armed = false;
    u64 *at = record(cpu, *(const u16 *)(cpu->program + cpu->step), ST_FAULT, 5);
    if (at)
        memcpy(at, fault, sizeof fault);
    restore_context(cpu->context);
}

/* SMC or HVC with any immediate: the instruction is part of the opcode, so unusual ones are written first. */
void guest_call(struct cpu *cpu, u64 *regs, u32 how, u32 immediate)
{
    const void *stub = how & FLAG_SMC ? stub_smc : stub_hvc;
    if (immediate) {
        cpu->stub[0] = (how & FLAG_SMC ? 0xd4000003 : 0xd4000002) | (immediate & 0xffff) << 5;
        cpu->stub[1] = 0xd65f03c0; /* ret */
        __asm__ volatile("dc cvau, %0; dsb ish; ic ivau, %0; dsb ish; isb" ::"r"(cpu->stub) : "memory");
        stub = cpu->stub;
    }
    call_out(regs, stub);
}

static enum flow bad(struct cpu *cpu, u32 op)
{
    record(cpu, op, ST_BAD_PROGRAM, 0);
    return STOP;
}

static enum flow op_call(struct cpu *cpu, const u64 *code, u64 words, u32 how)
{
    u64 regs[CALL_REGS] = {0};
    u64 count = words - 2 > CALL_REGS ? CALL_REGS : words - 2;
    memcpy(regs, code + 2, count * 8);
    u64 began = now();
    guest_call(cpu, regs, how, (u32)code[1]);
    u64 took = now() - began;
    memcpy(cpu->last, regs, sizeof regs);
    if (how & FLAG_QUIET)
        return GO_ON;
    u64 *at = record(cpu, OP_CALL, ST_OK, CALL_REGS + 1);
    if (!at)
        return STOP;
    memcpy(at, regs, sizeof regs);
    at[CALL_REGS] = took;
    return GO_ON;
}

static enum flow op_read(struct cpu *cpu, const u64 *code)
{
    u64 *at = record(cpu, OP_READ, ST_OK, (code[2] + 7) / 8);
    if (!at)
        return STOP;
    u64 used = cpu->used;
    /* A fault half way must leave a fault record and not half of this one. */
    cpu->used = (u64)(at - cpu->results) - 2;
    memcpy(at, (const void *)code[1], code[2]);
    cpu->used = used;
    return GO_ON;
}

static enum flow op_scan(struct cpu *cpu, const u64 *code, u32 how)
{
    u64 found[16] = {0};
    u64 stride = how & FLAG_U32 ? 4 : 8;
    for (u64 at = code[1]; at + stride <= code[1] + code[2]; at += stride) {
        u64 value = stride == 4 ? *(const volatile u32 *)at : *(const volatile u64 *)at;
        if ((value & code[3]) != code[4])
            continue;
        if (found[0] < 15)
            found[1 + found[0]] = at;
        found[0]++;
    }
    u64 *at = record(cpu, OP_SCAN, ST_OK, 16);
    if (!at)
        return STOP;
    memcpy(at, found, sizeof found);
    return GO_ON;
}

static bool condition(struct cpu *cpu, const u64 *code, u32 how)
{
    u64 value;
    if (code[1] == 0)
        value = cpu->last[code[2] % CALL_REGS];
    else if (how & FLAG_U32)
        value = *(const volatile u32 *)code[2];
    else
        value = *(const volatile u64 *)code[2];
    return ((value & code[3]) == code[4]) != !!(how & FLAG_NOT);
}

static enum flow op_run(struct cpu *cpu, const u64 *code, u64 words)
{
    u64 id = code[1];
    if (id == 0 || id >= VCPUS_MAX || cpu->id || (words - 2) * 8 > OTHERS_HALF)
        return bad(cpu, OP_RUN);
    struct cpu *other = cpus + id;
    if (other->running || !start_vcpu((u32)id)) {
        record(cpu, OP_RUN, ST_BUSY, 0);
        return STOP;
    }
    u64 *program = (u64 *)(OTHERS + (id - 1) * 2 * OTHERS_HALF);
    memcpy(program, code + 2, (words - 2) * 8);
    other->program = program;
    other->results = (u64 *)((u64)program + OTHERS_HALF);
    other->room = OTHERS_HALF / 8;
    other->used = words - 2; /* the section's length, until the vCPU takes it up */
    barrier();
    other->running = 1;
    barrier();
    kick(other->port);
    return GO_ON;
}

static bool reached(volatile u64 *where, u64 value, u64 timeout_us)
{
    for (u64 began = now(), limit = ticks(timeout_us), turn = 0; *where < value; turn++) {
        if (now() - began > limit)
            return false;
        if (turn > 100)
            yield();
    }
    return true;
}

static enum flow op_join(struct cpu *cpu, const u64 *code)
{
    u64 id = code[1];
    if (id == 0 || id >= VCPUS_MAX || cpu->id)
        return bad(cpu, OP_JOIN);
    struct cpu *other = cpus + id;
    for (u64 began = now(), limit = ticks(code[2]), turn = 0; other->running; turn++) {
        if (now() - began > limit) {
            record(cpu, OP_JOIN, ST_TIMEOUT, 0);
            return STOP;
        }
        if (turn > 100)
            yield();
    }
    barrier();
    u64 *at = record(cpu, OP_JOIN, ST_OK, other->used + 1);
    if (!at)
        return STOP;
    at[0] = id;
    memcpy(at + 1, other->results, other->used * 8);
    other->used = 0;
    return GO_ON;
}

/* Instructions that hold no others; an exception in them ends here as well. */
static enum flow leaf(struct cpu *cpu, const u64 *code, u64 words, u32 how)
{
    u64 *at;
    u64 regs[CALL_REGS] = {0};
    switch ((u16)code[0]) {
    case OP_CALL:
        return op_call(cpu, code, words, how);
    case OP_DRIVE:
        memcpy(regs, code + 5, (words - 5 > CALL_REGS ? CALL_REGS : words - 5) * 8);
        drive(cpu, regs, how, (u32)code[1], code + 2);
        return GO_ON;
    case OP_WRITE:
        memcpy((void *)code[1], code + 3, code[2]);
        barrier();
        return GO_ON;
    case OP_READ:
        return op_read(cpu, code);
    case OP_FILL:
        for (u64 i = 0, value = code[3]; i < code[2]; i++, value += code[4])
            ((volatile u64 *)code[1])[i] = value;
        barrier();
        return GO_ON;
    case OP_HYPERCALL:
        barrier();
        cpu->last[0] = (u64)hypercall(code[1], code[2], code[3], code[4], code[5], code[6]);
        if (how & FLAG_QUIET)
            return GO_ON;
        at = record(cpu, OP_HYPERCALL, ST_OK, 1);
        if (!at)
            return STOP;
        at[0] = cpu->last[0];
        return GO_ON;
    case OP_SET:
        if (how & FLAG_ADD)
            __atomic_add_fetch(flags + code[1] % 64, code[2], __ATOMIC_SEQ_CST);
        else
            __atomic_store_n(flags + code[1] % 64, code[2], __ATOMIC_SEQ_CST);
        return GO_ON;
    case OP_WAIT:
        if (reached(flags + code[1] % 64, code[2], code[3]))
            return GO_ON;
        record(cpu, OP_WAIT, ST_TIMEOUT, 0);
        return STOP;
    case OP_DELAY:
        for (u64 began = now(), limit = ticks(code[1]); now() - began < limit;)
            yield();
        return GO_ON;
    case OP_ADD:
        if (how & FLAG_U32)
            *(volatile u32 *)code[1] += (u32)code[2];
        else
            *(volatile u64 *)code[1] += code[2];
        return GO_ON;
    case OP_COPY:
        memcpy((void *)code[1], (const void *)code[2], code[3]);
        barrier();
        return GO_ON;
    case OP_SCAN:
        return op_scan(cpu, code, how);
    case OP_RPC_PAGE:
        return rpc_page_set(code[1], code[2]) ? GO_ON : bad(cpu, OP_RPC_PAGE);
    case OP_CODE:
        memcpy(regs, code + 2, (words - 2 > CALL_REGS ? CALL_REGS : words - 2) * 8);
        __asm__ volatile("ic iallu; dsb sy; isb" ::: "memory");
        call_out(regs, (const void *)code[1]);
        memcpy(cpu->last, regs, sizeof regs);
        at = record(cpu, OP_CODE, ST_OK, CALL_REGS);
        if (!at)
            return STOP;
        memcpy(at, regs, sizeof regs);
        return GO_ON;
    default:
        return bad(cpu, (u16)code[0]);
    }
}

/* Words of each instruction at least; 0: there is no such instruction. */
static const u8 shortest[] = {
    [OP_CALL] = 3, [OP_WRITE] = 3, [OP_READ] = 3, [OP_FILL] = 5, [OP_HYPERCALL] = 7, [OP_DRIVE] = 6, [OP_RUN] = 2,
    [OP_JOIN] = 3, [OP_SET] = 3, [OP_WAIT] = 4, [OP_DELAY] = 2, [OP_LOOP] = 2, [OP_IF] = 5, [OP_BREAK] = 1, [OP_ADD] = 3,
    [OP_COPY] = 4, [OP_SCAN] = 5, [OP_RPC_PAGE] = 3, [OP_CODE] = 3,
};

static enum flow one(struct cpu *cpu, const u64 *code, u64 words)
{
    u16 op = (u16)code[0];
    u32 how = (u16)(code[0] >> 16);
    enum flow flow = GO_ON;
    cpu->step = (u64)(code - cpu->program);
    if (op >= sizeof shortest || !shortest[op] || words < shortest[op])
        return bad(cpu, op);
    switch (op) {
    case OP_LOOP:
        for (u64 i = 0; i < code[1] && flow == GO_ON; i++)
            flow = execute(cpu, code + 2, words - 2);
        return flow == STOP ? STOP : GO_ON;
    case OP_IF:
        return condition(cpu, code, how) ? execute(cpu, code + 5, words - 5) : GO_ON;
    case OP_BREAK:
        return how & FLAG_STOP ? STOP : LEAVE_LOOP;
    case OP_RUN:
        return op_run(cpu, code, words);
    case OP_JOIN:
        return op_join(cpu, code);
    default:
        break;
    }
    if (save_context(cpu->context))
        return how & FLAG_CATCH ? GO_ON : STOP;
    cpu->armed = true;
    flow = leaf(cpu, code, words, how);
    cpu->armed = false;
    return flow;
}

static enum flow execute(struct cpu *cpu, const u64 *code, u64 words)
{
    enum flow flow = GO_ON;
    for (u64 at = 0, length; at < words && flow == GO_ON; at += length) {
        length = code[at] >> 32;
        if (length == 0 || length > words - at) {
            cpu->step = (u64)(code + at - cpu->program);
            return bad(cpu, (u16)code[at]);
        }
        flow = one(cpu, code + at, length);
    }
    return flow;
}

void run_section(struct cpu *cpu, const u64 *program, u64 words)
{
    cpu->program = program;
    cpu->used = 0;
    execute(cpu, program, words);
    barrier();
}

/*
 * The events themselves: each function is called before one of the instructions that hooks.c chose, makes a record of
 * what it finds, and stores it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "senses.h"
#include "sink.h"

#define EC_HVC32 0x12
#define EC_SMC32 0x13
#define EC_HVC64 0x16
#define EC_SMC64 0x17
#define XEN_HYPERCALL_IMM 0xea1
#define FID_VM_DESTROYED 0xb200000eU
#define GUEST_REGS 18
#define EL3_REGS 8
#define PUSH_NS 100000000L

uint64_t counters[C_COUNT];
struct options options = {.memory = true, .doorbell = true, .stop_on_error = true, .list_pages = 40};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static uint64_t sequence;
static bool finished;
__thread bool inside;

static struct { /* what EL2 asked of EL3 and has not been answered */
    uint64_t seq, parent, vcpu;
    uint64_t left; /* number of the last record when OP-TEE left the guest's partition */
    uint32_t fid;
    uint16_t domain, id, vmid, owner;
    bool pending;
} asked[MAX_CPUS];

static bool is_tee(uint64_t x0)
{
    unsigned owner = x0 >> 24 & 0x3f; /* SMCCC: 48-49 trusted applications, 50-63 trusted OS */
    bool ffa = (x0 & 0xbfffff00) == 0x84000000 && (x0 & 0xff) >= 0x60; /* the other way to a TEE, of owner 4 */
    return owner >= 48 || ffa;
}

/* Whose threads and buffers these are: the domain, or, when it is not known, the VMID. */
static uint16_t owner_of(const struct who *who)
{
    return who->domain != UNKNOWN16 ? who->domain : (uint16_t)(0x8000 | who->vmid);
}

static void read_x(unsigned cpu, uint64_t *x, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        x[i] = reg_read(cpu, R_X0 + (int)i);
}

static void identify(struct record *r, const struct who *who)
{
    r->domain = who->domain;
    r->guest_vcpu = who->id;
    r->vmid = who->vmid;
}

/* In lock-step the consumer may change what is there before it is recorded: it sees the registers that there are. */
static void ask_before(unsigned cpu, int kind, int el, unsigned nregs)
{
    struct who who;
    memory_begin();
    struct record *r = rec_begin(cpu, kind, el, nregs);
    r->seq = sequence + 1;
    r->time_ns = clock_now();
    xen_who(cpu, &who);
    identify(r, &who);
    read_x(cpu, rec_regs(), nregs);
    lockstep_ask(cpu, rec.data, r->length);
}

/* What a record tells of registers and memory is read after this. */
static struct record *begin(unsigned cpu, int kind, int el, unsigned nregs)
{
    if (options.lockstep && lockstep_asks(kind))
        ask_before(cpu, kind, el, nregs);
    memory_begin();
    struct record *r = rec_begin(cpu, kind, el, nregs);
    r->seq = ++sequence;
    r->time_ns = clock_now();
    return r;
}

bool plugin_enter(void)
{
    pthread_mutex_lock(&lock);
    if (finished)
        pthread_mutex_unlock(&lock);
    return inside = !finished;
}

void plugin_leave(void)
{
    inside = false;
    pthread_mutex_unlock(&lock);
}

void plugin_wait(unsigned ms)
{
    MUST_BE_INSIDE();
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_nsec += ms * 1000000L;
    end.tv_sec += end.tv_nsec / 1000000000L;
    end.tv_nsec %= 1000000000L;
    inside = false;
    pthread_cond_timedwait(&wake, &lock, &end);
    inside = true;
}

void plugin_wake(void)
{
    pthread_cond_broadcast(&wake);
}

/* Stores the record and, in lock-step, waits for the consumer. Releases the lock. */
static void commit_and_unlock(unsigned cpu)
{
    struct record *r = (struct record *)rec.data;
    int kind = r->kind;
    uint32_t delay = 0;
    counters[C_RECORDS]++;
    counters[C_KIND0 + kind]++;
    if (sink_is_open())
        sink_append(rec.data, r->length, r->seq);
    if (options.lockstep && lockstep_wants(kind))
        delay = lockstep_event(cpu, rec.data, r->length, kind);
    plugin_leave();
    if (delay)
        usleep(delay); /* asked for by the consumer; other vCPUs go on */
}

static void count_other(uint64_t x0, bool hvc, unsigned imm)
{
    unsigned owner = x0 >> 24 & 0x3f;
    if (hvc && imm == XEN_HYPERCALL_IMM)
        counters[C_HYPERCALL]++;
    else if (owner == 4)
        counters[C_PSCI]++;
    else if (owner == 0)
        counters[C_ARCH]++;
    else
        counters[C_GUEST_OTHER]++;
}

/* First instruction of EL2's vector for synchronous exceptions of a lower level. */
void on_guest_entry(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    uint64_t esr = reg_read(cpu, R_ESR_EL2);
    unsigned ec = esr >> 26 & 0x3f, imm = ec == EC_SMC32 ? 0 : esr & 0xffff;
    bool hvc = ec == EC_HVC64 || ec == EC_HVC32, aarch32 = ec == EC_HVC32 || ec == EC_SMC32;
    bool hypercall = hvc && imm == XEN_HYPERCALL_IMM;
    if (xen.books.known)
        books_hypercall(cpu, hypercall, hypercall ? reg_read(cpu, R_X0 + 16) : 0, hypercall ? reg_read(cpu, R_X0) : 0);
    if (!hvc && ec != EC_SMC64 && ec != EC_SMC32)
        return;
    if (!plugin_enter())
        return;
    uint64_t x0 = reg_read(cpu, R_X0);
    bool tee = is_tee(x0) && !hypercall;
    counters[hvc ? C_GUEST_HVC : C_GUEST_SMC]++;
    if (aarch32)
        counters[C_AARCH32]++;
    if (!tee)
        count_other(x0, hvc, imm);
    if (!tee && !options.others) {
        plugin_leave();
        return;
    }
    struct record *r = begin(cpu, REC_GUEST_CALL, 1, GUEST_REGS);
    uint64_t x[GUEST_REGS];
    struct who who;
    read_x(cpu, x, GUEST_REGS);
    xen_who(cpu, &who);
    identify(r, &who);
    r->flags = (uint8_t)((hvc ? REC_F_HVC : 0) | (aarch32 ? REC_F_AARCH32 : 0) | (tee ? 0 : REC_F_NOT_TEE));
    r->pc = reg_read(cpu, R_ELR_EL2);
    r->esr = esr;
    r->imm = imm;
    memcpy(rec_regs(), x, sizeof x);
    struct guest_call *call = tee ? guest_call_open(who.vcpu) : NULL;
    if (call) {
        call->seq = r->seq;
        call->fid = imm ? 0 : (uint32_t)x0;
        call->owner = owner_of(&who);
        call->flags = r->flags;
        stretch_begin(cpu, who.vcpu, true);
        if (options.memory) {
            xen_learn(cpu, &who);
            tee_guest_call(cpu, call, x);
            books_guest_call(cpu, who.domain, who.address);
        }
    }
    commit_and_unlock(cpu);
}

/* EL2's own SMC, before it is taken to EL3. */
void on_el2_smc(unsigned reported, void *udata)
{
    unsigned cpu = cpu_running(reported);
    if (!plugin_enter())
        return;
    uint64_t x[EL3_REGS];
    bool tee = is_tee(reg_read(cpu, R_X0));
    counters[C_EL2_SMC]++;
    asked[cpu].pending = false;
    if (!tee)
        counters[C_EL2_OTHER]++;
    if (!tee && !options.others) {
        plugin_leave();
        return;
    }
    struct record *r = begin(cpu, REC_EL3_CALL, 2, EL3_REGS);
    struct who who;
    read_x(cpu, x, EL3_REGS);
    xen_who(cpu, &who);
    identify(r, &who);
    struct guest_call *parent = guest_call_find(who.vcpu);
    r->flags = tee ? 0 : REC_F_NOT_TEE;
    r->parent = parent ? parent->seq : 0;
    r->pc = reg_read(cpu, R_PC);
    r->imm = (uint32_t)(uintptr_t)udata;
    memcpy(rec_regs(), x, sizeof x);
    asked[cpu].seq = r->seq;
    asked[cpu].parent = r->parent;
    asked[cpu].fid = (uint32_t)x[0];
    asked[cpu].domain = who.domain;
    asked[cpu].owner = owner_of(&who);
    asked[cpu].id = who.id;
    asked[cpu].vmid = who.vmid;
    asked[cpu].vcpu = parent ? who.vcpu : 0;
    asked[cpu].pending = true;
    partition_forget(cpu);
    stretch_end(cpu, asked[cpu].vcpu);
    if (tee && options.memory)
        tee_el3_call(cpu, parent, owner_of(&who), x);
    bool yielding = !((uint32_t)x[0] >> 31); /* a standard call, which works on Xen's lists */
    if (tee && options.memory && parent && yielding)
        books_el3_call(cpu, who.domain, who.address);
    else if (tee && options.memory && (uint32_t)x[0] == FID_VM_DESTROYED)
        books_vm_destroyed(cpu, x[1]);
    commit_and_unlock(cpu);
}

static bool returns_to_el2(unsigned cpu)
{
    if (!asked[cpu].pending) /* written by this CPU's thread only */
        return false;
    uint64_t scr = reg_read(cpu, R_SCR_EL3), spsr = reg_read(cpu, R_SPSR_EL3);
    return scr & 1 && (spsr & 0x1c) == 8; /* to the non-secure world, and to EL2 */
}

/* Whether another CPU is in OP-TEE for the same domain, or has gone there since record number `since`. */
static bool in_partition_too(unsigned cpu, uint64_t since)
{
    for (unsigned i = 0; i < MAX_CPUS; i++)
        if (i != cpu && asked[i].domain == asked[cpu].domain && (asked[i].pending || asked[i].seq > since))
            return true;
    return false;
}

/* First instruction of OP-TEE's virt_unset_guest: the last at which a guest's partition is there for sure. */
void on_partition_left(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    if (!asked[cpu].pending || !is_tee(asked[cpu].fid) || reg_read(cpu, R_SCR_EL3) & 1 || !plugin_enter())
        return;
    asked[cpu].left = sequence;
    partition_read(cpu, in_partition_too(cpu, sequence));
    plugin_leave();
}

void on_el3_eret(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    if (!returns_to_el2(cpu))
        return;
    if (!plugin_enter())
        return;
    asked[cpu].pending = false;
    counters[C_EL3_ERET]++;
    struct record *r = begin(cpu, REC_EL3_RETURN, 3, EL3_REGS);
    uint64_t x[EL3_REGS];
    read_x(cpu, x, EL3_REGS);
    r->domain = asked[cpu].domain;
    r->guest_vcpu = asked[cpu].id;
    r->vmid = asked[cpu].vmid;
    r->parent = asked[cpu].seq;
    r->flags = is_tee(asked[cpu].fid) ? 0 : REC_F_NOT_TEE;
    r->pc = reg_read(cpu, R_ELR_EL3);
    memcpy(rec_regs(), x, sizeof x);
    stretch_begin(cpu, asked[cpu].vcpu, false);
    if (!r->flags && options.memory)
        tee_el3_return(cpu, asked[cpu].fid, asked[cpu].owner, x);
    if (!r->flags && options.memory)
        partition_block(cpu, in_partition_too(cpu, asked[cpu].left));
    commit_and_unlock(cpu);
}

static bool leaves_el2(unsigned cpu)
{
    uint64_t spsr = reg_read(cpu, R_SPSR_EL2);
    return spsr & 0x10 || (spsr & 0xc) < 8;
}

bool event_is_due(unsigned cpu, int kind)
{
    struct who who;
    unsigned ec;
    switch (kind) {
    case REC_GUEST_CALL:
        ec = reg_read(cpu, R_ESR_EL2) >> 26 & 0x3f;
        return (ec == EC_HVC64 || ec == EC_SMC64 || ec == EC_HVC32 || ec == EC_SMC32) && is_tee(reg_read(cpu, R_X0));
    case REC_EL3_CALL:
        return is_tee(reg_read(cpu, R_X0));
    case REC_EL3_RETURN:
        return returns_to_el2(cpu) && is_tee(asked[cpu].fid);
    case REC_GUEST_RETURN:
        xen_who(cpu, &who);
        return leaves_el2(cpu) && guest_call_find(who.vcpu);
    default:
        return false;
    }
}

void on_el2_eret(unsigned reported, void *unused)
{
    unsigned cpu = cpu_running(reported);
    (void)unused;
    if (!guest_calls_pending())
        return;
    if (!leaves_el2(cpu)) {
        stretch_own_exception_ends(cpu);
        return;
    }
    if (!plugin_enter())
        return;
    counters[C_EL2_ERET]++;
    struct who who;
    xen_who(cpu, &who);
    struct guest_call *call = guest_call_find(who.vcpu);
    if (!call) {
        plugin_leave();
        return;
    }
    struct record *r = begin(cpu, REC_GUEST_RETURN, 2, GUEST_REGS);
    uint64_t x[GUEST_REGS];
    read_x(cpu, x, GUEST_REGS);
    identify(r, &who);
    r->flags = call->flags;
    r->parent = call->seq;
    r->pc = reg_read(cpu, R_ELR_EL2);
    memcpy(rec_regs(), x, sizeof x);
    stretch_end(cpu, who.vcpu);
    if (options.memory)
        tee_guest_return(cpu, call, x);
    if (options.memory)
        books_guest_return(cpu, who.domain, who.address, guest_call_alone(call));
    guest_call_close(call);
    commit_and_unlock(cpu);
}

/* First instruction of one of Xen's functions that takes a struct domain in x0. */
void on_domain(unsigned reported, void *udata)
{
    unsigned cpu = cpu_running(reported);
    int kind = (int)(uintptr_t)udata;
    uint64_t domain = reg_read(cpu, R_X0);
    if (!plugin_enter())
        return;
    uint16_t id = xen_domain_of(cpu, domain);
    if (id >= FIRST_RESERVED_DOMAIN) {
        plugin_leave();
        return;
    }
    /* Xen enters domain_kill again for every continuation, hundreds of times: the first tells all. */
    static uint64_t killed[65536 / 64];
    bool again = kind == REC_DOMAIN_KILL && killed[id / 64] >> (id % 64) & 1;
    killed[id / 64] &= ~(1ULL << (id % 64));
    if (kind == REC_DOMAIN_KILL)
        killed[id / 64] |= 1ULL << (id % 64);
    if (again) {
        books_continued();
        plugin_leave();
        return;
    }
    struct record *r = begin(cpu, kind, 2, 1);
    struct who who;
    xen_who(cpu, &who);
    identify(r, &who);
    r->imm = id;
    r->pc = reg_read(cpu, R_PC);
    rec_regs()[0] = domain;
    if (kind != REC_DOMAIN_CREATE && options.memory)
        books_domain(cpu, id, domain, kind == REC_DOMAIN_DESTROY);
    if (kind != REC_DOMAIN_KILL)
        xen_forget();
    if (kind == REC_DOMAIN_DESTROY)
        tee_forget(id);
    commit_and_unlock(cpu);
}

void on_doorbell(unsigned reported, void *udata)
{
    unsigned cpu = cpu_running(reported);
    if (!plugin_enter())
        return;
    struct record *r = begin(cpu, REC_DOORBELL, (int)(uintptr_t)udata, GUEST_REGS);
    uint64_t x[GUEST_REGS];
    struct who who;
    read_x(cpu, x, GUEST_REGS);
    xen_who(cpu, &who);
    identify(r, &who);
    r->pc = reg_read(cpu, R_PC);
    memcpy(rec_regs(), x, sizeof x);
    commit_and_unlock(cpu);
}

static void *push(void *unused)
{
    const struct timespec pause = {.tv_nsec = PUSH_NS};
    (void)unused;
    while (plugin_enter()) {
        lockstep_push();
        plugin_leave();
        nanosleep(&pause, NULL);
    }
    return NULL;
}

bool events_push(void)
{
    pthread_t thread;
    return pthread_create(&thread, NULL, push, NULL) == 0 && pthread_detach(thread) == 0;
}

/* The plugin's own counts as the last record: the reader compares them with what it has read. */
void events_finish(void)
{
    if (inside) /* QEMU gave up below us, in one of our own calls: the record under construction is incomplete */
        return;
    if (plugin_enter()) {
        begin(0, REC_COUNTERS, 0, C_COUNT);
        counters[C_RECORDS]++;
        counters[C_KIND0 + REC_COUNTERS]++;
        counters[C_LOST] = sink_settle();
        memcpy(rec_regs(), counters, sizeof counters);
        if (sink_is_open())
            sink_append_last(rec.data, rec.used, sequence);
        finished = true;
        plugin_leave();
    }
}

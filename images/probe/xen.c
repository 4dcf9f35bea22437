/*
 * What the probe needs of Xen: its PV console, and event channels to wait on. No interrupts: ports stay masked, and a
 * vCPU that has nothing to do blocks in SCHEDOP_poll, so that an idle probe costs no CPU time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "probe.h"

enum { HC_MEMORY = 12, HC_VCPU = 24, HC_SCHED = 29, HC_EVTCHN = 32, HC_HVM = 34 };
enum { SCHED_YIELD = 0, SCHED_SHUTDOWN = 2, SCHED_POLL = 3 };
enum { EVTCHN_SEND = 4, EVTCHN_BIND_IPI = 7 };
enum { HVM_GET_PARAM = 1, PARAM_CONSOLE_PFN = 17, PARAM_CONSOLE_PORT = 18 };
enum { ADD_TO_PHYSMAP = 7, MAPSPACE_SHARED_INFO = 0 };
enum { REGISTER_RUNSTATE = 5 };
#define DOMID_SELF 0x7ff0

struct console_page { char in[1024]; char out[2048]; u32 in_cons, in_prod, out_cons, out_prod; };

/* struct shared_info of arm64: one vcpu_info of 48 bytes, then the two bitmaps. */
struct shared { u8 vcpu_info[48]; u64 pending[64]; u64 mask[64]; };

struct runstate { u32 state, pad; u64 entry_time; u64 time[4]; };

static volatile struct console_page *console;
static u32 console_port;
static volatile struct shared *const shared = (struct shared *)SHARED_INFO;
static volatile struct runstate runstate;
static s64 clock_offset; /* Xen's system time minus the physical counter, in ns */

static u64 hvm_param(u32 index)
{
    struct { u16 domain, pad; u32 index; u64 value; } request = {DOMID_SELF, 0, index, 0};
    return hypercall(HC_HVM, HVM_GET_PARAM, (u64)&request, 0, 0, 0) ? 0 : request.value;
}

static u64 counter_ns(void)
{
    u64 t = now(), f = frequency();
    return t / f * 1000000000 + t % f * 1000000000 / f;
}

void yield(void) { hypercall(HC_SCHED, SCHED_YIELD, 0, 0, 0, 0); }

_Noreturn void crash(void)
{
    u32 reason = 3; /* SHUTDOWN_crash */
    for (;;)
        hypercall(HC_SCHED, SCHED_SHUTDOWN, (u64)&reason, 0, 0, 0);
}

void kick(u32 port)
{
    hypercall(HC_EVTCHN, EVTCHN_SEND, (u64)&port, 0, 0, 0);
}

u32 cpu_port(u32 vcpu)
{
    struct { u32 vcpu, port; } request = {vcpu, 0};
    return hypercall(HC_EVTCHN, EVTCHN_BIND_IPI, (u64)&request, 0, 0, 0) ? 0 : request.port;
}

static void poll_port(u32 port, u64 timeout_us)
{
    struct { u64 ports; u32 count, pad; u64 timeout; } request = {(u64)&port, 1, 0, 0};
    if (timeout_us)
        request.timeout = (u64)((s64)counter_ns() + clock_offset) + timeout_us * 1000;
    hypercall(HC_SCHED, SCHED_POLL, (u64)&request, 0, 0, 0);
}

void wait_for_work(struct cpu *cpu, u64 timeout_us)
{
    u32 port = cpu->id ? cpu->port : console_port;
    u64 bit = 1UL << port % 64;
    /* Cleared first, looked second: work that comes in between leaves the bit set, and the poll returns at once. */
    __atomic_fetch_and((u64 *)&shared->pending[port / 64], ~bit, __ATOMIC_SEQ_CST);
    if (cpu->id ? cpu->running : console_has_input())
        return;
    poll_port(port, timeout_us);
}

bool console_has_input(void)
{
    return console && console->in_cons != console->in_prod;
}

size_t console_read(char *data, size_t room)
{
    u32 at = console->in_cons;
    barrier();
    u32 count = console->in_prod - at;
    if (count > room)
        count = (u32)room;
    for (u32 i = 0; i < count; i++)
        data[i] = console->in[(at + i) % sizeof console->in];
    barrier();
    console->in_cons = at + count;
    /* xenconsoled stops reading its side when the ring is full, and goes on when told. */
    if (count)
        kick(console_port);
    return count;
}

void console_write(const char *data, size_t length)
{
    while (length) {
        u32 at = console->out_prod;
        u32 room = (u32)sizeof console->out - (at - console->out_cons);
        barrier();
        if (room == 0) {
            kick(console_port);
            poll_port(console_port, 1000);
            continue;
        }
        u32 part = length < room ? (u32)length : room;
        for (u32 i = 0; i < part; i++)
            console->out[(at + i) % sizeof console->out] = data[i];
        barrier();
        console->out_prod = at + part;
        data += part;
        length -= part;
    }
    kick(console_port);
}

/* Xen's time is not readable by a guest on Arm; what a context switch leaves in the run state is. */
static void calibrate(void)
{
    u64 address = (u64)&runstate;
    if (hypercall(HC_VCPU, REGISTER_RUNSTATE, 0, (u64)&address, 0, 0))
        return;
    s64 best = (s64)(1UL << 63);
    for (u32 i = 0; i < 4; i++) {
        yield();
        s64 offset = (s64)(runstate.entry_time & ~(1UL << 63)) - (s64)counter_ns();
        if (offset > best)
            best = offset;
    }
    clock_offset = best;
}

void xen_start(void)
{
    struct { u16 domain, size; u32 space; u64 index, frame; } map = {DOMID_SELF, 0, MAPSPACE_SHARED_INFO, 0,
                                                                   SHARED_INFO / PAGE};
    console = (struct console_page *)(hvm_param(PARAM_CONSOLE_PFN) * PAGE);
    console_port = (u32)hvm_param(PARAM_CONSOLE_PORT);
    if (!console || hypercall(HC_MEMORY, ADD_TO_PHYSMAP, (u64)&map, 0, 0, 0))
        crash();
    for (u32 i = 0; i < 64; i++)
        shared->mask[i] = ~0UL;
    calibrate();
}

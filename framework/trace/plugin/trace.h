/*
 * The plugin's parts and what they share. One lock (in events.c) serialises all of it: it makes the sequence number
 * total across vCPUs, and what is marked so below may use static buffers. A vCPU's own registers may be read without.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_TRACE_H
#define MEDCHECK_TRACE_H

#include <assert.h>
#include <stdio.h>

#include "qemu_api.h"
#include "record.h"

#define MAX_CPUS 64
#define PAGE 4096ULL
#define PAGE_MASK (PAGE - 1)
#define UNKNOWN16 0xffff
#define FIRST_RESERVED_DOMAIN 0x7ff0 /* the idle domain and its like */

enum reg {
    R_X0, /* x0..x30 are R_X0 .. R_X0 + 30 */
    R_SP = 31,
    R_PC,
    R_CPSR,
    R_SCR_EL3,
    R_ELR_EL3,
    R_SPSR_EL3,
    R_HCR_EL2,
    R_VTTBR_EL2,
    R_VTCR_EL2,
    R_ESR_EL2,
    R_ELR_EL2,
    R_SPSR_EL2,
    R_TPIDR_EL2,
    R_TTBR0_EL2,
    R_TCR_EL2,
    R_VBAR_EL2,
    R_COUNT
};

/*
 * Whether this thread is inside an event and so holds the plugin's lock. Without it another vCPU's bytes would end up
 * in this one's record, and QEMU's heap would be damaged: better no trace than that one.
 */
extern __thread bool inside;
#define MUST_BE_INSIDE() assert(inside)

/* regs.c: the registers of the vCPU that runs in this thread; no lock */
void regs_init(unsigned cpu);
uint64_t reg_read(unsigned cpu, enum reg reg);
bool reg_read_named(unsigned cpu, const char *name, uint64_t *value);
bool reg_write_named(unsigned cpu, const char *name, uint64_t value);

/* cpu.c */
void cpu_begins(unsigned cpu);
unsigned cpu_running(unsigned reported);
bool cpu_exists(unsigned cpu);

/* memory.c, under the lock: all addresses named ma are machine (host physical) addresses, non-secure */
struct leaf {
    uint64_t ma;
    uint64_t pte;
    uint8_t level;
    bool valid;
};
void memory_begin(void); /* forgets cached tables: call once for each event */
bool ma_read(uint64_t ma, void *data, size_t length);
bool ma_write(uint64_t ma, const void *data, size_t length);
bool stage2(unsigned cpu, uint64_t ipa, struct leaf *leaf);
bool xen_va(unsigned cpu, uint64_t va, uint64_t *ma);
bool xen_read(unsigned cpu, uint64_t va, void *data, size_t length);
bool xen_copy(unsigned cpu, uint64_t va, void *data, size_t length); /* quick for what lies close; after memory_begin */
bool leaf_is_ram(const struct leaf *leaf);

/* build.c, under the lock: the record under construction */
#define RECORD_START (64U << 10) /* room that every record has */
extern struct builder {
    uint8_t *data;
    size_t used, room;
    size_t lists; /* of `used`: page lists */
} rec;
bool rec_init(void); /* once, before there is any vCPU; false: no memory */
struct record *rec_begin(unsigned cpu, int kind, int el, unsigned nregs);
uint64_t *rec_regs(void);
struct block *rec_block(int kind, size_t room);
void rec_close_block(struct block *block, size_t length);
/* One page: contents without trailing zeros. */
struct block *capture_guest_page(unsigned cpu, int kind, uint64_t ipa, unsigned index, uint64_t cookie);
struct block *capture_ma_page(int kind, uint64_t ma, unsigned index, uint64_t cookie);
/* The page lists of every TMEM|NONCONTIG parameter of a message. */
void capture_guest_lists(unsigned cpu, const struct block *message);
void capture_shadow_lists(const struct block *message);
const uint8_t *block_data(const struct block *block);

/* xen.c, under the lock: who runs */
struct who {
    uint64_t vcpu; /* address of Xen's struct vcpu: identity of a guest's thread of execution; 0 unknown */
    uint16_t domain, id, vmid;
    uint64_t vttbr;
    uint64_t address; /* of Xen's struct domain; 0 unknown */
};
struct xen_books { /* of what books.c reads: addresses, offsets, sizes */
    uint64_t heap_free, heap_pool, pool_used, pool_regions, pool_header, domain_pages;
    uint64_t pdx_hole, p2m_root, p2m_vttbr, page_size, page_count, page_owner;
    uint64_t calls, bufs, call_count_of, buf_count_of, buf_pages_of;
    uint64_t call_size, call_list, call_shadow, call_ipa, call_thread, call_in_flight;
    uint64_t rpc_size, rpc_page, rpc_shadow;
    uint64_t buf_list, buf_cookie, buf_count, buf_shadow, buf_order, buf_pages;
    bool known;
};
struct xen_layout {
    uint64_t curr_vcpu, create, kill, destroy;            /* symbols */
    uint64_t vcpu_domain, vcpu_id, domain_id, domain_tee; /* offsets in struct vcpu and struct domain */
    uint64_t tee_rpcs;                                    /* struct optee_domain: shm_rpc_list */
    uint64_t rpc_list, rpc_arg, rpc_gfn, rpc_cookie;      /* struct shm_rpc */
    uint64_t mediator, tee_type; /* symbol: which mediator is active, 0 unknown; struct tee_mediator_desc */
    uint64_t leave;                                       /* symbol: the way out to guests; 0 unknown */
    bool known, tee_known;
    struct xen_books books;
};
extern struct xen_layout xen;
void xen_who(unsigned cpu, struct who *who);
void xen_forget(void);
uint16_t xen_domain_of(unsigned cpu, uint64_t domain);
bool optee_mediates(unsigned cpu);
void xen_learn(unsigned cpu, const struct who *who);

/* tee.c, under the lock: which pages belong to which call */
struct tee_call {
    bool used;
    uint16_t owner;
    int32_t thread;   /* OP-TEE's thread id; -1 while it runs */
    int32_t cpu;      /* where it runs; -1 while it waits for the guest */
    uint64_t shadow;  /* MA of Xen's copy of the argument page */
    uint64_t ipa;     /* the guest's argument page */
    uint32_t op;      /* OPTEE_SMC_RPC_FUNC_* asked for last */
    uint64_t cookie;  /* of that RPC */
};
struct tee_rpc {
    bool used;
    uint16_t owner;
    uint64_t cookie, shadow, ipa;
};
struct guest_call { /* a guest call that Xen has not answered yet */
    uint64_t key;   /* 0: free */
    uint64_t seq;
    uint64_t ipa;   /* argument page; ~0 none */
    uint64_t alloc_ipa;
    uint32_t fid;
    uint16_t owner;
    uint8_t flags;
};
bool guest_calls_pending(void); /* whether there is any; no lock */
void tee_guest_call(unsigned cpu, struct guest_call *call, const uint64_t *x);
void tee_el3_call(unsigned cpu, struct guest_call *parent, uint16_t owner, const uint64_t *x);
void tee_el3_return(unsigned cpu, uint32_t fid, uint16_t owner, const uint64_t *x);
void tee_guest_return(unsigned cpu, struct guest_call *call, const uint64_t *x);
void tee_forget(uint16_t owner);
struct guest_call *guest_call_open(uint64_t key);
struct guest_call *guest_call_find(uint64_t key);
bool guest_call_alone(const struct guest_call *call); /* no other of its domain */
void guest_call_close(struct guest_call *call);
struct tee_call *tee_call_add(uint16_t owner);
struct tee_call *tee_call_find(uint16_t owner, int32_t thread);
void tee_rpc_add(uint16_t owner, uint64_t cookie, uint64_t shadow, uint64_t ipa);
const struct tee_rpc *tee_rpc_find(uint16_t owner, uint64_t cookie);

/* books.c, under the lock: Xen's own lists, references and memory of a domain (its id, the address of its struct) */
bool books_usable(void);
void books_hypercall(unsigned cpu, bool hypercall, uint64_t number, uint64_t operation); /* no lock */
void books_guest_call(unsigned cpu, uint16_t id, uint64_t domain);
void books_el3_call(unsigned cpu, uint16_t id, uint64_t domain);
void books_guest_return(unsigned cpu, uint16_t id, uint64_t domain, bool alone);
void books_continued(void);
void books_vm_destroyed(unsigned cpu, uint64_t client);
void books_domain(unsigned cpu, uint16_t id, uint64_t domain, bool gone);

/* partition.c, under the lock: OP-TEE's own list of a guest's shared memory; addresses and offsets in its tee.elf */
struct optee_layout {
    uint64_t leave;         /* symbol: virt_unset_guest; until there the guest's partition is mapped */
    uint64_t current, cpus; /* symbol: the partition of each CPU; of how many CPUs */
    uint64_t list;          /* symbol: the partition's list of shared memory */
    uint64_t partition_id;  /* struct guest_partition */
    uint64_t shm_size, shm_next, shm_cookie, shm_page_offset, shm_pages; /* struct mobj_reg_shm, size: of its memory */
    bool known;
};
extern struct optee_layout optee;
bool partition_usable(void);
void partition_read(unsigned cpu, bool shared); /* shared: another CPU is in the same partition */
void partition_forget(unsigned cpu);
void partition_block(unsigned cpu, bool shared); /* adds what was read to the record under construction */

/* events.c */
enum counter {
    C_RECORDS,      /* all records, COUNTERS among them */
    C_KIND0,        /* records by kind: C_KIND0 + kind, REC_KINDS of them */
    C_GUEST_SMC = C_KIND0 + REC_KINDS,
    C_GUEST_HVC,    /* SMC and HVC that entered EL2, recorded or not */
    C_PSCI,         /* of these: standard secure service calls */
    C_ARCH,         /* architecture calls, workarounds among them */
    C_HYPERCALL,    /* HVC #0xea1 */
    C_GUEST_OTHER,
    C_EL2_SMC,      /* SMCs that EL2 executed, recorded or not */
    C_EL2_OTHER,    /* of these: not the TEE's */
    C_EL3_ERET,     /* EL3 answers, recorded or not */
    C_EL2_ERET,     /* EL2 ERETs looked at */
    C_LOST,         /* records the sink could not write */
    C_TABLE_FULL,   /* calls or RPC buffers that could not be followed: tables full */
    C_AARCH32,
    C_COUNT
};
extern uint64_t counters[C_COUNT];
struct options {
    bool memory, doorbell, others, stop_on_error, lockstep, reads, time, books, frames, heap, partition;
    unsigned list_pages;
};
extern struct options options;
/* The plugin's lock, and a wait in which others have it, until plugin_wake() or for some milliseconds. */
bool plugin_enter(void);
void plugin_leave(void);
void plugin_wait(unsigned ms);
void plugin_wake(void);
/* Under the lock: whether the vCPU's next instruction is an event of that kind, of a call to the TEE. */
bool event_is_due(unsigned cpu, int kind);
/* Has lock-step events sent at least ten times a second, in a thread that ends with events_finish(). */
bool events_push(void);
void events_finish(void);
void on_guest_entry(unsigned reported, void *unused);
void on_el2_smc(unsigned reported, void *immediate);
void on_el3_eret(unsigned reported, void *unused);
void on_el2_eret(unsigned reported, void *unused);
void on_domain(unsigned reported, void *kind);
void on_doorbell(unsigned reported, void *level);
void on_partition_left(unsigned reported, void *unused);
void board_stop(const char *why);

/* clock.c, under the lock */
const char *clock_choose(void); /* its name */
/*
 * Whether QEMU runs with -icount: all CPUs in one thread, where counters beside translated code (inline operations) must
 * not be used. QEMU then writes for another CPU, and past the counters' memory. No lock.
 */
bool clock_counts_instructions(void);
uint64_t clock_now(void);

/* hooks.c */
void hooks_init(qemu_plugin_id_t id);

/* lockstep.c, under the lock once the board runs */
const char *lockstep_open(const char *path, const char *json, unsigned timeout_ms, bool stop_on_loss);
bool lockstep_asks(int kind); /* whether the consumer changes something before such an event is recorded */
void lockstep_ask(unsigned cpu, const void *record, size_t length);
bool lockstep_wants(int kind);
/* Sends the record; when the consumer holds this kind, serves its requests until it lets go. Returns a delay in us. */
uint32_t lockstep_event(unsigned cpu, const void *record, size_t length, int kind);
/* Tells what became of a request to hold a vCPU. */
void lockstep_hold(int what, uint64_t at, const uint64_t *more, size_t count);
/* Sends what waits for a full batch: the last events of a board that comes to rest may be the ones that matter. */
void lockstep_push(void);
void lockstep_close(void);

#endif

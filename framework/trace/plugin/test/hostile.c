/*
 * A board of nothing but hostile guests, for the sanitizers: hostile SCENARIO ROUNDS SEED ARGUMENT...
 * The arguments are the plugin's own. What the plugin recorded is judged by the one who started this.
 *
 *   threads  two vCPUs call with a page of one byte each, two more create and destroy domains meanwhile
 *   lists    one vCPU with page lists and registers as bad as can be, table registers among them
 *   loop     one vCPU repeats the call that names the most memory: 127 parameters, lists that never end
 *   most     one call that names all the pages that Xen lets a domain share
 *   unknown  Xen says that no vCPU runs, a guest calls, and EL2 returns to guests ROUNDS times
 *   senses   two vCPUs call, and EL2 reads each page once, the first byte twice, writes a word, runs known code, leaves
 *   books    as lists, and Xen's own lists, page references and memory are as bad; domains end
 *   partition  OP-TEE's list of shared memory is as bad; a guest runs code at the address where it is read
 *   outside  memory is read by a thread that does not hold the plugin's lock
 *   rest     one call, and then nothing until standard input ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../trace.h"
#include "qemu_stub.h"

#define EL1 0x3c5ULL
#define EL2 0x3c9ULL
#define EL3 0x3cdULL
#define NOP 0xd503201fU
#define SMC 0xd4000003U
#define ERET 0xd69f03e0U
#define HINT_DOORBELL 0xd503261fU
#define CALL_WITH_ARG 0x32000004U
#define RETURN_FROM_RPC 0x32000003U

/* Machine addresses; guests and Xen map them one to one. */
#define STAGE2 0x1000ULL
#define XEN_TABLE 0x4000ULL
#define CURRENT 0x10000ULL /* per_cpu__curr_vcpu of CPU 0; the next CPU's is 0x100 further */
#define VCPU 0x20000ULL    /* struct vcpu of CPU 0, and so on: id at 0, domain at 16 */
#define DOMAIN 0x40000ULL  /* struct domain of number 0, and so on: id at 0 */
#define PAGES 0x200000ULL  /* guests' memory, 2 MiB and more */
#define GUEST 0x20000ULL   /* of it for each vCPU of `threads` */
#define FIRST_CREATED 100
#define CREATED 32

#define BOOKS 0x100000ULL  /* Xen's lists and what they point to: BOOKS_BYTES, the mediator and pointers behind them */
#define BOOKS_BYTES 0x4000ULL
#define MEDIATOR (BOOKS + BOOKS_BYTES)
#define VM_DESTROYED 0xb200000eU

#define VECTOR 0x30000ULL
#define CREATE 0x31000ULL
#define KILL 0x32000ULL
#define DESTROY 0x33000ULL
#define LEAVE 0x38000ULL
#define CODE 0x39000ULL /* of the mediator, 64 bytes */
#define OPTEE_LEAVE 0x3a000ULL
#define CBNZ 0xb5000041U /* cbnz x1, + 8 */

static volatile sig_atomic_t stopped;
static uint64_t rounds;
static uint64_t random_state;

static void on_term(int number)
{
    (void)number;
    stopped = 1;
}

static uint64_t any(void) /* xorshift64*; one thread only */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dULL;
}

static void put(uint64_t at, uint64_t value)
{
    memcpy(ram + at, &value, 8);
}

static void build_tables(void)
{
    put(STAGE2, (STAGE2 + 0x1000) | 3);
    for (uint64_t i = 0; i < RAM_BYTES >> 21; i++) /* 2 MiB blocks of normal memory, p2m_ram_rw; the last by pages */
        put(STAGE2 + 0x1000 + i * 8, i << 21 | 0x7fd | 1ULL << 55);
    put(STAGE2 + 0x1000 + 7 * 8, (STAGE2 + 0x2000) | 3);
    for (uint64_t i = 0; i < 512; i++) /* holes, device memory, pages without the valid bit, pages outside RAM */
        put(STAGE2 + 0x2000 + i * 8, (7ULL << 21 | i << 12 | (i & 64 ? 1ULL << 36 : 0)) | (i & 15) << 55 |
                                         (i & 16 ? 0x7ff : i & 32 ? 0x7fe : 0x7c3));
    put(XEN_TABLE, 0x701);
    for (uint64_t cpu = 0; cpu < STUB_CPUS; cpu++) {
        put(CURRENT + cpu * 0x100, VCPU + cpu * 0x1000);
        put(VCPU + cpu * 0x1000, cpu);
        put(VCPU + cpu * 0x1000 + 16, DOMAIN + (cpu + 1) * 0x1000);
    }
    for (uint64_t id = 0; id < FIRST_CREATED + CREATED; id++)
        put(DOMAIN + id * 0x1000, id);
}

static void begin(unsigned cpu)
{
    stub_begin(cpu);
    stub_set("HCR_EL2", 1);
    stub_set("VTTBR_EL2", STAGE2 | (uint64_t)(cpu + 1) << 48);
    stub_set("VTCR_EL2", 25 | 1 << 6); /* 39 bits from level 1 */
    stub_set("TTBR0_EL2", XEN_TABLE);
    stub_set("TCR_EL2", 25);
    stub_set("TPIDR_EL2", cpu * 0x100);
    stub_set("VBAR_EL2", VECTOR);
    stub_set("SCR_EL3", 1);
    stub_set("SPSR_EL3", EL2);
    stub_set("SPSR_EL2", EL1);
}

static void set_args(uint64_t x0, uint64_t page, uint64_t x3)
{
    stub_set_x(0, x0);
    stub_set_x(1, page >> 32);
    stub_set_x(2, page & 0xffffffffU);
    stub_set_x(3, x3);
}

static void guest_calls(void)
{
    stub_set("cpsr", EL2);
    stub_set("ESR_EL2", 0x17ULL << 26);
    stub_execute(VECTOR + 0x400, NOP);
}

static void xen_calls(void)
{
    stub_set("cpsr", EL2);
    stub_execute(0x34000, SMC);
}

static void el3_returns(void)
{
    stub_set("cpsr", EL3);
    stub_execute(0x35000, ERET);
}

static void xen_returns(void)
{
    stub_set("cpsr", EL2);
    stub_execute(0x36000, ERET);
}

/* One standard call: the guest's page as given, Xen's copy of it in `shadow`, an answer in x0 and x3. */
static void standard_call(uint64_t fid, uint64_t page, uint64_t shadow, uint64_t thread, uint64_t answer)
{
    set_args(fid, page, thread);
    guest_calls();
    set_args(fid, shadow, thread);
    xen_calls();
    set_args(answer, shadow, thread);
    el3_returns();
    xen_returns();
}

/* threads */

static void *caller(void *number)
{
    unsigned cpu = (unsigned)(uintptr_t)number;
    uint64_t page = PAGES + cpu * GUEST, shadow = page + 0x10000;
    begin(cpu);
    for (uint64_t i = 0; i < rounds; i++) {
        int byte = 0x80 + (int)cpu * 0x20 + (int)(i % 0x20);
        memset(ram + page, byte, 4096);
        memset(ram + shadow, byte - 0x40, 4096);
        standard_call(CALL_WITH_ARG, page, shadow, 1, 0);
    }
    return NULL;
}

static void *toolstack(void *number)
{
    static const uint64_t functions[] = {CREATE, KILL, KILL, DESTROY};
    unsigned cpu = (unsigned)(uintptr_t)number;
    begin(cpu);
    stub_set("cpsr", EL2);
    for (uint64_t i = 0; i < rounds * 4; i++) {
        stub_set_x(0, DOMAIN + (FIRST_CREATED + cpu + i / 4 % (CREATED / 4) * 4) * 0x1000);
        stub_execute(functions[i % 4], NOP);
        if (i % 4 == 3) {
            stub_set("cpsr", EL1);
            stub_execute(0x37000, HINT_DOORBELL);
            stub_set("cpsr", EL2);
        }
    }
    return NULL;
}

static void threads(void)
{
    pthread_t thread[4];
    for (unsigned cpu = 0; cpu < 4; cpu++)
        if (pthread_create(&thread[cpu], NULL, cpu < 2 ? caller : toolstack, (void *)(uintptr_t)cpu))
            abort();
    for (unsigned cpu = 0; cpu < 4; cpu++)
        pthread_join(thread[cpu], NULL);
}

/* senses */

static void *mediator(void *number)
{
    unsigned cpu = (unsigned)(uintptr_t)number;
    uint64_t page = PAGES + cpu * GUEST, shadow = page + 0x10000;
    begin(cpu);
    for (uint64_t i = 0; i < rounds; i++) {
        set_args(CALL_WITH_ARG, page, 1);
        guest_calls();
        for (uint64_t at = 0; at < PAGE; at += 8) {
            stub_access(CODE + 4, page + at, 3, false);
            stub_access(CODE + 8, shadow + at, 3, true);
        }
        stub_access(CODE + 12, page, 0, false);
        set_args(CALL_WITH_ARG, shadow, 1);
        xen_calls();
        set_args(0, shadow, 1);
        el3_returns();
        stub_set("cpsr", EL2);
        stub_execute(CODE, CBNZ);
        stub_access(CODE + 16, page + 4, 2, true);
        stub_execute(LEAVE, NOP);
        stub_access(CODE + 20, page + 8, 2, false); /* on the way out: not the mediator any more */
        xen_returns();
    }
    return NULL;
}

static void senses(void)
{
    pthread_t thread[2];
    for (unsigned cpu = 0; cpu < 2; cpu++)
        if (pthread_create(&thread[cpu], NULL, mediator, (void *)(uintptr_t)cpu))
            abort();
    for (unsigned cpu = 0; cpu < 2; cpu++)
        pthread_join(thread[cpu], NULL);
}

/* lists and loop */

static uint64_t some_page(void)
{
    return PAGES + any() % ((RAM_BYTES - PAGES) >> 12) * 4096;
}

static uint64_t bad_number(void)
{
    static const uint64_t numbers[] = {0, 1, 4095, 4096, 4097, 1ULL << 31, 0xffffffffU, 1ULL << 39, 1ULL << 48,
                                       0x7fffffffffffffffULL, ~0ULL - 4095, ~0ULL};
    uint64_t kind = any() % 4;
    return kind == 0 ? any() : kind == 1 ? some_page() : kind == 2 ? some_page() + any() % 4096
                             : numbers[any() % (sizeof numbers / sizeof *numbers)];
}

static void write_list(uint64_t page, uint64_t next)
{
    for (uint64_t i = 0; i < 511; i++)
        put(page + i * 8, any() % 8 ? some_page() : bad_number());
    put(page + 511 * 8, next);
}

static void write_message(uint64_t page, uint64_t count, uint64_t list, uint64_t size)
{
    memset(ram + page, 0, 4096);
    put(page + 24, count << 32);
    for (uint64_t i = 0; i < 127; i++) {
        put(page + 32 + i * 32, 0x209 + i % 3);
        put(page + 40 + i * 32, list);
        put(page + 48 + i * 32, size);
        put(page + 56 + i * 32, i);
    }
}

static void loop(void)
{
    begin(0);
    for (uint64_t i = 0; i < 64; i++) /* a ring of lists: no page comes twice within the limits */
        write_list(PAGES + (1 + i) * 4096, PAGES + (1 + (i + 1) % 64) * 4096);
    write_message(PAGES, 127, PAGES + 4096, ~0ULL);
    for (uint64_t i = 0; i < rounds && !stopped; i++)
        standard_call(CALL_WITH_ARG, PAGES, PAGES, 1, 0);
}

static void most(void)
{
    uint64_t pages = 16384;
    begin(0);
    for (uint64_t i = 0; i < 33; i++)
        write_list(PAGES + (1 + i) * 4096, PAGES + (2 + i) * 4096);
    write_message(PAGES, 1, PAGES + 4096, pages * 4096);
    standard_call(CALL_WITH_ARG, PAGES, PAGES, 1, 0);
}

static void bad_tables(void)
{
    uint64_t kind = any() % 4;
    if (kind == 0) { /* an address of 64 bits: what begins beyond it */
        stub_set("VTCR_EL2", 1 << 6);
        stub_set("TCR_EL2", 0);
    } else if (kind == 1) {
        stub_set("VTCR_EL2", any());
        stub_set("VTTBR_EL2", any() % 2 ? STAGE2 : bad_number());
        stub_set("HCR_EL2", any());
    } else if (kind == 2) {
        stub_set("TCR_EL2", any() % 64);
        stub_set("TTBR0_EL2", any() % 2 ? XEN_TABLE : bad_number());
    } else {
        stub_set("TPIDR_EL2", bad_number());
    }
}

static void lists(void)
{
    static const uint64_t answers[] = {0, 0xffff0000U, 0xffff0002U, 0xffff0004U, 0xffff0005U, 0xffffffffU, 5};
    begin(0);
    for (uint64_t i = 0; i < rounds && !stopped; i++) {
        uint64_t message = some_page() % (RAM_BYTES - 0x200000), list = some_page();
        if (message < PAGES)
            message += PAGES;
        write_list(list, any() % 2 ? list : bad_number()); /* itself, or anything */
        write_message(message, any() % 2 ? 0xffffffffU : any(), any() % 2 ? list : bad_number(), bad_number());
        if (any() % 4 == 0)
            for (uint64_t n = 0; n < 512; n++)
                put(message + n * 8, bad_number());
        if (any() % 4 == 0)
            put(message, 6); /* RPC_CMD SHM_ALLOC */
        begin(0);
        if (any() % 4 == 0)
            bad_tables();
        for (unsigned x = 4; x < 18; x++)
            stub_set_x(x, bad_number());
        standard_call(any() % 2 ? CALL_WITH_ARG : RETURN_FROM_RPC, any() % 4 ? message : bad_number(),
                      any() % 4 ? message : bad_number(), any() % 3, answers[any() % (sizeof answers / 8)]);
        if (any() % 8 == 0) {
            stub_set_x(0, any() % 2 ? DOMAIN + 0x1000 : bad_number());
            stub_set("cpsr", EL2);
            stub_execute(any() % 2 ? CREATE : DESTROY, NOP);
        }
    }
}

/* books */

static uint64_t somewhere(void) /* into the lists, or anywhere */
{
    return any() % 8 ? BOOKS + any() % (BOOKS_BYTES / 8) * 8 : bad_number();
}

static void books(void)
{
    for (uint64_t i = 0; i < rounds && !stopped; i++) {
        uint64_t list = PAGES + 4096;
        for (uint64_t at = BOOKS; at < BOOKS + BOOKS_BYTES; at += 8)
            put(at, any() % 3 ? somewhere() : any() % 200);
        put(MEDIATOR, any() % 16 ? MEDIATOR : bad_number());
        put(MEDIATOR + 8, any() % 4 ? 1 : any()); /* its type, the PDX hole, the pool */
        put(MEDIATOR + 16, any() % 8 ? 0 : any());
        put(MEDIATOR + 24, somewhere());
        for (uint64_t cpu = 0; cpu < 2; cpu++) {
            uint64_t domain = DOMAIN + (cpu + 1) * 0x1000;
            put(domain + 64, any() % 8 ? somewhere() : bad_number()); /* d->arch.tee, tot_pages, p2m root and vttbr */
            put(domain + 72, any());
            put(domain + 80, any() % 2 ? BOOKS : bad_number());
            put(domain + 88, any() % 2 ? 0x1000 : bad_number());
        }
        if (any() % 2) { /* lists of one entry each, that can be walked */
            put(DOMAIN + 0x1000 + 64, BOOKS);
            for (uint64_t n = 0; n < 3; n++) {
                uint64_t entry = BOOKS + 0x100 + n * 0x100;
                put(BOOKS + n * 16, entry);
                put(entry, BOOKS + n * 16);
                put(entry + 24, any() % 64);
            }
        }
        write_list(list, list);
        write_message(PAGES, any() % 4, list, any() % 8 * 4096);
        begin(0);
        standard_call(any() % 2 ? CALL_WITH_ARG : RETURN_FROM_RPC, PAGES, PAGES, any() % 3, any() % 2 ? 0 : 0xffff0005U);
        if (any() % 4 == 0) {
            stub_set("cpsr", EL2);
            stub_set_x(0, DOMAIN + 0x1000);
            stub_execute(KILL, NOP);
            set_args(VM_DESTROYED, 2, 0);
            stub_set_x(1, any() % 4 ? 2 : any());
            xen_calls();
            stub_set_x(0, any() % 4 ? DOMAIN + 0x1000 : bad_number());
            stub_execute(DESTROY, NOP);
        }
    }
}

/* partition */

static void optee_leaves(bool secure)
{
    stub_set("cpsr", EL1);
    stub_set("SCR_EL3", secure ? 0 : 1);
    stub_execute(OPTEE_LEAVE, NOP);
    stub_set("SCR_EL3", 1);
}

static void partition(void)
{
    for (uint64_t i = 0; i < rounds && !stopped; i++) {
        for (uint64_t at = BOOKS; at < BOOKS + BOOKS_BYTES; at += 8)
            put(at, any() % 3 ? somewhere() : any() % 200);
        put(MEDIATOR, any() % 8 ? BOOKS : bad_number()); /* the list, the partition of CPU 0, its number in it */
        put(MEDIATOR + 8, any() % 8 ? MEDIATOR + 16 : any() % 2 ? bad_number() : 0);
        put(MEDIATOR + 16, 2);
        if (any() % 2) { /* one entry that can be read: next, size, cookie, offset, pages */
            put(BOOKS, 0);
            put(BOOKS + 8, any() % 8 * 4096);
            put(BOOKS + 16, any());
            put(BOOKS + 24, any() % 4096);
        }
        begin(0);
        set_args(CALL_WITH_ARG, PAGES, 1);
        guest_calls();
        optee_leaves(i % 2); /* Xen has asked nothing yet */
        xen_calls();
        optee_leaves(any() % 4);
        set_args(0, PAGES, 1);
        el3_returns();
        optee_leaves(false);
        xen_returns();
    }
}

/* unknown */

static void unknown(void)
{
    begin(0);
    put(CURRENT, 0);
    set_args(CALL_WITH_ARG, PAGES, 0);
    guest_calls();
    for (uint64_t i = 0; i < rounds; i++)
        xen_returns();
}

/* outside */

static void outside(void)
{
    uint64_t word;
    begin(0);
    ma_read(PAGES, &word, sizeof word);
}

/* rest */

static void rest(void)
{
    begin(0);
    set_args(CALL_WITH_ARG, PAGES, 0);
    guest_calls();
    while (getchar() != EOF)
        ;
}

static const struct { const char *name; void (*run)(void); } scenarios[] = {
    {"threads", threads}, {"lists", lists}, {"loop", loop}, {"most", most}, {"unknown", unknown}, {"senses", senses},
    {"books", books}, {"partition", partition}, {"outside", outside}, {"rest", rest},
};

int main(int argc, char **argv)
{
    static char places[] = "xen_curr_vcpu=0x10000", create[] = "xen_create=0x31000", kill[] = "xen_kill=0x32000",
                destroy[] = "xen_destroy=0x33000", leave[] = "xen_leave=0x38000",
                cover[] = "cover=0x39000-0x39040", domain[] = "xen_vcpu_domain=16", known[] = "xen=on";
    char *words[80] = {known, places, create, kill, destroy, domain, leave, cover};
    int count = 8;
    if (argc < 4 || argc > 70)
        return 2;
    rounds = strtoull(argv[2], NULL, 10);
    random_state = strtoull(argv[3], NULL, 10) * 2 + 1;
    for (int i = 4; i < argc; i++)
        words[count++] = argv[i];
    signal(SIGTERM, on_term); /* the plugin's way to stop a board */
    build_tables();
    if (stub_load(count, words))
        return 2;
    for (unsigned i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (!strcmp(scenarios[i].name, argv[1])) {
            scenarios[i].run();
            stub_exit();
            return 0;
        }
    return 2;
}

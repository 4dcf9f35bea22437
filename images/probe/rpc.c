/*
 * Answers to OP-TEE's requests, given without the client: a standard call completes by itself, or stops ("parks") at the
 * request the client wants to answer.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "probe.h"

#define RETURN_FROM_RPC 0x32000003
#define RPC_PREFIX 0xffff0000U
#define RPC_LOG 64
#define RPC_PAGES 64

enum { RPC_ALLOC = 0, RPC_FREE = 2, RPC_FOREIGN_INTR = 4, RPC_CMD = 5 };
enum { CMD_LOAD_TA = 0, CMD_RPMB = 1, CMD_FS = 2, CMD_GET_TIME = 3, CMD_NOTIFICATION = 4, CMD_SUSPEND = 5,
       CMD_SHM_ALLOC = 6, CMD_SHM_FREE = 7 };

#define TEE_SUCCESS 0
#define TEE_ITEM_NOT_FOUND 0xffff0008
#define TEE_BAD_PARAMETERS 0xffff0006
#define TEE_NOT_SUPPORTED 0xffff000a
#define TEE_OUT_OF_MEMORY 0xffff000c
#define ATTR_TMEM_OUTPUT_NONCONTIG 0x20a

struct param { u64 attr, a, b, c; };
struct message { u32 cmd, func, session, cancel_id, pad, ret, ret_origin, num_params; struct param params[127]; };

static u32 lock;
static u8 taken[POOL_PAGES]; /* number of pages of an allocation at its first page, 0xff at the others */
static struct { u64 cookie, ipa; } pages[RPC_PAGES];
static u32 notified[8];

static void enter(void)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        yield();
}

static void leave(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

/* Pages next to each other, or 0. */
static u64 take(u64 count)
{
    u64 run = 0;
    enter();
    for (u64 i = 0; count && count < 0xff && i < POOL_PAGES; i++) {
        run = taken[i] ? 0 : run + 1;
        if (run < count)
            continue;
        u64 first = i + 1 - count;
        memset(taken + first, 0xff, count);
        taken[first] = (u8)count;
        leave();
        return POOL + first * PAGE;
    }
    leave();
    return 0;
}

static bool give(u64 ipa)
{
    u64 first = (ipa - POOL) / PAGE;
    if (ipa < POOL || first >= POOL_PAGES || !taken[first] || taken[first] == 0xff)
        return false;
    enter();
    memset(taken + first, 0, taken[first]);
    leave();
    return true;
}

/* The client tells where a page it gave to OP-TEE lies; ipa 0 forgets. */
bool rpc_page_set(u64 cookie, u64 ipa)
{
    bool done = ipa == 0;
    enter();
    for (u32 i = 0; i < RPC_PAGES; i++)
        if (pages[i].ipa && pages[i].cookie == cookie)
            pages[i].ipa = 0;
    for (u32 i = 0; i < RPC_PAGES && !done; i++)
        if (!pages[i].ipa) {
            pages[i].cookie = cookie;
            pages[i].ipa = ipa;
            done = true;
        }
    leave();
    return done;
}

static struct message *page_of(u64 cookie)
{
    for (u32 i = 0; i < RPC_PAGES; i++)
        if (pages[i].ipa && pages[i].cookie == cookie)
            return (struct message *)pages[i].ipa;
    return NULL;
}

static u64 joined(u64 high, u64 low) { return high << 32 | (low & 0xffffffff); }

static u32 shm_alloc(struct message *m)
{
    u64 size = m->params[0].b, count = (size + PAGE - 1) / PAGE;
    u64 list = count && count < 0xfe ? take(count + 1) : 0;
    if (!list)
        return TEE_OUT_OF_MEMORY;
    memset((void *)list, 0, PAGE);
    for (u64 i = 0; i < count; i++)
        ((u64 *)list)[i] = list + (i + 1) * PAGE;
    m->num_params = 1;
    m->params[0] = (struct param){ATTR_TMEM_OUTPUT_NONCONTIG, list, size, list};
    return TEE_SUCCESS;
}

static u32 notification(struct message *m)
{
    u32 key = m->params[0].b % 256, bit = 1U << key % 32, *word = notified + key / 32;
    if (m->params[0].a == 1) {
        __atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST);
        return TEE_SUCCESS;
    }
    for (u64 began = now(), limit = ticks(500000); !(__atomic_load_n(word, __ATOMIC_SEQ_CST) & bit); yield())
        if (now() - began > limit)
            return TEE_BAD_PARAMETERS;
    __atomic_fetch_and(word, ~bit, __ATOMIC_SEQ_CST);
    return TEE_SUCCESS;
}

static u32 command(struct message *m)
{
    u64 t = now(), f = frequency();
    switch (m->cmd) {
    case CMD_SHM_ALLOC:
        return shm_alloc(m);
    case CMD_SHM_FREE:
        give(m->params[0].b);
        return TEE_SUCCESS;
    case CMD_GET_TIME:
        m->params[0].a = t / f;
        m->params[0].b = t % f * 1000000000 / f;
        return TEE_SUCCESS;
    case CMD_NOTIFICATION:
        return notification(m);
    case CMD_SUSPEND:
        for (u64 limit = ticks((m->params[0].a & 0xffffffff) * 1000); now() - t < limit;)
            yield();
        return TEE_SUCCESS;
    case CMD_LOAD_TA:
    case CMD_FS:
        return TEE_ITEM_NOT_FOUND;
    default:
        return TEE_NOT_SUPPORTED;
    }
}

static void answer(u64 *regs)
{
    u64 cookie = joined(regs[1], regs[2]), ipa;
    struct message *m;
    switch (regs[0] & 0xffff) {
    case RPC_ALLOC:
        ipa = regs[1] <= PAGE ? take(1) : 0;
        if (ipa && !rpc_page_set(ipa, ipa)) {
            give(ipa);
            ipa = 0;
        }
        regs[1] = regs[4] = ipa >> 32;
        regs[2] = regs[5] = ipa & 0xffffffff;
        break;
    case RPC_FREE:
        give(cookie);
        rpc_page_set(cookie, 0);
        break;
    case RPC_CMD:
        m = page_of(cookie);
        if (m) {
            m->ret = command(m);
            m->ret_origin = 0;
        }
        break;
    default:
        break;
    }
    regs[0] = RETURN_FROM_RPC;
    barrier();
}

/* policy: mask of RPC functions to park at, mask of RPC commands to park at (bit 63: all from 63 on), most RPCs. */
void drive(struct cpu *cpu, u64 *regs, u32 how, u32 immediate, const u64 *policy)
{
    u64 log[RPC_LOG][4];
    u64 count = 0, began = now();
    bool parked = false;
    if (how & FLAG_ANSWER)
        answer(regs);
    for (;;) {
        guest_call(cpu, regs, how, immediate);
        u32 x0 = (u32)regs[0], func = x0 & 0xffff;
        /* -1 is "unknown function" and no request. */
        if ((x0 & RPC_PREFIX) != RPC_PREFIX || x0 == 0xffffffff)
            break;
        u64 cookie = joined(regs[1], regs[2]);
        struct message *m = func == RPC_CMD ? page_of(cookie) : NULL;
        u32 cmd = m ? m->cmd : 0xffffffff;
        u64 *entry = log[count % RPC_LOG];
        entry[0] = x0;
        entry[1] = cookie;
        entry[2] = regs[3];
        entry[3] = cmd;
        count++;
        parked = (func < 64 && policy[0] >> func & 1) || (func == RPC_CMD && policy[1] >> (cmd < 63 ? cmd : 63) & 1);
        if (parked || count >= policy[2])
            break;
        answer(regs);
    }
    u64 took = now() - began;
    memcpy(cpu->last, regs, CALL_REGS * 8);
    if (how & FLAG_QUIET)
        return;
    u64 kept = count < RPC_LOG ? count : RPC_LOG;
    u64 *at = record(cpu, OP_DRIVE, ST_OK, CALL_REGS + 2 + 4 * kept);
    if (!at)
        return;
    memcpy(at, regs, CALL_REGS * 8);
    at[CALL_REGS] = took;
    at[CALL_REGS + 1] = count;
    for (u64 i = 0; i < kept; i++)
        memcpy(at + CALL_REGS + 2 + 4 * i, log[(count - kept + i) % RPC_LOG], sizeof log[0]);
}

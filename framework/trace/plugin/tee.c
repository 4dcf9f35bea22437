/*
 * Which pages belong to which call: the calls that OP-TEE has interrupted with an RPC, the buffers that guests gave
 * for RPCs, and the guest calls that Xen has not answered yet. This follows the ABI only as far as it must to find
 * the pages; it judges nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "senses.h"

#define FID_RETURN_FROM_RPC 0x32000003U
#define FID_CALL_WITH_ARG 0x32000004U
#define FID_DISABLE_SHM_CACHE 0xb200000aU
#define RPC_PREFIX 0xffff0000U
#define RPC_UNKNOWN_FUNCTION 0xffffffffU
#define RPC_ALLOC 0
#define RPC_FREE 2
#define RPC_CMD 5
#define CMD_SHM_ALLOC 6
#define NONE (~0ULL)

#define CALLS 256
#define RPCS 1024
#define OPEN 256

static struct tee_call calls[CALLS];
static struct tee_rpc rpcs[RPCS];
static struct guest_call open_calls[OPEN];
static unsigned calls_open; /* read without the lock: see guest_calls_pending */

static uint64_t pair(uint64_t high, uint64_t low)
{
    return high << 32 | (low & 0xffffffffU);
}

static bool is_rpc(uint64_t x0)
{
    uint32_t value = (uint32_t)x0;
    return (value & RPC_PREFIX) == RPC_PREFIX && value != RPC_UNKNOWN_FUNCTION;
}

bool guest_calls_pending(void)
{
    return __atomic_load_n(&calls_open, __ATOMIC_ACQUIRE) != 0;
}

static void count_open(int more)
{
    MUST_BE_INSIDE();
    __atomic_store_n(&calls_open, calls_open + (unsigned)more, __ATOMIC_RELEASE);
}

struct guest_call *guest_call_find(uint64_t key)
{
    MUST_BE_INSIDE();
    for (unsigned i = 0; key && i < OPEN; i++)
        if (open_calls[i].key == key)
            return &open_calls[i];
    return NULL;
}

bool guest_call_alone(const struct guest_call *call)
{
    for (unsigned i = 0; i < OPEN; i++)
        if (open_calls[i].key && open_calls[i].owner == call->owner && &open_calls[i] != call)
            return false;
    return true;
}

struct guest_call *guest_call_open(uint64_t key)
{
    struct guest_call *call = guest_call_find(key);
    for (unsigned i = 0; key && !call && i < OPEN; i++) /* a vCPU that is not known (0) cannot be followed */
        if (!open_calls[i].key) {
            call = &open_calls[i];
            count_open(1);
        }
    if (!call) {
        counters[C_TABLE_FULL]++;
        return NULL;
    }
    *call = (struct guest_call){.key = key, .ipa = NONE, .alloc_ipa = NONE};
    return call;
}

void guest_call_close(struct guest_call *call)
{
    call->key = 0;
    count_open(-1);
}

struct tee_call *tee_call_find(uint16_t owner, int32_t thread)
{
    for (unsigned i = 0; i < CALLS; i++)
        if (calls[i].used && calls[i].owner == owner && calls[i].thread == thread && calls[i].cpu < 0)
            return &calls[i];
    return NULL;
}

static struct tee_call *running_on(unsigned cpu)
{
    for (unsigned i = 0; i < CALLS; i++)
        if (calls[i].used && calls[i].cpu == (int32_t)cpu)
            return &calls[i];
    return NULL;
}

struct tee_call *tee_call_add(uint16_t owner)
{
    for (unsigned i = 0; i < CALLS; i++)
        if (!calls[i].used) {
            calls[i] = (struct tee_call){.used = true, .owner = owner, .thread = -1, .cpu = -1, .ipa = NONE};
            return &calls[i];
        }
    counters[C_TABLE_FULL]++;
    return NULL;
}

const struct tee_rpc *tee_rpc_find(uint16_t owner, uint64_t cookie)
{
    for (unsigned i = 0; i < RPCS; i++)
        if (rpcs[i].used && rpcs[i].owner == owner && rpcs[i].cookie == cookie)
            return &rpcs[i];
    return NULL;
}

static void tee_rpc_drop(uint16_t owner, uint64_t cookie)
{
    struct tee_rpc *rpc = (struct tee_rpc *)tee_rpc_find(owner, cookie);
    if (rpc)
        rpc->used = false;
}

void tee_rpc_add(uint16_t owner, uint64_t cookie, uint64_t shadow, uint64_t ipa)
{
    MUST_BE_INSIDE();
    struct tee_rpc *rpc = (struct tee_rpc *)tee_rpc_find(owner, cookie);
    for (unsigned i = 0; !rpc && i < RPCS; i++)
        if (!rpcs[i].used)
            rpc = &rpcs[i];
    if (rpc)
        *rpc = (struct tee_rpc){.used = true, .owner = owner, .cookie = cookie, .shadow = shadow, .ipa = ipa};
    else
        counters[C_TABLE_FULL]++;
}

void tee_forget(uint16_t owner)
{
    MUST_BE_INSIDE();
    for (unsigned i = 0; i < CALLS; i++)
        if (calls[i].owner == owner)
            calls[i].used = false;
    for (unsigned i = 0; i < RPCS; i++)
        if (rpcs[i].owner == owner)
            rpcs[i].used = false;
    for (unsigned i = 0; i < OPEN; i++)
        if (open_calls[i].key && open_calls[i].owner == owner)
            guest_call_close(&open_calls[i]);
}

/* A message page holds page lists in its parameters; an RPC page does only when it answers SHM_ALLOC. */
static bool answers_alloc(const struct block *b)
{
    return b && b->length >= 4 && *(const uint32_t *)block_data(b) == CMD_SHM_ALLOC;
}

/* Capturing more may move the record: blocks are found again by their offset. */
static const struct block *at(size_t offset)
{
    return (const struct block *)(rec.data + offset);
}

static void guest_message(unsigned cpu, int kind, uint64_t ipa, uint64_t cookie, bool lists)
{
    size_t offset = rec.used;
    struct block *b = capture_guest_page(cpu, kind, ipa, 0, cookie);
    if (b && lists && (kind == BLK_GUEST_ARG || answers_alloc(b)))
        capture_guest_lists(cpu, at(offset));
}

/* The guest's page once more, beside Xen's copy: a guest with several vCPUs may be writing while Xen copies. */
static void guest_again(unsigned cpu, int kind, uint64_t ipa, uint64_t cookie)
{
    if (ipa != NONE)
        guest_message(cpu, kind, ipa, cookie, false);
}

static void shadow_message(int kind, uint64_t ma, uint64_t cookie, bool lists)
{
    size_t offset = rec.used;
    struct block *b = capture_ma_page(kind, ma, 0, cookie);
    if (b && lists && (kind == BLK_SHADOW_ARG || answers_alloc(b)))
        capture_shadow_lists(at(offset));
}

void tee_guest_call(unsigned cpu, struct guest_call *call, const uint64_t *x)
{
    MUST_BE_INSIDE();
    if (call->fid == FID_CALL_WITH_ARG) {
        call->ipa = pair(x[1], x[2]);
        guest_message(cpu, BLK_GUEST_ARG, call->ipa, 0, true);
    } else if (call->fid == FID_RETURN_FROM_RPC) {
        const struct tee_call *waiting = tee_call_find(call->owner, (int32_t)x[3]);
        uint64_t named = pair(x[1], x[2]);
        if (waiting && waiting->ipa != NONE)
            accesses_watch_ipa(cpu, waiting->ipa);
        if (waiting && waiting->op == RPC_ALLOC) {
            call->alloc_ipa = named;
            capture_guest_page(cpu, BLK_GUEST_ALLOC, named, 0, pair(x[4], x[5]));
        } else if (!waiting || waiting->op == RPC_CMD) {
            /* The ABI says the cookie is OP-TEE's, Xen takes the one in x1:x2; when they differ both pages matter. */
            const struct tee_rpc *asked = waiting ? tee_rpc_find(call->owner, waiting->cookie) : NULL;
            const struct tee_rpc *given = tee_rpc_find(call->owner, named);
            if (asked)
                guest_message(cpu, BLK_GUEST_RPC, asked->ipa, asked->cookie, true);
            if (given && given != asked)
                guest_message(cpu, BLK_GUEST_RPC, given->ipa, given->cookie, true);
        }
    }
}

/* The requests that other calls of the domain wait at: a resumed call must not touch them. */
static void other_requests(const struct tee_call *resumed)
{
    for (unsigned i = 0; i < CALLS; i++) {
        const struct tee_call *call = &calls[i];
        if (!call->used || call == resumed || call->owner != resumed->owner || call->cpu >= 0 || call->op != RPC_CMD ||
            call->cookie == resumed->cookie)
            continue;
        const struct tee_rpc *rpc = tee_rpc_find(call->owner, call->cookie);
        if (rpc)
            shadow_message(BLK_SHADOW_RPC, rpc->shadow, rpc->cookie, false);
    }
}

void tee_el3_call(unsigned cpu, struct guest_call *parent, uint16_t owner, const uint64_t *x)
{
    MUST_BE_INSIDE();
    uint32_t fid = (uint32_t)x[0];
    struct tee_call *call = running_on(cpu);
    if (call)
        call->used = false; /* its return was never seen */
    if (fid == FID_CALL_WITH_ARG) {
        if (!(call = tee_call_add(owner)))
            return;
        call->cpu = (int32_t)cpu;
        call->shadow = pair(x[1], x[2]);
        call->ipa = parent ? parent->ipa : NONE;
        shadow_message(BLK_SHADOW_ARG, call->shadow, 0, true);
        guest_again(cpu, BLK_GUEST_ARG, call->ipa, 0);
    } else if (fid == FID_RETURN_FROM_RPC) {
        if (!(call = tee_call_find(owner, (int32_t)x[3])))
            return;
        call->cpu = (int32_t)cpu;
        if (parent)
            parent->ipa = call->ipa;
        if (call->op == RPC_ALLOC && (x[1] || x[2]))
            tee_rpc_add(owner, pair(x[4], x[5]), pair(x[1], x[2]), parent ? parent->alloc_ipa : NONE);
        const struct tee_rpc *rpc = call->op == RPC_CMD ? tee_rpc_find(owner, call->cookie) : NULL;
        if (rpc) {
            shadow_message(BLK_SHADOW_RPC, rpc->shadow, rpc->cookie, true);
            guest_again(cpu, BLK_GUEST_RPC, rpc->ipa, rpc->cookie);
        }
        other_requests(call);
    }
}

void tee_el3_return(unsigned cpu, uint32_t fid, uint16_t owner, const uint64_t *x)
{
    MUST_BE_INSIDE();
    struct tee_call *call = running_on(cpu);
    if (fid == FID_DISABLE_SHM_CACHE && x[0] == 0)
        tee_rpc_drop(owner, pair(x[1], x[2]));
    if (!call || (fid != FID_CALL_WITH_ARG && fid != FID_RETURN_FROM_RPC))
        return;
    if (!is_rpc(x[0])) {
        shadow_message(BLK_SHADOW_ARG, call->shadow, 0, false);
        guest_again(cpu, BLK_GUEST_ARG, call->ipa, 0);
        call->used = false;
        return;
    }
    call->cpu = -1;
    call->thread = (int32_t)x[3];
    call->op = (uint32_t)x[0] & 0xffff;
    call->cookie = pair(x[1], x[2]);
    const struct tee_rpc *rpc = call->op == RPC_CMD ? tee_rpc_find(owner, call->cookie) : NULL;
    if (rpc) {
        shadow_message(BLK_SHADOW_RPC, rpc->shadow, rpc->cookie, false);
        guest_again(cpu, BLK_GUEST_RPC, rpc->ipa, rpc->cookie);
    }
    if (call->op == RPC_FREE)
        tee_rpc_drop(owner, call->cookie);
}

void tee_guest_return(unsigned cpu, struct guest_call *call, const uint64_t *x)
{
    if (call->fid != FID_CALL_WITH_ARG && call->fid != FID_RETURN_FROM_RPC)
        return;
    if (is_rpc(x[0])) {
        const struct tee_rpc *rpc =
            ((uint32_t)x[0] & 0xffff) == RPC_CMD ? tee_rpc_find(call->owner, pair(x[1], x[2])) : NULL;
        if (rpc && rpc->ipa != NONE)
            guest_message(cpu, BLK_GUEST_RPC, rpc->ipa, rpc->cookie, false);
    } else if (call->ipa != NONE) {
        guest_message(cpu, BLK_GUEST_ARG, call->ipa, 0, false);
    }
}

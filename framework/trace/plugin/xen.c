/*
 * Who runs: Xen's own `current`, read from Xen's memory through the symbols and offsets of its xen-syms, so that the
 * attribution of an event to a domain does not depend on what the mediator writes into a register.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "trace.h"

#define CACHE 128
#define LEARN_LIMIT 256
#define TEE_OPTEE 1 /* XEN_DOMCTL_CONFIG_TEE_OPTEE, xen/include/public/arch-arm.h */

struct xen_layout xen;

/* struct vcpu -> ids; emptied whenever a domain comes or goes, because Xen reuses the memory. */
static struct { uint64_t vcpu, address; uint16_t domain, id; } cache[CACHE];

/* Where each CPU keeps curr_vcpu, for as long as its per-CPU base and its page tables stay. */
static struct { uint64_t tpidr, ttbr, ma; bool valid; } slots[MAX_CPUS];

static uint64_t learned[65536 / 64]; /* domains whose RPC buffers from before the trace are known */

void xen_forget(void)
{
    MUST_BE_INSIDE();
    memset(cache, 0, sizeof cache);
}

uint16_t xen_domain_of(unsigned cpu, uint64_t domain)
{
    uint16_t id;
    return xen_read(cpu, domain + xen.domain_id, &id, 2) ? id : UNKNOWN16;
}

static uint64_t current_vcpu(unsigned cpu)
{
    uint64_t tpidr = reg_read(cpu, R_TPIDR_EL2), ttbr = reg_read(cpu, R_TTBR0_EL2), vcpu;
    if (!slots[cpu].valid || slots[cpu].tpidr != tpidr || slots[cpu].ttbr != ttbr) {
        slots[cpu].tpidr = tpidr;
        slots[cpu].ttbr = ttbr;
        slots[cpu].valid = xen_va(cpu, tpidr + xen.curr_vcpu, &slots[cpu].ma);
    }
    return slots[cpu].valid && ma_read(slots[cpu].ma, &vcpu, 8) ? vcpu : 0;
}

void xen_who(unsigned cpu, struct who *who)
{
    MUST_BE_INSIDE();
    who->vttbr = reg_read(cpu, R_VTTBR_EL2);
    who->vmid = (uint16_t)(who->vttbr >> 48);
    who->domain = who->id = UNKNOWN16;
    who->address = 0;
    who->vcpu = xen.known ? current_vcpu(cpu) : 0;
    if (!who->vcpu) {
        /* Without Xen's symbols the stage-2 table is the identity: right for guests with one vCPU. */
        who->vcpu = xen.known ? 0 : who->vttbr | 1;
        return;
    }
    unsigned slot = (unsigned)(who->vcpu >> 8 ^ who->vcpu >> 16) % CACHE;
    if (cache[slot].vcpu != who->vcpu) {
        uint64_t domain;
        uint32_t id;
        uint16_t domain_id;
        if (!xen_read(cpu, who->vcpu + xen.vcpu_domain, &domain, 8) ||
            !xen_read(cpu, who->vcpu + xen.vcpu_id, &id, 4) ||
            (domain_id = xen_domain_of(cpu, domain)) == UNKNOWN16)
            return;
        cache[slot].vcpu = who->vcpu;
        cache[slot].address = domain;
        cache[slot].domain = domain_id;
        cache[slot].id = (uint16_t)id;
    }
    who->address = cache[slot].address;
    who->domain = cache[slot].domain;
    who->id = cache[slot].id;
}

/* Whether a domain's state in the mediator is a struct optee_domain: with FF-A's mediator active it is none. */
bool optee_mediates(unsigned cpu)
{
    uint64_t active;
    uint16_t type;
    return !xen.mediator || (xen_read(cpu, xen.mediator, &active, 8) && active &&
                             xen_read(cpu, active + xen.tee_type, &type, 2) && type == TEE_OPTEE);
}

/*
 * A trace that begins on a restored board has not seen the guests hand out their RPC buffers. Xen's own list of them
 * is read once for each domain; only to find the pages, what they hold is recorded as it is.
 */
void xen_learn(unsigned cpu, const struct who *who)
{
    uint64_t domain, tee, head, node;
    if (!xen.tee_known || who->domain >= FIRST_RESERVED_DOMAIN || learned[who->domain / 64] >> (who->domain % 64) & 1)
        return;
    learned[who->domain / 64] |= 1ULL << (who->domain % 64);
    if (!optee_mediates(cpu) || !xen_read(cpu, who->vcpu + xen.vcpu_domain, &domain, 8) ||
        !xen_read(cpu, domain + xen.domain_tee, &tee, 8) || !tee)
        return;
    head = tee + xen.tee_rpcs;
    if (!xen_read(cpu, head, &node, 8))
        return;
    for (unsigned i = 0; node != head && i < LEARN_LIMIT; i++) {
        uint64_t rpc = node - xen.rpc_list, arg, gfn, cookie, shadow;
        if (!xen_read(cpu, rpc + xen.rpc_arg, &arg, 8) || !xen_read(cpu, rpc + xen.rpc_gfn, &gfn, 8) ||
            !xen_read(cpu, rpc + xen.rpc_cookie, &cookie, 8) || !xen_va(cpu, arg, &shadow) ||
            !xen_read(cpu, node, &node, 8))
            return;
        tee_rpc_add(who->domain, cookie, shadow & ~PAGE_MASK, gfn << 12);
    }
}

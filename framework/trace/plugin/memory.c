/*
 * Guest and hypervisor memory by machine address, and the two page-table walks that lead there. Walking the tables
 * ourselves works at every exception level and for any IPA, and gives the leaf entry, which holds Xen's p2m type.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "trace.h"

#define ADDRESS 0x0000fffffffff000ULL
#define LEAST_BITS 25 /* of an address, with a 4 KiB granule and entries of 48 bits */
#define MOST_BITS 48

static GByteArray *io;

/* The last-level stage-2 table of the current event: page lists translate hundreds of neighbouring pages. */
static struct {
    bool valid;
    uint64_t key; /* IPA >> 21 */
    uint64_t entries[512];
} last;

/* Of Xen's own pages, for the current event: what it keeps together lies close together. */
static struct { uint64_t va, ma; bool valid; } near[8];

void memory_begin(void)
{
    last.valid = false;
    memset(near, 0, sizeof near);
}

bool ma_read(uint64_t ma, void *data, size_t length)
{
    MUST_BE_INSIDE();
    if (!io)
        io = g_byte_array_new();
    if (qemu_plugin_read_memory_hwaddr(ma, io, length) != 0)
        return false;
    memcpy(data, io->data, length);
    return true;
}

bool ma_write(uint64_t ma, const void *data, size_t length)
{
    MUST_BE_INSIDE();
    if (!io)
        io = g_byte_array_new();
    g_byte_array_set_size(io, (unsigned)length);
    memcpy(io->data, data, length);
    return qemu_plugin_write_memory_hwaddr(ma, io) == 0;
}

/*
 * Whether an entry maps something. Xen clears the valid bit of stage-2 entries (p2m_invalidate_root, when a guest turns
 * its caches on or cleans them by set/way) and resolves the fault later; it goes by its own type field, which is not 0
 * (p2m_invalid) for an entry that it would resolve.
 */
static bool maps(uint64_t pte, bool guest)
{
    return (pte & 1) || (guest && (pte >> 55 & 0xf) != 0);
}

/* One LPAE walk, 4 KiB granule, from a table at `level`; first_bits: index bits of the first table (concatenation). */
static bool walk(uint64_t table, int level, uint64_t address, int size_bits, struct leaf *leaf, bool guest)
{
    memset(leaf, 0, sizeof *leaf);
    for (bool first = true;; level++, first = false) {
        int shift = 12 + 9 * (3 - level);
        uint64_t index = address >> shift;
        index &= first ? (1ULL << (size_bits > shift ? size_bits - shift : 0)) - 1 : 511;
        uint64_t pte;
        if (level == 3 && guest) {
            if (!ma_read(table, last.entries, sizeof last.entries))
                return false;
            last.valid = true;
            last.key = address >> 21;
            pte = last.entries[index & 511];
        } else if (!ma_read(table + index * 8, &pte, 8)) {
            return false;
        }
        leaf->pte = pte;
        leaf->level = (uint8_t)level;
        if (!maps(pte, guest) || (level == 3 && !(pte & 2)))
            return false;
        if (level == 3 || !(pte & 2)) {
            uint64_t mask = (1ULL << shift) - 1;
            leaf->ma = (pte & ADDRESS & ~mask) | (address & mask);
            leaf->valid = true;
            return true;
        }
        table = pte & ADDRESS;
    }
}

bool stage2(unsigned cpu, uint64_t ipa, struct leaf *leaf)
{
    MUST_BE_INSIDE();
    if (last.valid && last.key == ipa >> 21) {
        uint64_t pte = last.entries[(ipa >> 12) & 511];
        *leaf = (struct leaf){.ma = (pte & ADDRESS) | (ipa & PAGE_MASK), .pte = pte, .level = 3,
                              .valid = (pte & 2) && maps(pte, true)};
        if (!leaf->valid)
            leaf->ma = 0;
        return leaf->valid;
    }
    uint64_t vtcr = reg_read(cpu, R_VTCR_EL2);
    int bits = 64 - (int)(vtcr & 0x3f), sl0 = (int)(vtcr >> 6) & 3;
    memset(leaf, 0, sizeof *leaf);
    if (!(reg_read(cpu, R_HCR_EL2) & 1)) { /* HCR_EL2.VM: stage 2 is off, addresses are machine addresses */
        *leaf = (struct leaf){.ma = ipa, .level = 0, .valid = true};
        return true;
    }
    if ((vtcr >> 14 & 3) != 0 || sl0 > 2 || bits < LEAST_BITS || bits > MOST_BITS || ipa >> bits)
        return false;
    return walk(reg_read(cpu, R_VTTBR_EL2) & ADDRESS & ~1ULL, 2 - sl0, ipa, bits, leaf, true);
}

bool xen_va(unsigned cpu, uint64_t va, uint64_t *ma)
{
    struct leaf leaf;
    int bits = 64 - (int)(reg_read(cpu, R_TCR_EL2) & 0x3f);
    if (bits < LEAST_BITS || bits > MOST_BITS || va >> bits ||
        !walk(reg_read(cpu, R_TTBR0_EL2) & ADDRESS, 3 - (bits - 13) / 9, va, bits, &leaf, false))
        return false;
    *ma = leaf.ma;
    return true;
}

bool xen_read(unsigned cpu, uint64_t va, void *data, size_t length)
{
    uint64_t ma;
    return xen_va(cpu, va, &ma) && ma_read(ma, data, length);
}

static bool near_va(unsigned cpu, uint64_t va, uint64_t *ma)
{
    uint64_t page = va & ~PAGE_MASK;
    unsigned slot = (unsigned)(va >> 12) % 8;
    if (!near[slot].valid || near[slot].va != page) {
        near[slot].valid = xen_va(cpu, page, &near[slot].ma);
        near[slot].va = page;
    }
    *ma = near[slot].ma | (va & PAGE_MASK);
    return near[slot].valid;
}

bool xen_copy(unsigned cpu, uint64_t va, void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        size_t here = PAGE - ((va + done) & PAGE_MASK);
        uint64_t ma;
        if (here > length - done)
            here = length - done;
        if (!near_va(cpu, va + done, &ma) || !ma_read(ma, (uint8_t *)data + done, here))
            return false;
        done += here;
    }
    return true;
}

bool leaf_is_ram(const struct leaf *leaf)
{
    unsigned attributes = leaf->pte >> 2 & 0xf, type = leaf->pte >> 55 & 0xf;
    if (!leaf->valid)
        return false;
    /* MemAttr 0b00xx is device memory; Xen's p2m types 3 to 5 are MMIO, some of it mapped as normal memory. */
    return leaf->pte == 0 || (attributes >> 2 != 0 && (type < 3 || type > 5));
}

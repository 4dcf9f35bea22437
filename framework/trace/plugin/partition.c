/*
 * OP-TEE's own list of the memory that a guest shares with it (reg_shm_list), as it is when OP-TEE is about to leave the
 * guest's partition. It lies in secure memory that is mapped for that partition only, so it is read by virtual
 * address, by the CPU that runs there. What is read may change under the reader while another CPU is in the same
 * partition: the block says whether one was. Copied as it is; nothing is judged.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "books.h"

#define ENTRIES_LIMIT 512 /* OP-TEE's heap has room for fewer */

struct optee_layout optee;

static struct { /* of each CPU, until OP-TEE's answer is recorded */
    struct words list;
    uint16_t client;
    bool taken, whole, shared;
} seen[MAX_CPUS];

/* Whether the layout, which is some file's, keeps every read inside of what is copied. */
bool partition_usable(void)
{
    return optee.cpus <= MAX_CPUS && fits(optee.partition_id, 2, STRUCT_LIMIT) &&
           fits(optee.shm_size, 8, optee.shm_pages) && fits(optee.shm_next, 8, optee.shm_pages) &&
           fits(optee.shm_cookie, 8, optee.shm_pages) && fits(optee.shm_page_offset, 8, optee.shm_pages);
}

/* By the virtual address that the running CPU would use: QEMU reads other memory as the non-secure world sees it. */
static bool secure_copy(uint64_t va, void *data, size_t length)
{
    static GByteArray *io;
    MUST_BE_INSIDE();
    if (!io)
        io = g_byte_array_new();
    if (!qemu_plugin_read_memory_vaddr(va, io, length))
        return false;
    memcpy(data, io->data, length);
    return true;
}

/* One entry: its cookie, its number of pages, and their addresses. */
static bool copy_entry(struct words *list, const uint8_t *at, uint64_t address)
{
    uint64_t size = word_at(at, optee.shm_size), offset = word_at(at, optee.shm_page_offset);
    if (offset >= PAGE || size > FRAMES_LIMIT * PAGE)
        return false;
    uint64_t count = (size + offset + PAGE_MASK) / PAGE;
    words_put(list, word_at(at, optee.shm_cookie));
    words_put(list, count);
    for (uint64_t done = 0; done < count && !list->full;) {
        uint64_t pages[64], here = count - done < 64 ? count - done : 64;
        if (!secure_copy(address + optee.shm_pages + done * 8, pages, here * 8))
            return false;
        for (uint64_t i = 0; i < here; i++)
            words_put(list, pages[i]);
        done += here;
    }
    return !list->full;
}

static bool copy_list(struct words *list)
{
    uint8_t at[STRUCT_LIMIT];
    uint64_t node;
    list->used = 0;
    list->full = false;
    if (!secure_copy(optee.list, &node, 8))
        return false;
    for (unsigned i = 0; node; i++) {
        if (i == ENTRIES_LIMIT || !secure_copy(node, at, optee.shm_pages) || !copy_entry(list, at, node))
            return false;
        node = word_at(at, optee.shm_next);
    }
    return true;
}

void partition_read(unsigned cpu, bool shared)
{
    uint64_t partition;
    uint16_t client;
    seen[cpu].taken = false;
    if (cpu >= optee.cpus || !secure_copy(optee.current + cpu * 8, &partition, 8) || !partition ||
        !secure_copy(partition + optee.partition_id, &client, 2))
        return; /* no partition: a call of the hypervisor's own, or of a client that OP-TEE does not know */
    seen[cpu].client = client;
    seen[cpu].whole = copy_list(&seen[cpu].list);
    seen[cpu].shared = shared;
    seen[cpu].taken = true;
}

void partition_forget(unsigned cpu)
{
    seen[cpu].taken = false;
}

void partition_block(unsigned cpu, bool shared)
{
    if (!seen[cpu].taken)
        return;
    size_t length = seen[cpu].whole ? seen[cpu].list.used * 8 : 0;
    struct block *b = rec_block(BLK_PARTITION, length);
    seen[cpu].taken = false;
    if (!b)
        return;
    b->flags |= seen[cpu].whole ? 0 : BLK_F_UNREADABLE;
    b->cookie = seen[cpu].client;
    b->pte = seen[cpu].shared || shared;
    if (length)
        memcpy(b + 1, seen[cpu].list.at, length);
    rec_close_block(b, length);
}

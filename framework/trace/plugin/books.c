/*
 * Xen's own books of a domain: its lists of calls, RPC pages and buffers with their counters, the references of the
 * pages that they name, and what Xen's memory holds. Copied as they are; nothing is judged. What is read may change
 * under the reader while another vCPU of the domain is in the mediator: the trace shows whether one was.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdlib.h>

#include "books.h"

#define ENTRIES_LIMIT 128  /* of one list; Xen allows 16 buffers and as many calls as OP-TEE has threads */
#define DOMAINS 64

/* Domains that are killed, until they are gone. */
static struct { uint16_t domain; uint64_t address; } ending[DOMAINS];

/* Whether the layout, which is some file's, keeps every read inside of what is copied. */
bool books_usable(void)
{
    const struct xen_books *b = &xen.books;
    return b->page_size >= 16 && fits(b->page_count, 8, b->page_size) && fits(b->page_owner, 8, b->page_size) &&
           fits(b->call_list, 16, b->call_size) && fits(b->call_shadow, 8, b->call_size) &&
           fits(b->call_ipa, 8, b->call_size) && fits(b->call_thread, 4, b->call_size) &&
           fits(b->call_in_flight, 1, b->call_size) && fits(xen.rpc_list, 16, b->rpc_size) &&
           fits(xen.rpc_gfn, 8, b->rpc_size) && fits(xen.rpc_cookie, 8, b->rpc_size) &&
           fits(b->rpc_page, 8, b->rpc_size) && fits(b->rpc_shadow, 8, b->rpc_size) &&
           fits(b->buf_list, 16, b->buf_pages) && fits(b->buf_cookie, 8, b->buf_pages) &&
           fits(b->buf_count, 4, b->buf_pages) && fits(b->buf_shadow, 8, b->buf_pages) &&
           fits(b->buf_order, 4, b->buf_pages);
}

static uint64_t continued; /* hypercalls that only went on with a domain's end */

void books_continued(void)
{
    continued++;
}

static void heap_block(unsigned cpu, uint16_t id, uint64_t domain)
{
    uint64_t pool, free_pages, regions, used;
    uint32_t pages;
    if (!options.heap || !xen_copy(cpu, xen.books.heap_free, &free_pages, 8) ||
        !xen_copy(cpu, xen.books.heap_pool, &pool, 8) || !xen_copy(cpu, pool + xen.books.pool_regions, &regions, 8) ||
        !xen_copy(cpu, pool + xen.books.pool_used, &used, 8) || !xen_copy(cpu, domain + xen.books.domain_pages, &pages, 4))
        return;
    struct block *b = sense_block(cpu, BLK_HEAP, 5, id, domain);
    if (!b)
        return;
    uint64_t *words = (uint64_t *)(b + 1);
    words[0] = free_pages;
    words[1] = regions;
    words[2] = used - regions * xen.books.pool_header; /* each region has a header that counts as used */
    words[3] = pages;
    words[4] = continued;
    rec_close_block(b, 40);
}

static struct words book;

void words_put(struct words *words, uint64_t value)
{
    if (words->used >= WORDS_LIMIT)
        words->full = true;
    if (words->full)
        return;
    if (words->used == words->room) {
        size_t room = words->room ? words->room * 2 : 512;
        uint64_t *grown = realloc(words->at, room * 8);
        if (!grown) {
            words->full = true;
            return;
        }
        words->at = grown;
        words->room = room;
    }
    words->at[words->used++] = value;
}

static void put(uint64_t value)
{
    words_put(&book, value);
}

struct list { /* what is read of each entry, and how it becomes words */
    uint64_t head, node, size;
    bool (*entry)(unsigned cpu, uint64_t domain, const uint8_t *at, uint64_t address, struct watch *watch);
};

static bool call_entry(unsigned cpu, uint64_t domain, const uint8_t *at, uint64_t address, struct watch *watch)
{
    (void)watch;
    put(frame_word(cpu, domain, word_at(at, xen.books.call_shadow)));
    put(word_at(at, xen.books.call_ipa));
    put(half_at(at, xen.books.call_thread) | (uint64_t)(at[xen.books.call_in_flight] != 0) << 32);
    put(address);
    return true;
}

static bool rpc_entry(unsigned cpu, uint64_t domain, const uint8_t *at, uint64_t address, struct watch *watch)
{
    (void)address;
    put(word_at(at, xen.rpc_cookie));
    put(word_at(at, xen.rpc_gfn));
    put(frame_word(cpu, domain, word_at(at, xen.books.rpc_page)));
    put(frame_word(cpu, domain, word_at(at, xen.books.rpc_shadow)));
    watch_page(watch, word_at(at, xen.books.rpc_page));
    return true;
}

static bool buf_entry(unsigned cpu, uint64_t domain, const uint8_t *at, uint64_t address, struct watch *watch)
{
    uint32_t count = half_at(at, xen.books.buf_count);
    put(word_at(at, xen.books.buf_cookie));
    put(count | (uint64_t)half_at(at, xen.books.buf_order) << 32);
    put(frame_word(cpu, domain, word_at(at, xen.books.buf_shadow)));
    if (count > FRAMES_LIMIT)
        return false;
    for (uint32_t done = 0; done < count && !book.full;) {
        uint64_t pages[64];
        uint32_t here = count - done < 64 ? count - done : 64;
        if (!xen_copy(cpu, address + xen.books.buf_pages + done * 8ULL, pages, here * 8))
            return false;
        for (uint32_t i = 0; i < here; i++) {
            put(frame_word(cpu, domain, pages[i]));
            watch_page(watch, pages[i]);
        }
        done += here;
    }
    return true;
}

/* Copies one list; its length, or -1 when it cannot be read to its end. */
static int walk(unsigned cpu, uint64_t domain, const struct list *list, struct watch *watch)
{
    uint8_t at[STRUCT_LIMIT];
    uint64_t node;
    int count = 0;
    if (!xen_copy(cpu, list->head, &node, 8))
        return -1;
    while (node != list->head) {
        uint64_t address = node - list->node;
        if (count == ENTRIES_LIMIT || !xen_copy(cpu, address, at, list->size) ||
            !list->entry(cpu, domain, at, address, watch))
            return -1;
        count++;
        node = word_at(at, list->node);
    }
    return count;
}

static bool read_book(unsigned cpu, uint64_t domain, uint64_t tee, struct watch *watch)
{
    const struct xen_books *b = &xen.books;
    const struct list lists[] = {
        {tee + b->calls, b->call_list, b->call_size, call_entry},
        {tee + xen.tee_rpcs, xen.rpc_list, b->rpc_size, rpc_entry},
        {tee + b->bufs, b->buf_list, b->buf_pages, buf_entry},
    };
    uint32_t calls, bufs, pages;
    uint64_t lengths = 0;
    book.used = 0;
    book.full = false;
    if (!xen_copy(cpu, tee + b->call_count_of, &calls, 4) || !xen_copy(cpu, tee + b->buf_count_of, &bufs, 4) ||
        !xen_copy(cpu, tee + b->buf_pages_of, &pages, 4))
        return false;
    put(0);
    put(calls | (uint64_t)bufs << 32);
    put(pages);
    for (unsigned i = 0; i < 3; i++) {
        int length = walk(cpu, domain, &lists[i], watch);
        if (length < 0)
            return false;
        lengths |= (uint64_t)length << (16 * i);
    }
    if (book.full)
        return false;
    book.at[0] = lengths;
    return true;
}

static void book_block(unsigned cpu, uint16_t id, uint64_t domain, struct watch *watch)
{
    uint64_t tee;
    if (!optee_mediates(cpu) || !xen_copy(cpu, domain + xen.domain_tee, &tee, 8))
        return;
    bool whole = !tee || read_book(cpu, domain, tee, watch);
    size_t words = tee && whole ? book.used : 0;
    struct block *b = sense_block(cpu, BLK_BOOKS, words, id, domain);
    if (!b)
        return;
    b->ma = tee;
    if (!whole)
        b->flags |= BLK_F_UNREADABLE;
    if (words)
        memcpy(b + 1, book.at, words * 8);
    rec_close_block(b, words * 8);
}

static bool wanted(uint16_t id, uint64_t domain)
{
    return xen.books.known && (options.books || options.frames || options.heap) && domain && id < FIRST_RESERVED_DOMAIN;
}

void books_guest_call(unsigned cpu, uint16_t id, uint64_t domain)
{
    struct watch *watch;
    if (!wanted(id, domain) || !(watch = watch_of(id)))
        return;
    frames_begin(cpu, domain);
    if (!watch->seen && options.books)
        book_block(cpu, id, domain, watch); /* what the domain held before the trace began, and so before this call */
    watch->seen = true;
    watch_once(watch, 0);
    if (options.frames)
        frames_named(cpu, domain, watch);
    heap_block(cpu, id, domain);
}

void books_el3_call(unsigned cpu, uint16_t id, uint64_t domain)
{
    if (!wanted(id, domain) || !options.books)
        return;
    frames_begin(cpu, domain);
    book_block(cpu, id, domain, watch_of(id));
}

/* Lists, pages that have left them (with `alone`: no other call of the domain is under way), and memory. */
static void whole_book(unsigned cpu, uint16_t id, uint64_t domain, bool alone)
{
    struct watch *watch = watch_of(id), before;
    if (!watch)
        return;
    frames_begin(cpu, domain);
    before = *watch;
    *watch = (struct watch){.used = true, .seen = true, .domain = id};
    if (options.books)
        book_block(cpu, id, domain, watch);
    watch_once(watch, 0);
    if (options.frames)
        frames_left(cpu, domain, &before, watch);
    for (unsigned i = 0; !alone && i < before.count; i++)
        watch_page(watch, before.pages[i]);
    free(before.pages);
    heap_block(cpu, id, domain);
}

void books_guest_return(unsigned cpu, uint16_t id, uint64_t domain, bool alone)
{
    if (wanted(id, domain))
        whole_book(cpu, id, domain, alone);
}

/* Xen begins a domain's end, or has come to it (`gone`). */
void books_domain(unsigned cpu, uint16_t id, uint64_t domain, bool gone)
{
    unsigned slot = id % DOMAINS;
    for (unsigned i = 0; i < DOMAINS; i++)
        if (ending[i].address && ending[i].domain == id)
            slot = i;
        else if (!ending[i].address && ending[slot].address && ending[slot].domain != id)
            slot = i;
    ending[slot].domain = id;
    ending[slot].address = gone ? 0 : domain;
    if (wanted(id, domain))
        whole_book(cpu, id, domain, true);
    if (gone)
        watch_forget(id);
}

/* OP-TEE is about to be told that a domain is gone. */
void books_vm_destroyed(unsigned cpu, uint64_t client)
{
    for (unsigned i = 0; i < DOMAINS; i++)
        if (ending[i].domain + 1ULL == client && wanted(ending[i].domain, ending[i].address))
            whole_book(cpu, ending[i].domain, ending[i].address, true);
}

/*
 * What books.c (Xen's lists and memory), frames.c (references of pages) and partition.c (OP-TEE's list) share. All
 * under the plugin's lock.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_BOOKS_H
#define MEDCHECK_BOOKS_H

#include <string.h>

#include "trace.h"

#define STRUCT_LIMIT 512   /* of structures that are copied whole */
#define WORDS_LIMIT 32768  /* of one domain's lists, of which Xen's limits allow a tenth */
#define FRAMES_LIMIT 16384 /* of one buffer, and watched for one domain: Xen's own limit for all of a domain */

/* Pages of a domain that its calls have named, or that its lists held, and whose references are looked at again. */
struct watch {
    bool used, seen; /* seen: the domain's lists have been recorded */
    uint16_t domain;
    unsigned count, room;
    uint64_t *pages; /* addresses of struct page_info */
};

static inline uint64_t word_at(const uint8_t *from, uint64_t offset)
{
    uint64_t value;
    memcpy(&value, from + offset, 8);
    return value;
}

static inline uint32_t half_at(const uint8_t *from, uint64_t offset)
{
    uint32_t value;
    memcpy(&value, from + offset, 4);
    return value;
}

/* Whether a member lies inside of a structure that is copied whole. */
static inline bool fits(uint64_t offset, size_t length, uint64_t size)
{
    return size <= STRUCT_LIMIT && offset <= size && size - offset >= length;
}

/* Words under construction: they grow, so they are put into the record when they are complete. */
struct words { uint64_t *at; size_t used, room; bool full; };
void words_put(struct words *words, uint64_t value);

struct block *sense_block(unsigned cpu, int kind, size_t words, uint16_t id, uint64_t domain);

void frames_begin(unsigned cpu, uint64_t domain); /* before the others, for each domain and event */
uint64_t frame_word(unsigned cpu, uint64_t domain, uint64_t page);
void frames_named(unsigned cpu, uint64_t domain, struct watch *watch);
void frames_left(unsigned cpu, uint64_t domain, struct watch *before, const struct watch *now);

struct watch *watch_of(uint16_t domain);
void watch_page(struct watch *watch, uint64_t page);
void watch_once(struct watch *watch, unsigned from); /* from there on: in order, each page once */
void watch_forget(uint16_t domain);

#endif

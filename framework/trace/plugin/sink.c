/*
 * Chunks of records on their way to a file. The vCPU threads only copy into the current chunk; one thread compresses
 * and writes, so that a slow disk costs the board nothing until all chunks are in use, and then it waits: no record
 * is dropped while the file can be written and is not full. A guest decides how much it says, so the file has a limit.
 *
 * zstd and zlib are the libraries that QEMU itself is linked with, found at run time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include "sink.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "record.h"

#define CHUNK_BYTES (256 * 1024)
#define CHUNKS 8
#define CLOSING_ROOM 1024 /* kept free below the limit for the closing record */

struct chunk {
    struct chunk *next;
    uint8_t *data;
    size_t used, room;
    uint32_t records;
    uint64_t first_seq;
    bool last; /* the closing record's: written beyond the limit */
};

enum outcome { WRITTEN, FAILED, FULL };

typedef size_t (*zstd_compress_fn)(void *, size_t, const void *, size_t, int);
typedef unsigned (*zstd_error_fn)(size_t);
typedef int (*zlib_compress_fn)(uint8_t *, unsigned long *, const uint8_t *, unsigned long, int);
typedef unsigned long (*zlib_crc_fn)(unsigned long, const uint8_t *, unsigned);

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, room;
    pthread_t thread;
    struct chunk *current, *spare, *queue, **tail;
    unsigned queued, spares;
    bool open, closing, failed, full; /* failed: nothing more is written; full: only the closing record is */
    int fd, codec;
    unsigned flush_ms;
    uint64_t lost, written, limit;
    uint8_t *out;
    size_t out_room;
    sink_failed_cb on_failure;
    zstd_compress_fn zstd;
    zstd_error_fn zstd_error;
    zlib_compress_fn zlib;
} s = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .room = PTHREAD_COND_INITIALIZER};

uint32_t sink_crc32(uint32_t crc, const void *data, size_t length)
{
    static zlib_crc_fn zlib_crc;
    static uint32_t table[256];
    if (!zlib_crc && !table[1]) {
        zlib_crc = (zlib_crc_fn)dlsym(RTLD_DEFAULT, "crc32");
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? 0xedb88320U ^ (c >> 1) : c >> 1;
            table[i] = c;
        }
    }
    if (zlib_crc)
        return (uint32_t)zlib_crc(crc, data, (unsigned)length);
    const uint8_t *p = data;
    crc = ~crc;
    while (length--)
        crc = table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
    return ~crc;
}

static struct chunk *chunk_new(size_t room)
{
    struct chunk *c = calloc(1, sizeof *c);
    if (c && !(c->data = malloc(room))) {
        free(c);
        c = NULL;
    }
    if (c)
        c->room = room;
    return c;
}

static bool write_all(const void *data, size_t length)
{
    const uint8_t *p = data;
    while (length) {
        ssize_t n = write(s.fd, p, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        length -= (size_t)n;
        s.written += (uint64_t)n;
    }
    return true;
}

/* Compresses into s.out behind room for the header; returns the stored size, 0 when compression does not pay. */
static size_t compress_chunk(const struct chunk *c)
{
    size_t head = sizeof(struct chunk_header);
    size_t need = head + c->used + c->used / 64 + 1024;
    if (need > s.out_room) {
        uint8_t *grown = realloc(s.out, need);
        if (!grown)
            return 0;
        s.out = grown;
        s.out_room = need;
    }
    if (s.codec == CODEC_ZSTD) {
        size_t n = s.zstd(s.out + head, s.out_room - head, c->data, c->used, 1);
        return s.zstd_error(n) || n >= c->used ? 0 : n;
    }
    if (s.codec == CODEC_ZLIB) {
        unsigned long n = s.out_room - head;
        return s.zlib(s.out + head, &n, c->data, c->used, 1) || n >= c->used ? 0 : n;
    }
    return 0;
}

static enum outcome write_chunk(const struct chunk *c)
{
    struct chunk_header h = {.magic = CHUNK_MAGIC, .raw = (uint32_t)c->used, .records = c->records,
                             .first_seq = c->first_seq};
    size_t stored = compress_chunk(c);
    const uint8_t *payload = stored ? s.out + sizeof h : c->data;
    h.codec = stored ? (uint8_t)s.codec : CODEC_NONE;
    h.stored = (uint32_t)(stored ? stored : c->used);
    h.crc = sink_crc32(0, payload, h.stored);
    h.header_crc = sink_crc32(0, &h, offsetof(struct chunk_header, header_crc));
    if (s.limit && !c->last && s.written + sizeof h + h.stored + CLOSING_ROOM > s.limit)
        return FULL;
    if (stored) {
        memcpy(s.out, &h, sizeof h);
        return write_all(s.out, sizeof h + stored) ? WRITTEN : FAILED;
    }
    return write_all(&h, sizeof h) && write_all(c->data, c->used) ? WRITTEN : FAILED;
}

static void queue_current(void)
{
    struct chunk *c = s.current;
    s.current = NULL;
    c->next = NULL;
    *s.tail = c;
    s.tail = &c->next;
    s.queued++;
    pthread_cond_signal(&s.work);
}

static void recycle(struct chunk *c)
{
    if (s.spares >= CHUNKS || c->room != CHUNK_BYTES) {
        free(c->data);
        free(c);
        return;
    }
    c->used = 0;
    c->records = 0;
    c->last = false;
    c->next = s.spare;
    s.spare = c;
    s.spares++;
}

static void gave_up(enum outcome outcome, int error)
{
    char text[256];
    if (outcome == FULL)
        snprintf(text, sizeof text, "the trace file has reached its limit of %llu MiB",
                 (unsigned long long)(s.limit >> 20));
    else
        snprintf(text, sizeof text, "cannot write the trace file: %s", strerror(error));
    s.on_failure(text, outcome == FULL);
}

static void *writer(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&s.lock);
    while (true) {
        if (!s.queue && !s.closing) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += (long)(s.flush_ms % 1000) * 1000000L;
            until.tv_sec += s.flush_ms / 1000 + until.tv_nsec / 1000000000L;
            until.tv_nsec %= 1000000000L;
            pthread_cond_timedwait(&s.work, &s.lock, &until);
        }
        if (!s.queue && s.current && s.current->used)
            queue_current();
        struct chunk *c = s.queue;
        if (!c) {
            if (s.closing)
                break;
            continue;
        }
        s.queue = c->next;
        if (!s.queue)
            s.tail = &s.queue;
        bool write = !s.failed && (!s.full || c->last);
        pthread_mutex_unlock(&s.lock);
        enum outcome outcome = write ? write_chunk(c) : FAILED;
        int error = errno;
        pthread_mutex_lock(&s.lock);
        if (outcome != WRITTEN)
            s.lost += c->records;
        if (write && outcome == FAILED && s.full) {
            s.failed = true; /* not even the closing record; that the trace is cut was said */
        } else if (write && outcome != WRITTEN) {
            s.full = outcome == FULL;
            s.failed = outcome == FAILED;
            pthread_mutex_unlock(&s.lock);
            gave_up(outcome, error);
            pthread_mutex_lock(&s.lock);
        }
        s.queued--;
        recycle(c);
        pthread_cond_broadcast(&s.room);
    }
    pthread_mutex_unlock(&s.lock);
    return NULL;
}

static int choose_codec(int wanted)
{
    s.zstd = (zstd_compress_fn)dlsym(RTLD_DEFAULT, "ZSTD_compress");
    s.zstd_error = (zstd_error_fn)dlsym(RTLD_DEFAULT, "ZSTD_isError");
    s.zlib = (zlib_compress_fn)dlsym(RTLD_DEFAULT, "compress2");
    if ((wanted == CODEC_AUTO || wanted == CODEC_ZSTD) && s.zstd && s.zstd_error)
        return CODEC_ZSTD;
    if ((wanted == CODEC_AUTO || wanted == CODEC_ZLIB) && s.zlib)
        return CODEC_ZLIB;
    return wanted == CODEC_AUTO ? CODEC_NONE : wanted == CODEC_NONE ? CODEC_NONE : -1;
}

static bool write_segment_header(const char *json)
{
    size_t text = strlen(json);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct segment_header h = {.major = FORMAT_MAJOR, .minor = FORMAT_MINOR,
                               .length = (uint32_t)(sizeof h + text), .text_length = (uint32_t)text,
                               .started = (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec};
    memcpy(h.magic, SEGMENT_MAGIC, sizeof h.magic);
    h.crc = sink_crc32(sink_crc32(0, &h, sizeof h), json, text);
    return write_all(&h, sizeof h) && write_all(json, text);
}

const char *sink_open(const char *path, bool append, int codec, unsigned flush_ms, uint64_t max_bytes, const char *json,
                      sink_failed_cb failed)
{
    static char text[512];
    s.codec = choose_codec(codec);
    if (s.codec < 0)
        return "the codec that was asked for is not in this QEMU; use codec=auto";
    s.fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (append ? O_APPEND : O_TRUNC), 0644);
    off_t held = s.fd < 0 ? 0 : lseek(s.fd, 0, SEEK_END);
    s.written = held > 0 ? (uint64_t)held : 0;
    s.limit = max_bytes;
    if (s.fd < 0 || !write_segment_header(json)) {
        snprintf(text, sizeof text, "cannot write the trace file %s: %s", path, strerror(errno));
        return text;
    }
    s.flush_ms = flush_ms;
    s.on_failure = failed;
    s.tail = &s.queue;
    if (pthread_create(&s.thread, NULL, writer, NULL)) {
        return "cannot start the writer thread";
    }
    s.open = true;
    return NULL;
}

bool sink_is_open(void)
{
    return s.open;
}

static bool append_record(const void *record, size_t length, uint64_t seq, bool last)
{
    pthread_mutex_lock(&s.lock);
    if (s.current && s.current->used + length > s.current->room)
        queue_current();
    while (!s.current && !s.failed && (!s.full || last)) {
        size_t room = length > CHUNK_BYTES ? length : CHUNK_BYTES;
        if (s.queued >= CHUNKS) {
            pthread_cond_wait(&s.room, &s.lock);
        } else if (room == CHUNK_BYTES && s.spare) {
            s.current = s.spare;
            s.spare = s.spare->next;
            s.spares--;
        } else if (!(s.current = chunk_new(room))) {
            break;
        }
    }
    struct chunk *c = s.current;
    bool ok = c && !s.failed && (!s.full || last);
    if (ok) {
        c->last = last;
        if (!c->records++)
            c->first_seq = seq;
        memcpy(c->data + c->used, record, length);
        c->used += length;
    } else {
        s.lost++;
    }
    pthread_mutex_unlock(&s.lock);
    return ok;
}

bool sink_append(const void *record, size_t length, uint64_t seq)
{
    return append_record(record, length, seq, false);
}

uint64_t sink_settle(void)
{
    pthread_mutex_lock(&s.lock);
    if (s.current && s.current->used)
        queue_current();
    while (s.queued)
        pthread_cond_wait(&s.room, &s.lock);
    pthread_mutex_unlock(&s.lock);
    return sink_lost();
}

void sink_append_last(const void *record, size_t length, uint64_t seq)
{
    append_record(record, length, seq, true);
}

uint64_t sink_lost(void)
{
    pthread_mutex_lock(&s.lock);
    uint64_t lost = s.lost;
    pthread_mutex_unlock(&s.lock);
    return lost;
}

void sink_close(void)
{
    if (!s.open)
        return;
    pthread_mutex_lock(&s.lock);
    s.closing = true;
    pthread_cond_signal(&s.work);
    pthread_mutex_unlock(&s.lock);
    pthread_join(s.thread, NULL);
    close(s.fd);
    s.open = false;
}

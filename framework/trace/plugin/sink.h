/*
 * Where records go: chunks, compressed and written by a thread of their own.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_SINK_H
#define MEDCHECK_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum codec { CODEC_NONE = 0, CODEC_ZSTD = 1, CODEC_ZLIB = 2, CODEC_AUTO = 255 };

/* Called once, from the writer thread, when nothing more is written; text says why. full: the file has its limit. */
typedef void (*sink_failed_cb)(const char *text, bool full);

/*
 * Opens path and writes a segment header with the JSON text; NULL or a text that says what is wrong. The file never
 * grows beyond max_bytes (0: no limit); appended to, what it held counts.
 */
const char *sink_open(const char *path, bool append, int codec, unsigned flush_ms, uint64_t max_bytes, const char *json,
                      sink_failed_cb failed);
bool sink_is_open(void);
/* Appends one whole record; false: nothing more is written and it is lost (and counted). Waits if the disk is slow. */
bool sink_append(const void *record, size_t length, uint64_t seq);
/* Waits until all records are written or lost; how many were lost. */
uint64_t sink_settle(void);
/* Appends the closing record, after sink_settle: the file has room for it even when it is full. */
void sink_append_last(const void *record, size_t length, uint64_t seq);
uint64_t sink_lost(void);
/* Writes all that is pending and closes. */
void sink_close(void);

uint32_t sink_crc32(uint32_t crc, const void *data, size_t length);

#endif

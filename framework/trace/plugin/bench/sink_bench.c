/*
 * How many records a second the plugin's sink takes to a file, without a board: sink_bench FILE RECORDS BYTES [MAX_MIB].
 * Prints {"records":...,"seconds":...,"lost":...}; the last second ends when the file is closed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../record.h"
#include "../sink.h"

static void failed(const char *text, bool full)
{
    (void)full;
    fprintf(stderr, "sink_bench: %s\n", text);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 5)
        return 2;
    unsigned long records = strtoul(argv[2], NULL, 10);
    uint64_t max_mib = argc == 5 ? strtoull(argv[4], NULL, 10) : 0;
    size_t length = strtoul(argv[3], NULL, 10) & ~7UL;
    if (length < sizeof(struct record) + 64 || length > 65536)
        return 2;
    dlopen("libzstd.so.1", RTLD_NOW | RTLD_GLOBAL); /* as in QEMU; without it the sink takes zlib or nothing */
    dlopen("libz.so.1", RTLD_NOW | RTLD_GLOBAL);
    const char *wrong = sink_open(argv[1], false, CODEC_AUTO, 100, max_mib << 20, "{\"clock\":\"none\"}", failed);
    if (wrong) {
        fprintf(stderr, "sink_bench: %s\n", wrong);
        return 1;
    }
    uint64_t *buffer = calloc(1, length);
    struct record *r = (struct record *)buffer;
    *r = (struct record){.length = (uint32_t)length, .kind = REC_GUEST_CALL, .domain = 1, .nregs = 8};
    double start = now();
    for (unsigned long i = 1; i <= records; i++) {
        r->seq = i;
        r->time_ns = i * 1000;
        for (size_t word = 8; word < 16; word++) /* registers that change, as registers do */
            buffer[word] = i * 0x9e3779b97f4a7c15ULL >> (word * 4);
        r->nblocks = 0;
        r->nregs = (uint16_t)((length - sizeof *r) / 8);
        sink_append(r, length, i);
    }
    sink_close();
    printf("{\"records\":%lu,\"seconds\":%.6f,\"lost\":%llu}\n", records, now() - start,
           (unsigned long long)sink_lost());
    free(buffer);
    return 0;
}

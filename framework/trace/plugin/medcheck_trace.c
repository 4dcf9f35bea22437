/*
 * medcheck's trace plugin for QEMU: records every SMC and HVC of a board that enters EL2, every SMC that Xen makes to
 * EL3, and what comes back, with registers and the memory they name. This file: loading, arguments, end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hold.h"
#include "sink.h"

#define MOST_MIB (1ULL << 30)

QEMU_EXPORT int qemu_plugin_version = QEMU_API_VERSION;
QEMU_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv);

static const char *out, *lockstep, *coverage, *label = "";
static bool append, continues;
static int codec = CODEC_AUTO;
static uint64_t flush_ms = 100, timeout_ms = 60000, list_pages = 40, max_mib = 4096;
static bool stop_on_loss = true;

static const struct { const char *name; uint64_t *value; } numbers[] = {
    {"flush_ms", &flush_ms}, {"timeout_ms", &timeout_ms}, {"list_pages", &list_pages},
    {"max_mib", &max_mib},
    {"xen_curr_vcpu", &xen.curr_vcpu}, {"xen_create", &xen.create}, {"xen_kill", &xen.kill},
    {"xen_destroy", &xen.destroy}, {"xen_vcpu_domain", &xen.vcpu_domain}, {"xen_vcpu_id", &xen.vcpu_id},
    {"xen_domain_id", &xen.domain_id}, {"xen_domain_tee", &xen.domain_tee}, {"xen_tee_rpcs", &xen.tee_rpcs},
    {"xen_rpc_list", &xen.rpc_list}, {"xen_rpc_arg", &xen.rpc_arg}, {"xen_rpc_gfn", &xen.rpc_gfn},
    {"xen_rpc_cookie", &xen.rpc_cookie}, {"xen_mediator", &xen.mediator}, {"xen_tee_type", &xen.tee_type},
    {"xen_leave", &xen.leave},
    {"xen_heap_free", &xen.books.heap_free}, {"xen_heap_pool", &xen.books.heap_pool},
    {"xen_pool_used", &xen.books.pool_used}, {"xen_pool_regions", &xen.books.pool_regions},
    {"xen_pool_header", &xen.books.pool_header}, {"xen_domain_pages", &xen.books.domain_pages},
    {"xen_pdx_hole", &xen.books.pdx_hole}, {"xen_p2m_root", &xen.books.p2m_root},
    {"xen_p2m_vttbr", &xen.books.p2m_vttbr}, {"xen_page_size", &xen.books.page_size},
    {"xen_page_count", &xen.books.page_count}, {"xen_page_owner", &xen.books.page_owner},
    {"xen_tee_calls", &xen.books.calls}, {"xen_tee_bufs", &xen.books.bufs},
    {"xen_tee_call_count", &xen.books.call_count_of}, {"xen_tee_buf_count", &xen.books.buf_count_of},
    {"xen_tee_buf_pages", &xen.books.buf_pages_of}, {"xen_call_size", &xen.books.call_size},
    {"xen_call_list", &xen.books.call_list}, {"xen_call_shadow", &xen.books.call_shadow},
    {"xen_call_ipa", &xen.books.call_ipa}, {"xen_call_thread", &xen.books.call_thread},
    {"xen_call_in_flight", &xen.books.call_in_flight}, {"xen_rpc_size", &xen.books.rpc_size},
    {"xen_rpc_page", &xen.books.rpc_page}, {"xen_rpc_shadow", &xen.books.rpc_shadow},
    {"xen_buf_list", &xen.books.buf_list}, {"xen_buf_cookie", &xen.books.buf_cookie},
    {"xen_buf_count", &xen.books.buf_count}, {"xen_buf_shadow", &xen.books.buf_shadow},
    {"xen_buf_order", &xen.books.buf_order}, {"xen_buf_pages", &xen.books.buf_pages},
    {"optee_leave", &optee.leave}, {"optee_current", &optee.current}, {"optee_cpus", &optee.cpus},
    {"optee_list", &optee.list}, {"optee_partition_id", &optee.partition_id}, {"optee_shm_size", &optee.shm_size},
    {"optee_shm_next", &optee.shm_next}, {"optee_shm_cookie", &optee.shm_cookie},
    {"optee_shm_page_offset", &optee.shm_page_offset}, {"optee_shm_pages", &optee.shm_pages},
};

static const struct { const char *name; bool *value; const char *yes, *no; } switches[] = {
    {"append", &append, "on", "off"}, {"continues", &continues, "on", "off"}, {"memory", &options.memory, "on", "off"},
    {"doorbell", &options.doorbell, "on", "off"}, {"others", &options.others, "record", "count"},
    {"on_error", &options.stop_on_error, "stop", "continue"}, {"on_loss", &stop_on_loss, "stop", "continue"},
    {"reads", &options.reads, "on", "off"}, {"time", &options.time, "on", "off"},
    {"xen", &xen.known, "on", "off"}, {"xen_tee", &xen.tee_known, "on", "off"},
    {"xen_books", &xen.books.known, "on", "off"}, {"books", &options.books, "on", "off"},
    {"frames", &options.frames, "on", "off"}, {"heap", &options.heap, "on", "off"},
    {"optee", &optee.known, "on", "off"}, {"partition", &options.partition, "on", "off"},
};

void board_stop(const char *why)
{
    fprintf(stderr, "medcheck_trace: %s; stopping the board\n", why);
    kill(getpid(), SIGTERM); /* QEMU shuts down in its main loop, with its exit handlers */
}

static void sink_failed(const char *text, bool full)
{
    if (options.stop_on_error && !full) /* a guest that talks a lot must not end the board: its trace is cut */
        board_stop(text);
    else
        fprintf(stderr, "medcheck_trace: %s; the board goes on, its events are counted as lost\n", text);
}

static bool parse(const char *argument)
{
    const char *equals = strchr(argument, '=');
    if (!equals)
        return false;
    size_t n = (size_t)(equals - argument);
    const char *value = equals + 1;
#define IS(word) (strlen(word) == n && !strncmp(argument, word, n))
    if (IS("out"))
        return *(out = value) != 0;
    if (IS("lockstep"))
        return *(lockstep = value) != 0;
    if (IS("coverage"))
        return *(coverage = value) != 0;
    if (IS("cover"))
        return coverage_range(value);
    if (IS("label"))
        return (label = value) != NULL;
    if (IS("codec")) {
        codec = !strcmp(value, "auto") ? CODEC_AUTO : !strcmp(value, "none") ? CODEC_NONE
              : !strcmp(value, "zstd") ? CODEC_ZSTD : !strcmp(value, "zlib") ? CODEC_ZLIB : -1;
        return codec >= 0;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (IS(numbers[i].name)) {
            char *end;
            *numbers[i].value = strtoull(value, &end, 0);
            return *value && !*end;
        }
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if (IS(switches[i].name)) {
            *switches[i].value = !strcmp(value, switches[i].yes);
            return *switches[i].value || !strcmp(value, switches[i].no);
        }
#undef IS
    return false;
}

static void on_exit_of_board(void *unused)
{
    (void)unused;
    events_finish();
    coverage_close();
    sink_close();
    if (sink_lost())
        fprintf(stderr, "medcheck_trace: %llu records were lost: the trace file could not be written, or is full\n",
                (unsigned long long)sink_lost());
    lockstep_close();
}

/* The label is the caller's own text; it must not break the JSON around it. */
static void clean_label(char *to, size_t room)
{
    size_t n = 0;
    for (const char *p = label; *p && n + 1 < room; p++)
        if (*p != '"' && *p != '\\' && (unsigned char)*p >= ' ')
            to[n++] = *p;
    to[n] = 0;
}

static int refuse(const char *why)
{
    fprintf(stderr, "medcheck_trace: %s\n", why);
    return 1;
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    static char json[1024], clean[256];
    if (info->version.cur < QEMU_API_VERSION || info->version.min > QEMU_API_VERSION) {
        fprintf(stderr, "medcheck_trace: made for QEMU plugin API %d, this QEMU offers %d to %d: use the pinned QEMU\n",
                QEMU_API_VERSION, info->version.min, info->version.cur);
        return 1;
    }
    if (strcmp(info->target_name, "aarch64") || !info->system_emulation)
        return refuse("made for qemu-system-aarch64");
    if (info->system.max_vcpus > MAX_CPUS)
        return refuse("more CPUs than this plugin can follow (64)");
    for (int i = 0; i < argc; i++)
        if (!parse(argv[i])) {
            fprintf(stderr, "medcheck_trace: cannot understand the argument \"%s\"\n", argv[i]);
            return 1;
        }
    if (max_mib > MOST_MIB)
        return refuse("max_mib is larger than any disk");
    if (!out && !lockstep)
        return refuse("needs out=FILE, lockstep=SOCKET or both");
    if (xen.books.known && !(xen.known && xen.tee_known && books_usable())) {
        fprintf(stderr, "medcheck_trace: the layout of this Xen's lists makes no sense; they are not recorded\n");
        xen.books.known = false;
    }
    if (optee.known && !partition_usable()) {
        fprintf(stderr, "medcheck_trace: the layout of this OP-TEE's list makes no sense; it is not recorded\n");
        optee.known = false;
    }
    options.list_pages = (unsigned)list_pages;
    options.lockstep = lockstep != NULL;
    if (!rec_init() || !stretch_init() || !hold_init((unsigned)timeout_ms))
        return refuse("no memory for its records");
    const char *wrong = coverage ? coverage_open(coverage) : NULL;
    if (wrong)
        return refuse(wrong);
    hooks_init(id);
    clean_label(clean, sizeof clean);
    snprintf(json, sizeof json,
             "{\"api\":%d,\"cpus\":%d,\"clock\":\"%s\",\"memory\":%s,\"others\":%s,\"xen\":%s,\"xen_tee\":%s,"
             "\"books\":%s,\"frames\":%s,\"heap\":%s,\"partition\":%s,"
             "\"lockstep\":%s,\"coverage\":%s,\"reads\":%s,\"time\":%s,\"max_mib\":%llu,\"continues\":%s,\"label\":\"%s\"}",
             info->version.cur, info->system.max_vcpus, clock_choose(), options.memory ? "true" : "false",
             options.others ? "true" : "false", xen.known ? "true" : "false", xen.tee_known ? "true" : "false",
             xen.books.known && options.books ? "true" : "false", xen.books.known && options.frames ? "true" : "false",
             xen.books.known && options.heap ? "true" : "false", optee.known && options.partition ? "true" : "false",
             lockstep ? "true" : "false", coverage ? "true" : "false", options.reads ? "true" : "false",
             options.time ? "true" : "false", (unsigned long long)max_mib,
             continues ? "true" : "false", clean);
    wrong = out ? sink_open(out, append, codec, (unsigned)flush_ms, max_mib << 20, json, sink_failed) : NULL;
    if (!wrong && lockstep)
        wrong = lockstep_open(lockstep, json, (unsigned)timeout_ms, stop_on_loss);
    if (!wrong && lockstep && !events_push())
        wrong = "cannot start the thread that sends events";
    if (wrong)
        return refuse(wrong);
    qemu_plugin_register_atexit_cb(id, on_exit_of_board, NULL);
    return 0;
}

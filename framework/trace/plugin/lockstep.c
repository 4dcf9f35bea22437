/*
 * Lock-step: an event is shown to a consumer on a Unix socket, and the vCPU waits until the consumer lets it go. While
 * it waits the consumer may read and write its registers and memory. One vCPU is held at a time: the caller has the
 * plugin's lock, so the consumer sees one total order.
 *
 * A consumer that dies, hangs up, talks nonsense or stays silent for too long is lost; the board then stops or goes
 * on, as configured, and never waits again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "hold.h"

#define REQUEST_MAX (1U << 20)
#define BATCH (64 * 1024)

static struct {
    int fd;
    bool stop_on_loss;
    unsigned timeout_ms;
    uint32_t send, hold, before;
    uint8_t batch[BATCH];
    size_t batched;
    uint8_t in[4096];
    size_t in_at, in_end;
    uint8_t *request;
    size_t room;
} l = {.fd = -1};

static void lost(const char *why)
{
    char text[256];
    close(l.fd);
    l.fd = -1;
    l.send = l.hold = l.before = 0;
    hold_lost();
    snprintf(text, sizeof text, "the lock-step consumer is gone: %s", why);
    if (l.stop_on_loss)
        board_stop(text);
    else
        fprintf(stderr, "medcheck_trace: %s; the board goes on without it\n", text);
}

static bool send_all(const void *data, size_t length)
{
    const uint8_t *p = data;
    while (length) {
        ssize_t n = send(l.fd, p, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            lost(errno == EAGAIN ? "it does not read its socket" : strerror(errno));
            return false;
        }
        p += n;
        length -= (size_t)n;
    }
    return true;
}

static bool flush(void)
{
    size_t n = l.batched;
    l.batched = 0;
    return n == 0 || send_all(l.batch, n);
}

/*
 * Through buffers both ways, because every system call counts while a vCPU waits: most requests are a few bytes and may
 * come together, and answers leave when there is nothing more to do. So a consumer may send many requests at once.
 */
static bool receive(void *data, size_t length)
{
    uint8_t *p = data;
    while (length) {
        if (l.in_at == l.in_end) {
            if (!flush())
                return false;
            ssize_t n = recv(l.fd, l.in, sizeof l.in, 0);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0) {
                lost(n == 0 ? "it closed its socket" : errno == EAGAIN ? "no answer in time" : strerror(errno));
                return false;
            }
            l.in_at = 0;
            l.in_end = (size_t)n;
        }
        size_t part = l.in_end - l.in_at < length ? l.in_end - l.in_at : length;
        memcpy(p, l.in + l.in_at, part);
        l.in_at += part;
        p += part;
        length -= part;
    }
    return true;
}

/* Messages travel together; waiting for the consumer pushes them out. */
static bool put(int type, int flags, const void *data, size_t length)
{
    struct wire_header h = {.length = (uint32_t)length, .type = (uint16_t)type, .flags = (uint16_t)flags};
    if (l.batched + sizeof h + length > BATCH && !flush())
        return false;
    if (sizeof h + length > BATCH)
        return send_all(&h, sizeof h) && send_all(data, length);
    memcpy(l.batch + l.batched, &h, sizeof h);
    if (length)
        memcpy(l.batch + l.batched + sizeof h, data, length);
    l.batched += sizeof h + length;
    return true;
}

static bool reply(int error, const void *data, size_t length)
{
    return put(WIRE_REPLY, error, data, length);
}

static bool resolve(unsigned cpu, const struct wire_memory *m, uint64_t address, uint64_t *ma)
{
    struct leaf leaf;
    if (m->space == SPACE_MA) {
        *ma = address;
        return true;
    }
    memory_begin(); /* the consumer may have changed the tables */
    bool ok = stage2(cpu, address, &leaf) && leaf_is_ram(&leaf);
    *ma = leaf.ma;
    return ok;
}

static bool memory_request(unsigned cpu, bool write, const struct wire_memory *m, const uint8_t *bytes)
{
    static GByteArray *va;
    static uint8_t *out;
    if (!va)
        va = g_byte_array_new();
    if (m->length == 0 || m->length > REQUEST_MAX || m->space > SPACE_VA)
        return reply(WIRE_E_REQUEST, NULL, 0);
    if (m->space == SPACE_VA && write) {
        g_byte_array_set_size(va, m->length);
        memcpy(va->data, bytes, m->length);
        return reply(qemu_plugin_write_memory_vaddr(m->address, va) ? 0 : WIRE_E_UNMAPPED, NULL, 0);
    }
    if (m->space == SPACE_VA) {
        bool ok = qemu_plugin_read_memory_vaddr(m->address, va, m->length);
        return reply(ok ? 0 : WIRE_E_UNMAPPED, va->data, ok ? m->length : 0);
    }
    if (!out && !(out = malloc(REQUEST_MAX)))
        return reply(WIRE_E_REQUEST, NULL, 0);
    for (uint32_t done = 0, part; done < m->length; done += part) {
        uint64_t address = m->address + done, ma;
        part = (uint32_t)(PAGE - (address & PAGE_MASK));
        if (part > m->length - done)
            part = m->length - done;
        if (!resolve(cpu, m, address, &ma))
            return reply(WIRE_E_UNMAPPED, NULL, 0);
        if (!(write ? ma_write(ma, bytes + done, part) : ma_read(ma, out + done, part)))
            return reply(WIRE_E_ACCESS, NULL, 0);
    }
    return reply(0, out, write ? 0 : m->length);
}

static bool translate_request(unsigned cpu, uint64_t ipa)
{
    struct leaf leaf;
    memory_begin();
    bool mapped = stage2(cpu, ipa, &leaf);
    struct wire_leaf answer = {.ma = leaf.ma, .pte = leaf.pte, .level = leaf.level, .mapped = mapped};
    return reply(0, &answer, sizeof answer);
}

static bool coverage_request(void)
{
    static uint64_t found[1024];
    return reply(0, found, 8 * coverage_news(found, sizeof found / sizeof *found));
}

static void apply_setup(const uint8_t *p)
{
    memcpy(&l.send, p, 4);
    memcpy(&l.hold, p + 4, 4);
    memcpy(&l.before, p + 8, 4);
    l.send |= l.hold;
}

/* One request; false: let the vCPU go (delay is then set). */
static bool serve(unsigned cpu, uint32_t *delay)
{
    struct wire_header h;
    if (!receive(&h, sizeof h))
        return false;
    if (h.length > REQUEST_MAX + sizeof(struct wire_memory)) {
        lost("a request longer than 1 MiB");
        return false;
    }
    if (h.length + 1 > l.room) {
        free(l.request);
        l.room = h.length + 4096;
        l.request = malloc(l.room);
    }
    if (!l.request) {
        l.room = 0;
        lost("no memory for its request");
        return false;
    }
    if (!receive(l.request, h.length))
        return false;
    l.request[h.length] = 0;
    uint8_t *p = l.request;
    uint64_t value;
    struct wire_memory m;
    struct wire_hold hold;
    switch (h.type) {
    case WIRE_READ_REG:
        if (reg_read_named(cpu, (char *)p, &value))
            return reply(0, &value, 8);
        return reply(WIRE_E_NAME, NULL, 0);
    case WIRE_WRITE_REG:
        if (h.length < 9)
            break;
        memcpy(&value, p, 8);
        return reply(reg_write_named(cpu, (char *)p + 8, value) ? 0 : WIRE_E_NAME, NULL, 0);
    case WIRE_READ_MEM:
    case WIRE_WRITE_MEM:
        if (h.length < sizeof m)
            break;
        memcpy(&m, p, sizeof m);
        if (h.type == WIRE_WRITE_MEM && h.length != sizeof m + m.length)
            break;
        return memory_request(cpu, h.type == WIRE_WRITE_MEM, &m, p + sizeof m);
    case WIRE_TRANSLATE:
        if (h.length != 8)
            break;
        memcpy(&value, p, 8);
        return translate_request(cpu, value);
    case WIRE_COVERAGE:
        if (h.length)
            break;
        return coverage_request();
    case WIRE_SETUP:
        if (h.length != WIRE_SETUP_LENGTH)
            break;
        apply_setup(p);
        return true;
    case WIRE_HOLD:
        if (h.length != sizeof hold)
            break;
        memcpy(&hold, p, sizeof hold);
        if (hold_request(&hold))
            return true;
        lost("a vCPU cannot be held on this board");
        return false;
    case WIRE_CONTINUE:
        if (h.length != 4)
            break;
        memcpy(delay, p, 4);
        return false;
    case WIRE_DETACH:
        close(l.fd);
        l.fd = -1;
        l.send = l.hold = l.before = 0;
        hold_lost();
        return false;
    case WIRE_STOP:
        board_stop("the lock-step consumer asked for it");
        return false;
    default:
        break;
    }
    lost("a malformed request");
    return false;
}

bool lockstep_wants(int kind)
{
    return l.send >> kind & 1;
}

bool lockstep_asks(int kind)
{
    return l.before >> kind & 1;
}

/* The consumer talks with a vCPU whose event is not recorded yet. */
void lockstep_ask(unsigned cpu, const void *record, size_t length)
{
    MUST_BE_INSIDE();
    uint32_t unused = 0;
    if (l.fd < 0 || !put(WIRE_EVENT, WIRE_F_WAITS | WIRE_F_BEFORE, record, length))
        return;
    while (l.fd >= 0 && serve(cpu, &unused))
        ;
}

uint32_t lockstep_event(unsigned cpu, const void *record, size_t length, int kind)
{
    MUST_BE_INSIDE();
    bool hold = l.hold >> kind & 1;
    uint32_t delay = 0;
    if (l.fd < 0 || !put(WIRE_EVENT, hold ? WIRE_F_WAITS : 0, record, length) || !hold)
        return 0;
    while (l.fd >= 0 && serve(cpu, &delay))
        ;
    return delay;
}

const char *lockstep_open(const char *path, const char *json, unsigned timeout_ms, bool stop_on_loss)
{
    static char text[256];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    struct wire_header h;
    uint8_t setup[WIRE_SETUP_LENGTH];
    if (strlen(path) >= sizeof address.sun_path)
        return "the lock-step socket's path is longer than 107 characters";
    strcpy(address.sun_path, path);
    l.stop_on_loss = stop_on_loss;
    l.timeout_ms = timeout_ms;
    l.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l.fd < 0 || connect(l.fd, (struct sockaddr *)&address, sizeof address)) {
        snprintf(text, sizeof text, "no lock-step consumer listens at %s: %s", path, strerror(errno));
        return text;
    }
    setsockopt(l.fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(l.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (!put(WIRE_HELLO, 0, json, strlen(json)) || !receive(&h, sizeof h) || h.type != WIRE_SETUP ||
        h.length != sizeof setup || !receive(setup, sizeof setup))
        return "the lock-step consumer did not answer the plugin's greeting";
    apply_setup(setup);
    return NULL;
}

void lockstep_hold(int what, uint64_t at, const uint64_t *more, size_t count)
{
    MUST_BE_INSIDE();
    struct wire_header head = {.length = (uint32_t)(8 * (count + 2)), .type = WIRE_HELD};
    uint64_t words[] = {at, (uint64_t)what};
    if (l.fd >= 0 && flush() && send_all(&head, sizeof head) && send_all(words, sizeof words) && count)
        send_all(more, 8 * count);
}

void lockstep_push(void)
{
    MUST_BE_INSIDE();
    if (l.fd >= 0)
        flush();
}

void lockstep_close(void)
{
    if (l.fd >= 0 && put(WIRE_BYE, 0, NULL, 0) && flush()) {
        close(l.fd);
        l.fd = -1;
    }
}

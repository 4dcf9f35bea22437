/*
 * Boot, and the two ways in which programs come: frames on the console, and a mailbox that a tracing plugin fills while
 * the doorbell instruction executes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "probe.h"

u64 table_l1[512] __attribute__((aligned(4096)));
static u64 table_l2[512] __attribute__((aligned(4096)));
u8 stacks[VCPUS_MAX][STACK_SIZE] __attribute__((aligned(4096)));
static u8 fault_stacks[VCPUS_MAX][2048] __attribute__((aligned(64)));

/* Right before the program; docs/probe.md. */
struct mailbox { u64 magic, state, sequence, words; };
enum { MAIL_IDLE = 1, MAIL_PROGRAM = 2, MAIL_NONE = 3 };
#define MAIL_MAGIC 0x0065626f72706d31 /* "1mprobe" */
static volatile struct mailbox *const mailbox = (struct mailbox *)MAILBOX;

#define LINE_BYTES 576 /* bytes of results in one console line: 768 characters */

void *memcpy(void *to, const void *from, size_t length)
{
    u8 *t = to;
    const u8 *f = from;
    for (; length >= 8; length -= 8, t += 8, f += 8)
        *(u64 *)t = *(const u64 *)f;
    while (length--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, size_t length)
{
    for (u8 *t = to; length--;)
        *t++ = (u8)value;
    return to;
}

/* Identity map: the first GiB is devices except the console's, grant table's and shared pages; the next three are RAM, or
 * room to map something else's RAM at. */
void build_tables(void)
{
    const u64 block = 0x401, shareable = 3UL << 8, normal = 1UL << 2, never = 3UL << 53; /* AF, valid; UXN and PXN */
    for (u64 i = 0; i < 512; i++) {
        u64 address = i << 21;
        bool ram = address >= 0x38000000 && address < 0x3a000000;
        table_l2[i] = address | block | never | (ram ? normal | shareable : 0);
    }
    table_l1[0] = (u64)table_l2 | 3;
    for (u64 i = 1; i < 4; i++)
        table_l1[i] = i << 30 | block | normal | shareable;
}

static void init_cpu(u32 id)
{
    struct cpu *cpu = cpus + id;
    cpu->id = id;
    cpu->fault_sp = (u64)(fault_stacks[id] + sizeof fault_stacks[id]);
    __asm__ volatile("msr tpidr_el1, %0" ::"r"(cpu));
}

void secondary_main(u32 id)
{
    struct cpu *cpu = cpus + id;
    init_cpu(id);
    barrier();
    cpu->on = true;
    for (;;) {
        while (!cpu->running)
            wait_for_work(cpu, 0);
        barrier();
        run_section(cpu, cpu->program, cpu->used);
        cpu->running = 0;
        barrier();
    }
}

bool start_vcpu(u32 id)
{
    struct cpu *cpu = cpus + id;
    u64 regs[CALL_REGS] = {0xc4000003, id, (u64)secondary_entry, id}; /* PSCI CPU_ON */
    if (cpu->on)
        return true;
    cpu->port = cpu_port(id);
    if (!cpu->port)
        return false;
    call_out(regs, stub_hvc);
    if (regs[0])
        return false;
    for (u64 began = now(); !*(volatile bool *)&cpu->on; yield())
        if (now() - began > ticks(5000000))
            return false;
    return true;
}

static const char digits[] = "0123456789abcdef";
static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static u32 crc32(const u8 *data, u64 length)
{
    static u32 table[256];
    u32 crc = ~0U;
    for (u32 i = 0; !table[255] && i < 256; i++) {
        u32 c = i;
        for (u32 bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
        table[i] = c;
    }
    while (length--)
        crc = table[(crc ^ *data++) & 0xff] ^ crc >> 8;
    return ~crc;
}

static char *put_hex(char *to, u64 value)
{
    u32 shift = 60;
    while (shift && !(value >> shift))
        shift -= 4;
    for (;; shift -= 4) {
        *to++ = digits[value >> shift & 15];
        if (!shift)
            return to;
    }
}

/* One line: "@" kind, then fields in hex. */
static void say(char kind, u32 count, const u64 *fields)
{
    char line[160], *to = line;
    *to++ = '@';
    *to++ = kind;
    for (u32 i = 0; i < count; i++) {
        *to++ = ' ';
        to = put_hex(to, fields[i]);
    }
    *to++ = '\r';
    *to++ = '\n';
    console_write(line, (size_t)(to - line));
}

static void greet(void)
{
    say('H', 4, (u64[]){PROTOCOL, frequency(), MAILBOX, HEAP});
}

static void send_results(u64 sequence, const struct cpu *cpu)
{
    const u8 *data = (const u8 *)cpu->results;
    u64 length = cpu->used * 8;
    for (u64 at = 0; at < length; at += LINE_BYTES) {
        u64 part = length - at < LINE_BYTES ? length - at : LINE_BYTES;
        char line[LINE_BYTES / 3 * 4 + 40], *to = line;
        *to++ = '@';
        *to++ = 'R';
        *to++ = ' ';
        to = put_hex(to, sequence);
        *to++ = ' ';
        for (u64 i = 0; i < part; i += 3) {
            u64 left = part - i;
            const u8 *d = data + at + i;
            u32 bits = (u32)d[0] << 16 | (left > 1 ? (u32)d[1] << 8 : 0) | (left > 2 ? d[2] : 0);
            *to++ = base64[bits >> 18];
            *to++ = base64[bits >> 12 & 63];
            *to++ = left > 1 ? base64[bits >> 6 & 63] : '=';
            *to++ = left > 2 ? base64[bits & 63] : '=';
        }
        *to++ = '\r';
        *to++ = '\n';
        console_write(line, (size_t)(to - line));
    }
    say('E', 3, (u64[]){sequence, length, crc32(data, length)});
}

/* A program's frame: "P" sequence length crc base64 "\n", numbers in hex. Decoded as it comes, so that a frame may be
 * longer than anything that would hold its text. */
static struct {
    enum { AT_KIND, AT_FIELD, AT_DATA, SKIP } at;
    u32 field;
    u64 fields[3];
    u32 bits, held;
    u64 length;
} frame;

static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static void run_program(u64 words)
{
    struct cpu *cpu = cpus;
    cpu->results = (u64 *)RESULTS;
    cpu->room = RESULTS_SIZE / 8;
    run_section(cpu, (const u64 *)PROGRAM, words);
}

static void end_of_line(void)
{
    u64 sequence = frame.fields[0];
    if (frame.at == AT_DATA) {
        if (frame.length != frame.fields[1] || crc32((const u8 *)PROGRAM, frame.length) != (u32)frame.fields[2]) {
            say('N', 3, (u64[]){sequence, frame.length, crc32((const u8 *)PROGRAM, frame.length)});
        } else {
            run_program(frame.length / 8);
            send_results(sequence, cpus);
        }
    }
    memset(&frame, 0, sizeof frame);
}

static void take_character(char c)
{
    if (c == '\r')
        return;
    if (c == '\n') {
        end_of_line();
    } else if (frame.at == AT_KIND) {
        if (c == '?')
            greet();
        frame.at = c == 'P' ? AT_FIELD : SKIP;
    } else if (frame.at == AT_FIELD && c == ' ') {
        /* "P 1 2 3 data": the first space opens the first field. */
        if (frame.field++ == 3)
            frame.at = AT_DATA;
    } else if (frame.at == AT_FIELD) {
        u32 digit = c <= '9' ? (u32)(c - '0') : (u32)(c - 'a' + 10);
        if (frame.field == 0 || digit > 15)
            frame.at = SKIP;
        else
            frame.fields[frame.field - 1] = frame.fields[frame.field - 1] << 4 | digit;
    } else if (frame.at == AT_DATA && c != '=') {
        int value = sextet(c);
        if (value < 0 || frame.length >= PROGRAM_SIZE) {
            frame.at = SKIP;
            return;
        }
        frame.bits = frame.bits << 6 | (u32)value;
        frame.held += 6;
        if (frame.held >= 8) {
            frame.held -= 8;
            ((u8 *)PROGRAM)[frame.length++] = (u8)(frame.bits >> frame.held);
        }
    }
}

/* Ring once; true when a host answered at all. Results of the program that was run lie ready at the next ring. */
static bool ring_for_program(void)
{
    static u64 result_sequence, result_words;
    mailbox->state = MAIL_IDLE;
    barrier();
    ring(MAILBOX, result_sequence, result_words, PROTOCOL);
    barrier();
    u64 state = mailbox->state;
    if (state == MAIL_PROGRAM && mailbox->words <= PROGRAM_SIZE / 8) {
        u64 sequence = mailbox->sequence;
        run_program(mailbox->words);
        result_words = cpus[0].used;
        result_sequence = sequence;
    }
    return state != MAIL_IDLE;
}

_Noreturn void main(void)
{
    char input[256];
    init_cpu(0);
    xen_start();
    mailbox->magic = MAIL_MAGIC;
    greet();
    /* Idle rings: many at once while programs come, then further and further apart, up to 20 ms; without a
     * plugin four a second, so that one that is loaded later is found. */
    for (u64 quiet = 0;; quiet++) {
        bool answered = ring_for_program();
        if (mailbox->state == MAIL_PROGRAM) {
            quiet = 0;
            continue;
        }
        if (console_has_input()) {
            size_t count = console_read(input, sizeof input);
            for (size_t i = 0; i < count; i++)
                take_character(input[i]);
            quiet = 0;
            continue;
        }
        if (!answered)
            wait_for_work(cpus, 250000);
        else if (quiet > 200)
            wait_for_work(cpus, quiet < 2000 ? quiet * 10 : 20000);
    }
}

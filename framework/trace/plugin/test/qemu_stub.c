/*
 * See qemu_stub.h. GLib's byte array moves whenever it grows, as the real one may: what still points to the old place
 * is then found.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu_stub.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../qemu_api.h"

#define CALLBACKS 8
#define NAME_ROOM 16
#define LOAD 0xf9400000U /* ldr x0, [x0] */

static const char *const systems[] = {
    "sp", "pc", "cpsr", "SCR_EL3", "ELR_EL3", "SPSR_EL3", "HCR_EL2", "VTTBR_EL2", "VTCR_EL2", "ESR_EL2", "ELR_EL2",
    "SPSR_EL2", "TPIDR_EL2", "TTBR0_EL2", "TCR_EL2", "VBAR_EL2",
};
#define GENERAL 31
#define REGISTERS (GENERAL + sizeof systems / sizeof *systems)

struct vcpu {
    unsigned number;
    uint64_t values[REGISTERS];
};
struct qemu_plugin_insn {
    uint64_t address;
    uint32_t opcode;
    unsigned count;
    struct { vcpu_udata_cb call; void *udata; qemu_plugin_u64 unless_zero; } callbacks[CALLBACKS];
    struct { mem_cb call; void *udata; } memory;
    struct inline_add { qemu_plugin_u64 entry; uint64_t operand; } add;
};
struct qemu_plugin_tb {
    struct qemu_plugin_insn insn;
    struct inline_add add;
};
struct qemu_plugin_scoreboard {
    size_t size;
    uint8_t *entries;
};
struct qemu_plugin_hwaddr { uint64_t address; };

uint8_t ram[RAM_BYTES] __attribute__((aligned(4096)));
static struct vcpu vcpus[STUB_CPUS];
static char names[REGISTERS][NAME_ROOM];
static __thread struct vcpu *me;
static __thread jmp_buf same_instruction;
__thread void *current_cpu; /* QEMU exports it, and its clock, to modules */
static int64_t ticks;

static struct { vcpu_udata_cb begin; tb_trans_cb translate; udata_cb exit; void *udata[3]; } plugin;

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv);
int64_t qemu_clock_get_ns(int clock);

int64_t qemu_clock_get_ns(int clock)
{
    (void)clock;
    return __atomic_add_fetch(&ticks, 1000, __ATOMIC_RELAXED);
}

/* GLib */

GByteArray *g_byte_array_new(void)
{
    return calloc(1, sizeof(GByteArray));
}

GByteArray *g_byte_array_set_size(GByteArray *array, unsigned length)
{
    if (length > array->len) {
        uint8_t *moved = malloc(length);
        if (array->len)
            memcpy(moved, array->data, array->len);
        free(array->data);
        array->data = moved;
    }
    array->len = length;
    return array;
}

char *g_array_free(GArray *array, int free_segment)
{
    char *data = array->data;
    if (free_segment) {
        free(data);
        data = NULL;
    }
    free(array);
    return data;
}

/* Registration */

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, vcpu_udata_cb cb, void *udata)
{
    (void)id;
    plugin.begin = cb;
    plugin.udata[0] = udata;
}

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb, void *udata)
{
    (void)id;
    plugin.translate = cb;
    plugin.udata[1] = udata;
}

void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, udata_cb cb, void *udata)
{
    (void)id;
    plugin.exit = cb;
    plugin.udata[2] = udata;
}

void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags, void *udata)
{
    (void)flags;
    if (insn->count == CALLBACKS)
        abort();
    insn->callbacks[insn->count].call = cb;
    insn->callbacks[insn->count++].udata = udata;
}

void qemu_plugin_register_vcpu_insn_exec_cond_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags,
                                                 int condition, qemu_plugin_u64 entry, uint64_t operand, void *udata)
{
    if (condition != COND_NE || operand)
        abort();
    qemu_plugin_register_vcpu_insn_exec_cb(insn, cb, flags, udata);
    insn->callbacks[insn->count - 1].unless_zero = entry;
}

void qemu_plugin_set_pc(uint64_t va)
{
    (void)va; /* the plugin goes back to the instruction before which it was called */
    longjmp(same_instruction, 1);
}

void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, mem_cb cb, int flags, int which, void *udata)
{
    (void)flags;
    if (which != (MEM_LOAD | MEM_STORE))
        abort();
    insn->memory.call = cb;
    insn->memory.udata = udata;
}

void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *insn, int op, qemu_plugin_u64 entry,
                                                         uint64_t operand)
{
    if (op != INLINE_ADD_U64)
        abort();
    insn->add = (struct inline_add){entry, operand};
}

void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb, int op, qemu_plugin_u64 entry,
                                                       uint64_t operand)
{
    if (op != INLINE_ADD_U64)
        abort();
    tb->add = (struct inline_add){entry, operand};
}

/* Scoreboards: exactly as large as asked for, so that what lies outside is found */

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size)
{
    struct qemu_plugin_scoreboard *score = calloc(1, sizeof *score);
    score->size = element_size;
    score->entries = calloc(STUB_CPUS, element_size);
    return score;
}

void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned vcpu)
{
    if (vcpu >= STUB_CPUS)
        abort();
    return score->entries + vcpu * score->size;
}

static void run_inline(const struct inline_add *add)
{
    if (add->entry.score)
        *(uint64_t *)((uint8_t *)qemu_plugin_scoreboard_find(add->entry.score, me->number) + add->entry.offset) +=
            add->operand;
}

/* Accesses; the information is the size's shift, and 16 for a store */

unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info)
{
    return info & 15;
}

bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info)
{
    return info & 16;
}

struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t info, uint64_t va)
{
    static __thread struct qemu_plugin_hwaddr found;
    (void)info;
    found.address = va;
    return &found;
}

bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *hwaddr)
{
    return hwaddr->address >= RAM_BYTES;
}

uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *hwaddr)
{
    return hwaddr->address;
}

/* Code */

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb)
{
    (void)tb;
    return 1;
}

struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index)
{
    (void)index;
    return (struct qemu_plugin_insn *)&tb->insn;
}

size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t length)
{
    memcpy(dest, &insn->opcode, length);
    return length;
}

uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn)
{
    return insn->address;
}

/* Registers; a handle is the register's number plus one */

GArray *qemu_plugin_get_registers(void)
{
    GArray *list = calloc(1, sizeof *list);
    qemu_plugin_reg_descriptor *all = calloc(REGISTERS, sizeof *all);
    for (unsigned i = 0; i < REGISTERS; i++) {
        all[i].handle = (struct qemu_plugin_register *)(uintptr_t)(i + 1);
        all[i].name = names[i];
    }
    list->data = (char *)all;
    list->len = REGISTERS;
    return list;
}

bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer)
{
    unsigned before = buffer->len;
    g_byte_array_set_size(buffer, before + 8);
    memcpy(buffer->data + before, &me->values[(uintptr_t)handle - 1], 8);
    return true;
}

bool qemu_plugin_write_register(struct qemu_plugin_register *handle, GByteArray *buffer)
{
    memcpy(&me->values[(uintptr_t)handle - 1], buffer->data, 8);
    return true;
}

/* Memory; virtual addresses are machine addresses */

static bool inside_ram(uint64_t address, uint64_t length)
{
    return address < RAM_BYTES && length <= RAM_BYTES - address;
}

int qemu_plugin_read_memory_hwaddr(uint64_t address, GByteArray *data, size_t length)
{
    g_byte_array_set_size(data, (unsigned)length);
    if (!inside_ram(address, length))
        return 4;
    memcpy(data->data, ram + address, length);
    return 0;
}

int qemu_plugin_write_memory_hwaddr(uint64_t address, GByteArray *data)
{
    if (!inside_ram(address, data->len))
        return 4;
    memcpy(ram + address, data->data, data->len);
    return 0;
}

bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *data, size_t length)
{
    return qemu_plugin_read_memory_hwaddr(address, data, length) == 0;
}

bool qemu_plugin_write_memory_vaddr(uint64_t address, GByteArray *data)
{
    return qemu_plugin_write_memory_hwaddr(address, data) == 0;
}

/* For the test */

int stub_load(int argc, char **argv)
{
    static const qemu_info_t info = {.target_name = "aarch64", .version = {QEMU_API_VERSION, QEMU_API_VERSION},
                                     .system_emulation = true, .system = {STUB_CPUS, STUB_CPUS}};
    for (unsigned i = 0; i < REGISTERS; i++) {
        if (i < GENERAL)
            snprintf(names[i], NAME_ROOM, "x%u", i);
        else
            snprintf(names[i], NAME_ROOM, "%s", systems[i - GENERAL]);
    }
    return qemu_plugin_install(1, &info, argc, argv);
}

void stub_begin(unsigned cpu)
{
    me = &vcpus[cpu];
    me->number = cpu;
    current_cpu = me;
    plugin.begin(cpu, plugin.udata[0]);
}

void stub_set_x(unsigned number, uint64_t value)
{
    me->values[number] = value;
}

void stub_set(const char *name, uint64_t value)
{
    for (unsigned i = GENERAL; i < REGISTERS; i++)
        if (!strcmp(names[i], name)) {
            me->values[i] = value;
            return;
        }
    abort();
}

static bool is_wanted(const qemu_plugin_u64 *flag)
{
    return !flag->score || __atomic_load_n((uint64_t *)((uint8_t *)qemu_plugin_scoreboard_find(flag->score, me->number) +
                                                        flag->offset), __ATOMIC_ACQUIRE);
}

static void run(struct qemu_plugin_tb *tb)
{
    plugin.translate(tb, plugin.udata[1]);
    run_inline(&tb->add);
    run_inline(&tb->insn.add);
    setjmp(same_instruction);
    for (unsigned i = 0; i < tb->insn.count; i++)
        if (is_wanted(&tb->insn.callbacks[i].unless_zero))
            tb->insn.callbacks[i].call(me->number, tb->insn.callbacks[i].udata);
}

void stub_execute(uint64_t address, uint32_t opcode)
{
    struct qemu_plugin_tb tb = {.insn = {.address = address, .opcode = opcode}};
    run(&tb);
}

void stub_access(uint64_t address, uint64_t va, unsigned shift, bool store)
{
    struct qemu_plugin_tb tb = {.insn = {.address = address, .opcode = LOAD}};
    run(&tb);
    if (tb.insn.memory.call)
        tb.insn.memory.call(me->number, shift | (store ? 16 : 0), va, tb.insn.memory.udata);
}

void stub_exit(void)
{
    plugin.exit(plugin.udata[2]);
}

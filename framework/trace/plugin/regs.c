/*
 * Registers by name. Handles are the same for every CPU of a board, but QEMU hands them out in vCPU context only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <stdlib.h>
#include <string.h>

#include "trace.h"

static const char *const names[R_COUNT] = {
    [R_SP] = "sp", [R_PC] = "pc", [R_CPSR] = "cpsr", [R_SCR_EL3] = "SCR_EL3", [R_ELR_EL3] = "ELR_EL3",
    [R_SPSR_EL3] = "SPSR_EL3", [R_HCR_EL2] = "HCR_EL2", [R_VTTBR_EL2] = "VTTBR_EL2", [R_VTCR_EL2] = "VTCR_EL2",
    [R_ESR_EL2] = "ESR_EL2", [R_ELR_EL2] = "ELR_EL2", [R_SPSR_EL2] = "SPSR_EL2", [R_TPIDR_EL2] = "TPIDR_EL2",
    [R_TTBR0_EL2] = "TTBR0_EL2", [R_TCR_EL2] = "TCR_EL2", [R_VBAR_EL2] = "VBAR_EL2",
};

static struct {
    qemu_plugin_reg_descriptor *all;
    unsigned count;
    struct qemu_plugin_register *known[R_COUNT];
    GByteArray *buffer;
} cpus[MAX_CPUS];

void regs_init(unsigned cpu)
{
    if (cpu >= MAX_CPUS || cpus[cpu].buffer)
        return;
    GArray *list = qemu_plugin_get_registers();
    cpus[cpu].count = list->len;
    cpus[cpu].all = (qemu_plugin_reg_descriptor *)g_array_free(list, 0);
    for (unsigned i = 0; i < cpus[cpu].count; i++) {
        const char *name = cpus[cpu].all[i].name;
        if (name[0] == 'x' && name[1] >= '0' && name[1] <= '9' && atoi(name + 1) <= 30)
            cpus[cpu].known[R_X0 + atoi(name + 1)] = cpus[cpu].all[i].handle;
        for (unsigned r = R_SP; r < R_COUNT; r++)
            if (!strcmp(name, names[r]))
                cpus[cpu].known[r] = cpus[cpu].all[i].handle;
    }
    cpus[cpu].buffer = g_byte_array_new();
    static bool warned; /* CPUs may begin at the same time */
    for (unsigned r = R_SP; r < R_COUNT; r++)
        if (!cpus[cpu].known[r] && !__atomic_exchange_n(&warned, true, __ATOMIC_RELAXED)) {
            fprintf(stderr, "medcheck_trace: this machine has no %s: it needs secure=on,virtualization=on\n", names[r]);
        }
}

static bool read_handle(unsigned cpu, struct qemu_plugin_register *handle, uint64_t *value)
{
    GByteArray *b = cpus[cpu].buffer;
    *value = 0;
    if (!handle)
        return false;
    b->len = 0;
    if (!qemu_plugin_read_register(handle, b) || b->len > 8)
        return false;
    memcpy(value, b->data, b->len);
    return true;
}

uint64_t reg_read(unsigned cpu, enum reg reg)
{
    uint64_t value;
    read_handle(cpu, cpus[cpu].known[reg], &value);
    return value;
}

static struct qemu_plugin_register *find(unsigned cpu, const char *name)
{
    for (unsigned i = 0; i < cpus[cpu].count; i++)
        if (!strcmp(cpus[cpu].all[i].name, name))
            return cpus[cpu].all[i].handle;
    return NULL;
}

bool reg_read_named(unsigned cpu, const char *name, uint64_t *value)
{
    return read_handle(cpu, find(cpu, name), value);
}

bool reg_write_named(unsigned cpu, const char *name, uint64_t value)
{
    struct qemu_plugin_register *handle = find(cpu, name);
    uint64_t old;
    if (!read_handle(cpu, handle, &old))
        return false;
    GByteArray *b = cpus[cpu].buffer; /* read_handle left the register's own size in it */
    memcpy(b->data, &value, b->len);
    return qemu_plugin_write_register(handle, b);
}

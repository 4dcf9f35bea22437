/*
 * A QEMU that has nothing but the plugin API: vCPUs are threads with registers, RAM is an array, an instruction is
 * translated and executed when the test says so. With it the plugin's own sources run under the sanitizers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_QEMU_STUB_H
#define MEDCHECK_QEMU_STUB_H

#include <stdbool.h>
#include <stdint.h>

#define RAM_BYTES (16ULL << 20) /* from machine address 0 */
#define STUB_CPUS 8

extern uint8_t ram[RAM_BYTES];

/* Loads the plugin with these arguments; its return value. */
int stub_load(int argc, char **argv);
/* From now on the calling thread is this vCPU. */
void stub_begin(unsigned cpu);
/* Registers of the calling thread's vCPU, by QEMU's name. */
void stub_set(const char *name, uint64_t value);
void stub_set_x(unsigned number, uint64_t value);
/* Translates and executes one instruction on the calling thread's vCPU. */
void stub_execute(uint64_t address, uint32_t opcode);
/* The same of an instruction that loads or stores 1 << shift bytes at `va`. */
void stub_access(uint64_t address, uint64_t va, unsigned shift, bool store);
/* The board ends. */
void stub_exit(void);

#endif

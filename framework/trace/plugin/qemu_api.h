/*
 * What this plugin uses of QEMU's TCG plugin API, version 7, and of GLib, declared here because neither header is
 * part of a QEMU binary package. Every symbol resolves from the QEMU process that loads the plugin.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_QEMU_API_H
#define MEDCHECK_QEMU_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QEMU_API_VERSION 7
#define QEMU_EXPORT __attribute__((visibility("default")))

typedef struct { uint8_t *data; unsigned int len; } GByteArray;
typedef struct { char *data; unsigned int len; } GArray;
GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length);
char *g_array_free(GArray *array, int free_segment);

typedef uint64_t qemu_plugin_id_t;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;

struct qemu_plugin_register;
typedef struct {
    struct qemu_plugin_register *handle;
    const char *name;
    const char *feature;
    bool is_readonly;
} qemu_plugin_reg_descriptor;

enum { CB_NO_REGS = 0, CB_READ_REGS = 1, CB_WRITE_REGS = 2, CB_WRITE_PC = 3 };
enum { COND_NE = 3 };

struct qemu_plugin_tb;
struct qemu_plugin_hwaddr;
struct qemu_plugin_scoreboard;
struct qemu_plugin_insn;
typedef void (*vcpu_udata_cb)(unsigned int vcpu, void *udata);
typedef void (*tb_trans_cb)(struct qemu_plugin_tb *tb, void *udata);
typedef void (*udata_cb)(void *udata);
typedef uint32_t qemu_plugin_meminfo_t;
typedef void (*mem_cb)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t va, void *udata);

typedef struct { struct qemu_plugin_scoreboard *score; size_t offset; } qemu_plugin_u64;
enum { INLINE_ADD_U64 = 0 };
enum { MEM_LOAD = 1, MEM_STORE = 2 };

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, vcpu_udata_cb cb, void *udata);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb, void *udata);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, udata_cb cb, void *udata);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags, void *udata);
void qemu_plugin_register_vcpu_insn_exec_cond_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags,
                                                 int condition, qemu_plugin_u64 entry, uint64_t operand, void *udata);
void qemu_plugin_set_pc(uint64_t va); /* does not return */
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, mem_cb cb, int flags, int which, void *udata);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *insn, int op, qemu_plugin_u64 entry,
                                                         uint64_t operand);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb, int op, qemu_plugin_u64 entry,
                                                       uint64_t operand);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned int vcpu);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t info, uint64_t va);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *hwaddr);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *hwaddr);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t length);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
GArray *qemu_plugin_get_registers(void);
bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer);
bool qemu_plugin_write_register(struct qemu_plugin_register *handle, GByteArray *buffer);
int qemu_plugin_read_memory_hwaddr(uint64_t address, GByteArray *data, size_t length);
int qemu_plugin_write_memory_hwaddr(uint64_t address, GByteArray *data);
bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *data, size_t length);
bool qemu_plugin_write_memory_vaddr(uint64_t address, GByteArray *data);

#endif

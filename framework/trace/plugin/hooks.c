/*
 * Which instructions call us. At translation time each block is looked at once, with the exception level it is
 * translated for; so EL0 and EL1 code costs nothing afterwards, and in EL2 and EL3 only the few instructions that matter
 * do. Callbacks on instructions, not on exceptions: QEMU holds its big lock in the latter, and a consumer that thinks
 * would stop the whole machine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "hold.h"
#include "waiting.h"

#define HINT_DOORBELL 0xd503261fU /* hint #0x30 */
#define WFE 0xd503205fU

/*
 * A translation callback does not get its CPU. With a thread for each vCPU the thread knows; with one thread for all it
 * does not matter: registers are read from the CPU that runs, and their handles are the same for all.
 */
static __thread unsigned thread_cpu;

static bool is_eret(uint32_t opcode)
{
    return opcode == 0xd69f03e0U || opcode == 0xd69f0bffU || opcode == 0xd69f0fffU;
}

static void sense(struct qemu_plugin_insn *insn, uint64_t va, uint32_t opcode, int flags)
{
    coverage_instrument(insn, va, opcode);
    if (options.reads)
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, CB_NO_REGS, MEM_LOAD | MEM_STORE, (void *)(uintptr_t)va);
    if (xen.known && va == xen.leave && (options.reads || options.time))
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_leaving, flags, NULL);
}

/* Xen executes it only in the loops in which it waits for a lock. */
static bool has_wfe(struct qemu_plugin_tb *tb, size_t count)
{
    uint32_t opcode = 0;
    for (size_t i = 0; i < count && opcode != WFE; i++)
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), &opcode, 4);
    return opcode == WFE;
}

static bool only_waits(struct qemu_plugin_tb *tb, size_t count)
{
    uint32_t opcodes[MOST_WAITING] = {0};
    if (count > MOST_WAITING)
        return false;
    for (size_t i = 0; i < count; i++)
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), &opcodes[i], 4);
    return is_waiting_loop(opcodes, count);
}

/* OP-TEE's way out of a guest's partition. A guest may have code at the same address: it is not in the secure world. */
static void watch_partition(struct qemu_plugin_tb *tb, unsigned cpu)
{
    uint64_t first = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
    uint64_t index = (optee.leave - first) / 4;
    if (optee.leave >= first && index < qemu_plugin_tb_n_insns(tb) && !(reg_read(cpu, R_SCR_EL3) & 1))
        qemu_plugin_register_vcpu_insn_exec_cb(qemu_plugin_tb_get_insn(tb, index), on_partition_left, CB_READ_REGS, NULL);
}

static void on_translation(struct qemu_plugin_tb *tb, void *unused)
{
    (void)unused;
    unsigned cpu = thread_cpu;
    uint64_t cpsr = reg_read(cpu, R_CPSR);
    unsigned el = cpsr & 0x10 ? 0 : cpsr >> 2 & 3; /* AArch32 only below EL2 here: nothing of it is instrumented */
    if (el == 1 && optee.known && options.partition)
        watch_partition(tb, cpu);
    if (el < 2 && (!options.doorbell || cpsr & 0x10))
        return;
    uint64_t vector = el == 2 ? reg_read(cpu, R_VBAR_EL2) : ~0ULL;
    int flags = options.lockstep ? CB_WRITE_REGS : CB_READ_REGS;
    size_t count = qemu_plugin_tb_n_insns(tb);
    bool waits = el == 2 && has_wfe(tb, count);
    if (el == 2)
        stretch_instrument(tb, count, only_waits(tb, count));
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t opcode = 0;
        qemu_plugin_insn_data(insn, &opcode, 4);
        if (el < 2) {
            if (opcode == HINT_DOORBELL)
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_doorbell, flags, (void *)(uintptr_t)el);
            continue;
        }
        if (el == 3) {
            if (is_eret(opcode)) {
                hold_instrument(insn, qemu_plugin_insn_vaddr(insn), REC_EL3_RETURN, false, false);
                qemu_plugin_register_vcpu_insn_exec_cb(insn, on_el3_eret, flags, NULL);
            }
            continue;
        }
        uint64_t va = qemu_plugin_insn_vaddr(insn);
        if (i == 0 || coverage_covers(va))
            hold_instrument(insn, va, 0, i == 0, i == 0 && waits);
        sense(insn, va, opcode, flags);
        if (options.time && va >= vector + 0x200 && va < vector + 0x400 && !(va & 0x7f))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_own_exception, CB_NO_REGS, NULL);
        if (va == vector + 0x400 || va == vector + 0x600) {
            hold_instrument(insn, va, REC_GUEST_CALL, false, false);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_guest_entry, flags, NULL);
        }
        if (xen.known && va == xen.create)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_domain, flags, (void *)REC_DOMAIN_CREATE);
        if (xen.known && va == xen.kill)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_domain, flags, (void *)REC_DOMAIN_KILL);
        if (xen.known && va == xen.destroy)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_domain, flags, (void *)REC_DOMAIN_DESTROY);
        if ((opcode & 0xffe0001fU) == 0xd4000003U) {
            hold_instrument(insn, va, REC_EL3_CALL, false, false);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_el2_smc, flags, (void *)(uintptr_t)(opcode >> 5 & 0xffff));
        } else if (is_eret(opcode)) {
            hold_instrument(insn, va, REC_GUEST_RETURN, false, false);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_el2_eret, flags, NULL);
        }
    }
}

static void on_vcpu_init(unsigned cpu, void *unused)
{
    (void)unused;
    thread_cpu = cpu;
    cpu_begins(cpu);
    regs_init(cpu);
}

void hooks_init(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu_init, NULL);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
}

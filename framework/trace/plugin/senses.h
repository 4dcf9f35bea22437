/*
 * What happens between the borders: which code of the mediator ran, how long EL2 took, and what it read and wrote of
 * the guest's pages. Each sense is off unless an argument turns it on, and costs nothing then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_SENSES_H
#define MEDCHECK_SENSES_H

#include "trace.h"

/* coverage.c: set up before there is any vCPU, no lock */
bool coverage_range(const char *text);        /* "START-END" of code to count; false: not understood, or too many */
const char *coverage_open(const char *path);  /* NULL or a text that says what is wrong */
bool coverage_covers(uint64_t va);
void coverage_instrument(struct qemu_plugin_insn *insn, uint64_t va, uint32_t opcode);
/* Under the lock: instructions that ran for the first time since the last call, with the new ways of branches in bits
 * 0 and 1; at most `room` of them, others come next time. */
size_t coverage_news(uint64_t *found, size_t room);
void coverage_close(void);

/*
 * stretch.c: a stretch is what EL2 does between two borders of one guest call: from the guest's trap, or OP-TEE's
 * answer, to the next SMC, or to Xen's way out to guests. It lies on one CPU.
 */
enum { STRETCH_CLOSED, STRETCH_OPEN, STRETCH_FROZEN };
bool stretch_init(void); /* before there is any vCPU; false: no memory */
void stretch_instrument(struct qemu_plugin_tb *tb, size_t instructions, bool only_waits);
bool stretch_is_any_open(void);     /* no lock */
bool stretch_is_open(unsigned cpu); /* by the CPU's own thread, no lock */
/* Under the lock. `key` is the guest's vCPU; `first`: of its call, so nothing is known of the call's pages. */
void stretch_begin(unsigned cpu, uint64_t key, bool first);
/* Instructions of the open stretch so far, and the same set back: what a vCPU that is held executes again does not count. */
uint64_t stretch_took(unsigned cpu);
void stretch_set_took(unsigned cpu, uint64_t took);
void stretch_end(unsigned cpu, uint64_t key); /* adds what was seen to the record under construction */
void on_leaving(unsigned reported, void *unused);
/* An exception that EL2 takes in the middle of a stretch, an interrupt mostly: by the CPU's own thread, no lock. */
void on_own_exception(unsigned reported, void *unused);
void stretch_own_exception_ends(unsigned cpu);

/* accesses.c */
void accesses_begin(unsigned cpu, bool first);
void accesses_watch(unsigned cpu, uint64_t ma); /* under the lock: a guest's page that this stretch may touch */
void accesses_watch_ipa(unsigned cpu, uint64_t ipa);
void accesses_add_block(unsigned cpu);
void on_access(unsigned reported, qemu_plugin_meminfo_t info, uint64_t va, void *pc);

#endif

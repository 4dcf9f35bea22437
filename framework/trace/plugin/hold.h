/*
 * Holding a vCPU at a point of Xen (hold.c).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEDCHECK_HOLD_H
#define MEDCHECK_HOLD_H

#include "senses.h"
#include "wire.h"

/* What is wanted; the consumer may ask for the first three. */
enum hold_mode { HOLD_NONE = 0, HOLD_ARMED = 1, HOLD_PATH = 2, HOLD_STANDING = 3 };
/* What the consumer is told. */
enum hold_said { HELD_REACHED = 1, HELD_RELEASED = 2, HELD_OTHER_WAITS = 3, HELD_EXPIRED = 4, HELD_PATH = 5 };

bool hold_init(unsigned timeout_ms); /* before there is any vCPU; false: no memory */
/*
 * A place at which a vCPU may stand: `kind` of event, 0 any instruction; `block`: the first of one; `waits`: of a block
 * that only waits.
 */
void hold_instrument(struct qemu_plugin_insn *insn, uint64_t va, unsigned kind, bool block, bool waits);
bool hold_request(const struct wire_hold *wanted); /* under the lock; false: not possible here */
void hold_lost(void);                              /* under the lock: the consumer is gone */

#endif
